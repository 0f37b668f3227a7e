"""The few system calls of a warden that Python does not wrap."""

from __future__ import annotations

import ctypes
import os
import signal

__all__ = [
    "LIBC",
    "PR_SET_CHILD_SUBREAPER",
    "PR_SET_DUMPABLE",
    "die_with_parent",
    "join_cgroup",
    "name_process",
    "prctl",
]

LIBC = ctypes.CDLL(None, use_errno=True)
PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_NAME, PR_SET_CHILD_SUBREAPER = 1, 4, 15, 36


def prctl(option: int, value: int | bytes) -> bool:
    """One prctl call; False where the system refuses."""
    return bool(LIBC.prctl(option, value, 0, 0, 0) == 0)


def name_process(name: str) -> None:
    """The name `ps` shows, and the census reads."""
    prctl(PR_SET_NAME, name.encode()[:15])


def join_cgroup(cgroup: str) -> None:
    """Moves this process into a control group; one more layer, never a condition."""
    if cgroup:
        try:
            with open(f"{cgroup}/cgroup.procs", "w") as file:  # noqa: PTH123
                file.write("0")
        except OSError:
            pass


def die_with_parent(parent: int) -> None:
    """SIGKILL for this process when its parent's *thread* ends: only right in a fork of a single-threaded parent."""
    prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before the call
        os._exit(137)
