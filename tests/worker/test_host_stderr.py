"""What child processes write to their standard error is read for as long as they live, and nobody waits for it."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from agentao_gov.process.stderr import StderrReader
from tests.governor.harness import HANG_S, say
from tests.process import zoo
from tests.worker.sessions import Subprocesses

ZOO = Path(__file__).parents[1] / "process" / "mcp_zoo.py"


@pytest.fixture
def reader() -> Iterator[StderrReader]:
    made = StderrReader()
    yield made
    made.close()


def is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


def test_what_is_written_is_handed_on_until_the_end(reader: StderrReader) -> None:
    """Each pipe to its own sink, broken characters too; its descriptor is closed after its last writer."""
    said: dict[str, str] = {"a": "", "b": ""}
    ends = {name: os.pipe() for name in said}
    for name, (fd, _) in ends.items():
        reader.add(fd, lambda text, name=name: said.update({name: said[name] + text}))  # type: ignore[misc]

    os.write(ends["a"][1], b"one\xff")
    os.write(ends["b"][1], b"two")
    os.close(ends["a"][1])

    assert zoo.until(lambda: said == {"a": "one\ufffd", "b": "two"} and not is_open(ends["a"][0]))
    assert is_open(ends["b"][0])
    reader.close()
    assert zoo.until(lambda: not is_open(ends["b"][0]))
    os.close(ends["b"][1])


def test_a_sink_that_fails_loses_a_piece_and_no_more(reader: StderrReader) -> None:
    """Others are still heard, and so is the next piece."""
    heard = threading.Event()
    read, write = os.pipe()

    def sink(text: str) -> None:
        if text == "first":
            raise ValueError(text)
        heard.set()

    reader.add(read, sink)
    os.write(write, b"first")
    while not heard.wait(0.01):
        os.write(write, b"next")

    os.close(write)


def test_a_reader_that_is_closed_keeps_nothing(reader: StderrReader) -> None:
    """Neither what it had nor what it is given later."""
    read, write = os.pipe()
    reader.close()

    reader.add(read, lambda _text: None)

    assert not is_open(read)
    os.close(write)


def test_a_pipe_that_cannot_be_read_is_closed_and_the_next_one_is_heard(reader: StderrReader) -> None:
    """Its thread could not start; nothing is left open that nobody would ever read."""
    (read, write), (other, other_write) = os.pipe(), os.pipe()
    heard = threading.Event()

    with zoo.no_descriptors(), pytest.raises(OSError, match="Too many open files"):
        reader.add(read, lambda _text: None)
    reader.add(other, lambda _text: heard.set())
    os.write(other_write, b"x")

    assert heard.wait(HANG_S)
    with pytest.raises(BrokenPipeError):
        os.write(write, b"x")
    os.close(write)
    os.close(other_write)


def test_a_server_that_floods_its_standard_error_goes_on_and_the_log_stays_short(
    subprocesses: Subprocesses, caplog: pytest.LogCaptureFixture
) -> None:
    """Far more than `session_file_size`: it would be killed, were the service's log file its own; here it answers."""
    program = (
        "import os, sys\nfor _ in range(1000): os.write(2, b'noise ' * 400 + b'\\n')\n"
        f"sys.argv = ['zoo', 'polite', {str(subprocesses.root)!r}]\nexec(open({str(ZOO)!r}).read())\n"
    )
    server = {"command": sys.executable, "args": ["-I", "-S", "-c", program], "startup_timeout": "10s"}
    host = subprocesses.open(mcp={"servers": {"zoo": server}})

    report = subprocesses.ask(host, say(text="after", tool={"name": "mcp_zoo_wait", "args": {}}))

    assert [call.outcome for call in report.tool_calls] == ["ok"]
    assert (
        f"In the process of session {host.spec.key}: In the MCP server zoo of session {host.spec.key}: noise"
        in caplog.text
    )
    assert len(caplog.text) < 1_000_000
