"""Starts programs that must not survive the checklist, however it ends: each below a warden whose lifeline it holds."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO

import psutil

from agentao_gov.process import warden

__all__ = ["Guarded", "Keeper", "children_of", "tree_bytes"]


#: From the lifeline's end to the last process's end; a warden kills within 50 ms on an idle machine.
END_S_MAX = 5.0


def children_of(pid: int) -> list[psutil.Process]:
    """Everything below a process; empty once it is gone."""
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.Error:
        return []


def tree_bytes(pid: int) -> int:
    """Resident memory of a process and everything below it."""
    process = psutil.Process(pid)
    total = int(process.memory_info().rss)
    for child in process.children(recursive=True):
        try:
            total += child.memory_info().rss
        except psutil.NoSuchProcess:
            continue
    return total


class Guarded:
    """One running program. `process` is its warden, which passes signals on and ends with its code."""

    def __init__(
        self,
        argv: Sequence[str],
        *,
        cwd: Path,
        env: Mapping[str, str],
        output: IO[bytes],
        stdin: int = subprocess.DEVNULL,
        stdout: int | IO[bytes] | None = None,
    ) -> None:
        """Standard error, and standard output unless given, go to `output`. Raises OSError."""
        read_end, self._lifeline = os.pipe()
        guard = [sys.executable, "-I", "-S", warden.PROGRAM, "--lifeline", str(read_end), "--grace-s", "0", "--"]
        try:
            self.process = subprocess.Popen(  # noqa: S603 - the caller's own configuration
                [*guard, *argv],
                cwd=cwd,
                env=env,
                stdin=stdin,
                stdout=output if stdout is None else stdout,
                stderr=output,
                pass_fds=(read_end,),
                # A Ctrl-C at the terminal is for the checklist, which then ends this in its own way.
                start_new_session=True,
            )
        except BaseException:
            os.close(self._lifeline)
            raise
        finally:
            os.close(read_end)

    def wait(self, timeout_s: float) -> int | None:
        """The exit code, or None when it still runs after so long."""
        try:
            return self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return None

    def end(self) -> None:
        """Ends it and everything below it, at once. May be called again; not from two threads at a time."""
        lifeline, self._lifeline = self._lifeline, -1
        if lifeline >= 0:
            os.close(lifeline)
        if self.process.stdin is not None:
            with contextlib.suppress(OSError):
                self.process.stdin.close()
        if self.wait(END_S_MAX) is None:
            for child in children_of(self.process.pid):
                with contextlib.suppress(psutil.Error):
                    child.send_signal(signal.SIGKILL)
            self.process.kill()
            self.process.wait()


# Cleans up after a load test that was killed: ends what it had started and removes its files.
#
# A load test ends its processes itself, whatever its end. SIGKILL leaves it no chance, and the service it started lives
# in a session of its own, so that a Ctrl-C at the terminal does not reach it. So a small process watches: it holds the
# read end of a pipe whose write end only the load test has. End of file without the word before it means that the load
# test is gone.
#
#     python -I -S keeper.py FOLDER      (a pid a line on standard input; "done" when nothing is left to do)

# Run as a program this file must not need the package: nothing but the standard library is imported.


#: A service walks its ladder before it ends; what is still there afterwards is killed.
_STOP_S_MAX = 35.0
_KILL_S_MAX = 5.0
_POLL_S = 0.1


class Keeper:
    """The watching process, from the load test's side. Use as a context manager: leaving it means all is done."""

    def __init__(self, folder: Path) -> None:
        self._process = subprocess.Popen(  # noqa: S603  our own interpreter and file
            [sys.executable, "-I", "-S", __file__, str(folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def watch(self, pid: int) -> None:
        """This process has to end when the load test is gone."""
        self._tell(str(pid))

    def close(self) -> None:
        """Nothing is left to do."""
        self._tell("done")
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):
            self._process.stdin.close()
        self._process.wait()

    def _tell(self, line: str) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(OSError, ValueError):
            self._process.stdin.write(f"{line}\n".encode())
            self._process.stdin.flush()

    def __enter__(self) -> Keeper:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _identity(pid: int) -> tuple[int, str]:
    """A pid with its start: the kernel uses pids again. An empty start: it is gone, or a zombie."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return pid, ""
    return pid, "" if fields[0] in "ZX" else fields[19]


def _living(watched: Iterable[tuple[int, str]]) -> list[int]:
    return [pid for pid, start in watched if start and _identity(pid) == (pid, start)]


def _end(watched: list[tuple[int, str]]) -> None:
    """SIGTERM, time to end in order, then SIGKILL for the whole group."""
    for signum, wait_s in ((signal.SIGTERM, _STOP_S_MAX), (signal.SIGKILL, _KILL_S_MAX)):
        for pid in _living(watched):
            with contextlib.suppress(OSError):
                if signum == signal.SIGKILL:
                    os.killpg(pid, signum)
                else:
                    os.kill(pid, signum)
        deadline = time.monotonic() + wait_s
        while _living(watched) and time.monotonic() < deadline:
            time.sleep(_POLL_S)


def main(folder: Path) -> None:
    """The program: reads until the end of standard input."""
    watched: list[tuple[int, str]] = []
    for line in sys.stdin:
        if line.strip() == "done":
            return
        watched.append(_identity(int(line)))
    _end(watched)
    # The generator notices within a second that it is alone, and may still write.
    deadline = time.monotonic() + _KILL_S_MAX
    while folder.exists() and time.monotonic() < deadline:
        shutil.rmtree(folder, ignore_errors=True)
        time.sleep(_POLL_S)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
