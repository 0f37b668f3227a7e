"""What a model asks of the file tools cannot stop the process: each call is bounded in time and in memory."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from pathlib import Path
from typing import Any

import psutil
import pytest

from agentao_gov.governor import Outcome, TurnReport
from agentao_gov.governor.file_program import NAME
from tests.governor.harness import Harness, say

ALL: dict[str, Any] = {
    "permission_mode": "workspace-write",
    "allow": ["read_file", "glob", "search_file_content", "list_directory", "write_file", "replace"],
}


@pytest.fixture
def workdir(harness: Harness) -> Path:
    """The session's directory."""
    where = harness.spec().workdir
    where.mkdir(parents=True, exist_ok=True)
    return where


def call(harness: Harness, name: str, *, limit_s: float = 10.0, **arguments: Any) -> tuple[TurnReport, str]:
    """One call of a tool: the report, and what the model was told."""
    report = harness.run(
        say(text="after", tool={"name": name, "args": arguments}), tools=ALL, limits={"tool_timeout": limit_s}
    )
    messages = harness.opened[-1].snapshot().messages
    return report, "\n".join(str(message["content"]) for message in messages if message["role"] == "tool")


def search(harness: Harness, pattern: str, text: str) -> str:
    """What the tool tells a model that searches a file with the text."""
    workdir: Path = harness.spec().workdir
    workdir.mkdir(parents=True, exist_ok=True)
    (workdir / "data.txt").write_text(text)
    return call(harness, "search_file_content", pattern=pattern, regex=True)[1]


def program() -> psutil.Process:
    """The process that runs this process's file tools."""
    (found,) = (child for child in psutil.Process().children() if child.name() == NAME)
    return found


def test_a_pattern_that_backtracks_without_end_is_given_up(harness: Harness) -> None:
    """The model is told why, long before the tool's limit."""
    told = search(harness, r"(a|aa)+$", "a" * 5_000 + "!\n")

    assert "the pattern took more than 1 s on one line" in told


@pytest.mark.parametrize("pattern", [r"needle\d+", r"(?i)NEEDLE\d{2}", r"^need(?=le)"])
def test_honest_patterns_find_what_they_found(harness: Harness, pattern: str) -> None:
    """As with `re`."""
    told = search(harness, pattern, "hay\nneedle42\nhay\n")

    assert "data.txt:2: needle42" in told


@pytest.mark.parametrize("pattern", ["need(le", "(" * 5_000 + ")" * 5_000, "a{99999999999}"])
def test_a_pattern_that_is_none_is_an_error_to_the_model(harness: Harness, pattern: str) -> None:
    """Also one that `re` cannot compile for its depth or its count."""
    assert "Invalid regex pattern" in search(harness, pattern, "needle\n")


@pytest.mark.parametrize(
    "pattern",
    [
        "a{10000000}",
        "((a{1000}){1000}){1000}",
        "|".join(f"word{number}" for number in range(3_000)),
        "((?:(?R)|a)+)",
    ],
)
def test_a_pattern_that_explodes_costs_the_service_no_memory(harness: Harness, pattern: str) -> None:
    """Counted repeats, nested ones, thousands of alternatives, recursion."""
    before = psutil.Process().memory_info().rss

    search(harness, pattern, "needle\n")

    assert psutil.Process().memory_info().rss - before < 64 << 20


def test_a_name_pattern_without_end_is_killed_at_the_limit(harness: Harness, workdir: Path) -> None:
    """No thread spins on, so the session is as good as before."""
    (workdir / "/".join("a" * 60)).mkdir(parents=True)

    report, told = call(harness, "glob", limit_s=0.5, pattern="**/*/" * 6 + "*.zzz")

    assert [(done.name, done.outcome) for done in report.tool_calls] == [("glob", "timeout")]
    assert "stopped at its limit of 0.5 s" in told
    assert report.outcome == Outcome.ANSWERED
    assert not harness.opened[-1].stuck


