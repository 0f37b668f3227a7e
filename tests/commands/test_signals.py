"""Ctrl-C and SIGTERM against the real program, in a process of its own and on a real terminal."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from agentao_gov.simulator import Simulator

pytestmark = pytest.mark.slow

_HANG = 'wait\n@sim {"fault": "hang"}'
# A hang guard, not an expectation: the machine may be busy.
_GUARD_S = 60.0
#: After this a key that had no effect is pressed again.
_AGAIN_S = 3.0


def _command(simulator: Simulator, *args: str) -> list[str]:
    return [sys.executable, "-m", "agentao_gov.main", "run", "--base-url", simulator.base_url, "--model", "sim", *args]


@contextlib.contextmanager
def _started(command: list[str]) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize(
    ("number", "code", "outcome"), [(signal.SIGINT, 130, "cancelled"), (signal.SIGTERM, 143, "shutdown")]
)
def test_a_signal_cancels_the_turn_and_the_report_is_still_written(
    simulator: Simulator, number: signal.Signals, code: int, outcome: str
) -> None:
    """The model never answers; one signal ends the turn, one line says how."""
    with _started(_command(simulator, "--json", _HANG)) as process:
        simulator.wait_for(timeout_s=_GUARD_S, in_flight=1)

        process.send_signal(number)

        out, _ = process.communicate(timeout=_GUARD_S)
    assert process.returncode == code
    assert json.loads(out)["outcome"] == outcome
    simulator.wait_for(idle=True)


def test_a_second_ctrl_c_at_the_very_end_keeps_the_code(simulator: Simulator) -> None:
    """The report is out and the interpreter is on its way down: the code is 130, not a death of the signal."""
    with _started(_command(simulator, "--json", _HANG)) as process:
        simulator.wait_for(timeout_s=_GUARD_S, in_flight=1)
        assert process.stdout is not None
        process.send_signal(signal.SIGINT)
        select.select([process.stdout], [], [], _GUARD_S)

        while process.poll() is None:
            process.send_signal(signal.SIGINT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(0.05)

        assert process.returncode == 130


def test_an_interrupted_batch_keeps_what_is_done_and_goes_on(simulator: Simulator, tmp_path: Path) -> None:
    """Ctrl-C in the middle: finished lines stand in the file, the one in flight is run again."""
    prompts, output = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    prompts.write_text(
        json.dumps({"id": "a", "prompt": "one"}) + "\n" + json.dumps({"id": "b", "prompt": _HANG}) + "\n"
    )
    command = _command(simulator, "--batch", str(prompts), "--output", str(output), "--jobs", "1", "--timeout", "50s")
    with _started(command) as process:
        simulator.wait_for(timeout_s=_GUARD_S, calls=2, in_flight=1)

        process.send_signal(signal.SIGINT)

        _, said = process.communicate(timeout=_GUARD_S)
    assert process.returncode == 130
    assert "interrupted with 1 turn left. Run the same command again" in said
    assert [json.loads(line)["id"] for line in output.read_text().splitlines()] == ["a"]

    prompts.write_text(prompts.read_text().replace("hang", "stall").replace('\\"fault\\"', '\\"tag\\"'))
    again = subprocess.run(command, capture_output=True, text=True, timeout=_GUARD_S)

    assert again.returncode == 0, again.stderr
    assert [json.loads(line)["id"] for line in output.read_text().splitlines()] == ["a", "b"]


class _Terminal:
    """A program on a pseudo-terminal, with a person who reads and types."""

    def __init__(self, command: list[str], *, kind: str = "xterm") -> None:
        self.pid, self._handle = pty.fork()
        if self.pid == 0:
            os.environ["TERM"] = kind
            os.execv(command[0], command)
        self.seen = b""
        #: How far `read_until` has come.
        self._at = 0

    def read_until(self, words: str, *, pressing: str = "") -> None:
        """Reads until the words appear, after those it read until before. `pressing`: this, and again when in vain.

        A Ctrl-C between the prompt's appearance and readline's wait for a key is seen by readline only with the next
        key: a person presses again, and so does this.
        """
        end = time.monotonic() + _GUARD_S
        pressed_at = float("-inf")
        while (found := self.seen.find(words.encode(), self._at)) < 0:
            now = time.monotonic()
            assert now < end, f"{words!r} did not appear in {self.seen[self._at :]!r}"
            if pressing and now - pressed_at > _AGAIN_S:
                pressed_at = now
                self.type(pressing)
            assert self._read(), f"the program ended without {words!r}: {self.seen!r}"
        self._at = found + len(words.encode())

    def _read(self) -> bool:
        """Takes what there is, waiting a moment; False when the program has ended."""
        if select.select([self._handle], [], [], 0.1)[0]:
            try:
                self.seen += os.read(self._handle, 65536)
            except OSError:
                return False
        return True

    def type(self, text: str) -> None:
        """Types; `\\x03` is Ctrl-C. Into the void when the program has ended."""
        with contextlib.suppress(OSError):
            os.write(self._handle, text.encode())

    def end(self, *, pressing: str = "") -> int:
        """Waits for the end; returns the exit code."""
        end, pressed_at = time.monotonic() + _GUARD_S, float("-inf")
        while True:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                os.close(self._handle)
                return os.waitstatus_to_exitcode(status)
            now = time.monotonic()
            if now > end:
                os.kill(self.pid, signal.SIGKILL)
                raise AssertionError("the program did not end")
            if pressing and now - pressed_at > _AGAIN_S:
                pressed_at = now
                self.type(pressing)
            self._read()


def test_a_conversation_survives_a_cancelled_turn(simulator: Simulator, tmp_path: Path) -> None:
    """Ctrl-C ends the turn, not the talk; the commands answer; two more leave with 130."""
    screen = _Terminal(_command(simulator, "--session", "talk"))
    screen.read_until("› ")
    screen.type("/save\n")
    screen.read_until("No turn has ended yet")
    screen.type("/sav\n")
    screen.read_until("There is no /sav")
    screen.read_until("› ")
    screen.type('@sim {"fault": "hang"}\n')
    simulator.wait_for(timeout_s=_GUARD_S, in_flight=1)

    screen.type("\x03")

    screen.read_until("cancelled")
    screen.read_until("› ")
    screen.type("hello\n")
    screen.read_until("answered")
    screen.read_until("› ")
    screen.type("/limits\n")
    screen.read_until("turn_timeout")
    screen.type("/budget\n")
    screen.read_until("session")
    screen.type("/report\n")
    screen.read_until("agentao-gov/turn-report/1")
    screen.type(f"/save {tmp_path}/talk.md\n")
    screen.read_until("saved 2 turns")
    screen.read_until("› ")
    screen.read_until("Ctrl-C again", pressing="\x03")
    assert screen.end(pressing="\x03") == 130
    assert "## hello" in (tmp_path / "talk.md").read_text()


def test_pasted_lines_are_one_turn(simulator: Simulator) -> None:
    """A pasted traceback would else be as many turns as it has lines, each paid for."""
    screen = _Terminal(_command(simulator))
    screen.read_until("› ")

    screen.type("\x1b[200~one\ntwo\nthree\x1b[201~\n")

    screen.read_until("answered")
    screen.read_until("› ")
    screen.type("/quit\n")
    assert screen.end() == 0
    assert simulator.truth().total.calls == 1


def test_what_was_typed_before_a_question_is_no_answer_to_it(simulator: Simulator, tmp_path: Path) -> None:
    """A `y` meant for something else must not let a command run."""
    call = {"name": "run_shell_command", "args": {"command": "touch yes && rm yes"}, "rounds": 1}
    prompt = f"x\n@sim {json.dumps({'tool': call, 'hold': 'gate'})}"
    screen = _Terminal(
        _command(simulator, "-p", "code", "--set", "tools.sandbox=off", "-v", "--workdir", str(tmp_path), prompt)
    )
    simulator.wait_for(timeout_s=_GUARD_S, held=1)

    screen.type("y\n")
    simulator.release("gate", stay_open=True)

    screen.read_until("Allow it?")
    screen.type("n\n")
    screen.read_until("tool run_shell_command: denied")
    assert screen.end() == 0


def test_a_dumb_terminal_gets_no_escape_codes(simulator: Simulator) -> None:
    """It would show them as they are, an editor's shell window for one."""
    screen = _Terminal(_command(simulator), kind="dumb")
    screen.read_until("› ")
    screen.type("hello\n")
    screen.read_until("answered")
    screen.read_until("› ")

    screen.type("/quit\n")

    assert screen.end() == 0
    assert b"\x1b" not in screen.seen


def test_ctrl_c_with_something_typed_only_clears_the_line(simulator: Simulator) -> None:
    """Twice in a row on a line with words stays; on an empty line it leaves, and says how to go on."""
    screen = _Terminal(_command(simulator, "--session", "talk"))
    screen.read_until("› ")
    for word in ("abc", "def"):
        screen.type(word)
        screen.read_until(word)
        screen.read_until("Ctrl-C again", pressing="\x03")
        screen.read_until("› ")

    assert screen.end(pressing="\x03") == 130
    assert b"--session talk" in screen.seen


def test_a_conversation_streams_and_ends_with_quit(simulator: Simulator) -> None:
    """The text is on the screen beside the status line while the model still has more to say."""
    simulator.configure({"default": {"text": "alpha beta gamma delta", "fault": {"kind": "stall", "after": 2}}})
    screen = _Terminal(_command(simulator))
    screen.read_until("› ")

    screen.type("go\n")

    screen.read_until("alpha")
    screen.read_until("of 100,000 tokens")
    screen.type("\x03")
    screen.read_until("cancelled")
    screen.read_until("› ")
    screen.type("/quit\n")
    assert screen.end() == 0
