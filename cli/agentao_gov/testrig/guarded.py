"""Starts programs that end with this process, however it ends: each below a warden whose lifeline is held here.

The lifeline is a pipe whose write end only this process has: an exception, Ctrl-C and SIGKILL all close it, and then
the warden kills everything below itself. Files go the same way: a private folder is removed by a small process that
waits for the end of its standard input.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO

import psutil

from agentao_gov.process import warden

#: From the lifeline's end to the last process's end; a warden kills within 50 ms on an idle machine.
END_S_MAX = 5.0
#: Removes a directory until it stays away: what is being killed meanwhile may write once more.
_REMOVER = """
import os, shutil, sys, time
sys.stdin.read()
for _ in range(50):
    shutil.rmtree(sys.argv[1], ignore_errors=True)
    if not os.path.exists(sys.argv[1]):
        break
    time.sleep(0.1)
"""


def children_of(pid: int) -> list[psutil.Process]:
    """Everything below a process, at any depth; empty once it is gone."""
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.Error:
        return []


def tree_bytes(pid: int) -> int:
    """Resident memory in bytes of a process and everything below it. Raises psutil.Error where it is gone."""
    process = psutil.Process(pid)
    total = int(process.memory_info().rss)
    for child in process.children(recursive=True):
        try:
            total += child.memory_info().rss
        except psutil.NoSuchProcess:
            continue
    return total


@contextlib.contextmanager
def private_folder(prefix: str) -> Iterator[Path]:
    """A directory of mode 700 that is gone after the block, and soon after this process where SIGKILL ends it.

    Args:
        prefix: of the directory's name, in the system's directory for temporary files. Raises OSError.
    """
    folder = Path(tempfile.mkdtemp(prefix=prefix))
    with subprocess.Popen(  # noqa: S603  our own interpreter and program
        [sys.executable, "-I", "-S", "-c", _REMOVER, str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    ):
        yield folder


class Guarded:
    """One running program below a warden, which passes signals on and ends with the program's exit code.

    Not thread-safe: `end` and `left_behind` belong to one thread at a time.
    """

    def __init__(
        self,
        argv: Sequence[str],
        *,
        cwd: Path,
        env: Mapping[str, str],
        output: IO[bytes] | None,
        stdin: int = subprocess.DEVNULL,
        stdout: int | IO[bytes] | None = None,
    ) -> None:
        """Starts the program.

        Args:
            argv: the program and its arguments.
            cwd: where it runs.
            env: its whole environment.
            output: takes its standard error, and its standard output unless `stdout` is given; None: this process's.
            stdin: as `subprocess.Popen` takes it.
            stdout: as `subprocess.Popen` takes it.

        Raises OSError where it cannot be started.
        """
        read_end, self._lifeline = os.pipe()
        self._status, status_end = os.pipe()
        guard = [sys.executable, "-I", "-S", warden.PROGRAM, "--lifeline", str(read_end), "--status", str(status_end)]
        # By another name than a service's own warden: below that one `serve` would start none.
        guard += ["--name", "gov-guard"]
        try:
            #: The warden.
            self.process = subprocess.Popen(  # noqa: S603 - the caller's own configuration
                [*guard, "--grace-s", "0", "--", *argv],
                cwd=cwd,
                env=env,
                stdin=stdin,
                stdout=output if stdout is None else stdout,
                stderr=output,
                pass_fds=(read_end, status_end),
                # A Ctrl-C at the terminal is for this process, which then ends the program in its own way.
                start_new_session=True,
            )
        except BaseException:
            os.close(self._lifeline)
            os.close(self._status)
            raise
        finally:
            os.close(read_end)
            os.close(status_end)
        #: What the warden has said so far.
        self._said = b""

    @property
    def pid(self) -> int:
        """The program's own pid; the warden's where the program could not even be forked. Blocks until it is known."""
        while b"\n" not in self._said and self._hear():
            pass
        word, _, number = self._said.partition(b"\n")[0].partition(b" ")
        return int(number) if word == b"pid" else self.process.pid

    @property
    def left_behind(self) -> int:
        """How many processes of the program outlived it and had to be killed. Blocks until the program has ended."""
        while self._hear():
            pass
        return sum(int(line.split()[1]) for line in self._said.splitlines() if line.startswith(b"killed "))

    def wait(self, timeout_s: float) -> int | None:
        """The exit code, or None when it still runs after so many seconds."""
        try:
            return self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return None

    def end(self) -> None:
        """Ends it and everything below it, at once. May be called again."""
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
        while self._hear():
            pass

    def _hear(self) -> bool:
        """Reads what the warden says next; False once it has said all."""
        if self._status < 0:
            return False
        heard = os.read(self._status, 512)
        self._said += heard
        if not heard:
            os.close(self._status)
            self._status = -1
        return bool(heard)