def test_a_search_for_similar_text_is_killed_at_the_limit(harness: Harness, workdir: Path) -> None:
    """Where `replace` does not find the text it looks for what is most like it, in cubic time."""
    (workdir / "data.txt").write_text("".join(f"line {n} of many\n" for n in range(50_000)))

    report, _ = call(
        harness, "replace", limit_s=0.5, file_path="data.txt", old_text="no such line\n" * 200, new_text=""
    )

    assert [(done.name, done.outcome) for done in report.tool_calls] == [("replace", "timeout")]
    assert not harness.opened[-1].stuck


def test_a_replacement_that_explodes_is_an_error(harness: Harness, workdir: Path) -> None:
    """A million letters, each replaced by ten thousand."""
    (workdir / "data.txt").write_text("a" * 1_000_000)

    _, told = call(harness, "replace", file_path="data.txt", old_text="a", new_text="b" * 10_000, replace_all=True)

    assert "MiB of memory" in told
    assert (workdir / "data.txt").stat().st_size == 1_000_000


def test_a_file_that_a_tool_cannot_hold_is_refused(harness: Harness, workdir: Path) -> None:
    """With both figures, before a byte is read."""
    with (workdir / "data.txt").open("wb") as file:
        file.write(b"text\n")
        file.truncate(33 << 20)

    _, told = call(harness, "read_file", file_path="data.txt")

    assert "34,603,008 bytes; file tools read up to 33,554,432" in told


@pytest.mark.parametrize("tool", ["read_file", "search_file_content", "write_file", "replace"])
def test_a_pipe_is_no_file(harness: Harness, workdir: Path, tool: str) -> None:
    """Opening one would wait for a writer."""
    os.mkfifo(workdir / "pipe")
    arguments: dict[str, dict[str, Any]] = {
        "read_file": {"file_path": "pipe"},
        "search_file_content": {"pattern": "x"},
        "write_file": {"file_path": "pipe", "content": "x"},
        "replace": {"file_path": "pipe", "old_text": "x", "new_text": "y"},
    }

    report, _ = call(harness, tool, **arguments[tool])

    assert [done.outcome for done in report.tool_calls] in (["error"], ["ok"])
    assert report.timing_ms.tools < 5_000


def test_a_result_has_a_limit(harness: Harness, workdir: Path) -> None:
    """A model may ask for every line of a large file."""
    (workdir / "data.txt").write_text(("x" * 999 + "\n") * 20_000)

    _, told = call(harness, "read_file", file_path="data.txt", limit=20_000)

    assert len(told) < 2 << 20


def test_another_program_is_started_where_the_first_was_killed(harness: Harness, workdir: Path) -> None:
    """By the memory killer, say."""
    (workdir / "own.txt").write_text("my own text")
    assert "my own text" in call(harness, "read_file", file_path="own.txt")[1]
    first = program()
    first.send_signal(signal.SIGKILL)
    first.wait()

    _, told = call(harness, "read_file", file_path="own.txt")

    assert "my own text" in told
    assert program().pid != first.pid


def test_a_call_whose_process_is_killed_is_an_error_to_the_model(harness: Harness, workdir: Path) -> None:
    """The session goes on."""
    (workdir / "data.txt").write_text("a" * 5_000 + "!\n")
    call(harness, "glob", pattern="*")
    over = threading.Event()

    def kill_the_call() -> None:
        here = program()
        # Not only the first that is seen: the call before may not have been waited for yet.
        while not over.is_set():
            for child in here.children():
                with contextlib.suppress(psutil.NoSuchProcess):
                    child.kill()

    killer = threading.Thread(target=kill_the_call)
    killer.start()
    report, told = call(harness, "search_file_content", pattern="(a|aa)+$", regex=True)
    over.set()
    killer.join()

    assert [(done.name, done.outcome) for done in report.tool_calls] == [("search_file_content", "error")]
    assert "was ended" in told
