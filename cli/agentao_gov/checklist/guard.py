"""Starts programs that must not survive the checklist, however it ends: each below a warden whose lifeline it holds."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

import psutil

from agentao_gov.process import warden

__all__ = ["Guarded", "children_of", "tree_bytes"]

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
