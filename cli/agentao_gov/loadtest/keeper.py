"""Cleans up after a load test that was killed: ends what it had started and removes its files.

A load test ends its processes itself, whatever its end. SIGKILL leaves it no chance, and the service it started lives
in a session of its own, so that a Ctrl-C at the terminal does not reach it. So a small process watches: it holds the
read end of a pipe whose write end only the load test has. End of file without the word before it means that the load
test is gone.

    python -I -S keeper.py FOLDER      (a pid a line on standard input; "done" when nothing is left to do)
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType

# Run as a program this file must not need the package: nothing but the standard library is imported.

__all__ = ["Keeper"]

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
