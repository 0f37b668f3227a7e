"""A control group (v2) per session process, where this process may make groups below its own.

The kernel then keeps what no process can: membership survives any daemonising and any emptied environment, one write
kills the whole group, and with a delegated memory controller the limit holds without looking. Where it is not allowed,
which is the rule without delegation, everything else works as before.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import itertools
import os
import time
from dataclasses import dataclass
from pathlib import Path

from agentao_gov.process import procfs
from agentao_gov.process.oslimits import OsLimits

__all__ = ["SessionCgroup", "groups_can_be_made", "own_cgroup", "sweep_cgroups"]

_PREFIX = "agentao-gov"
_numbers = itertools.count(1)
#: Above what the warden allows: it names the limit, the kernel only stops what outruns the warden.
_PIDS_MARGIN = 32
_REMOVE_S = 1.0


def own_cgroup() -> Path | None:
    """The directory of this process's own group in the v2 hierarchy; None where there is none."""
    with contextlib.suppress(OSError, IndexError):
        lines = Path("/proc/self/cgroup").read_text().splitlines()
        mounts = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
        own = next((line[3:] for line in lines if line.startswith("0::")), None)
        root = next((fields[1] for fields in mounts if fields[2] == "cgroup2"), None)
        if own is not None and root is not None and (here := Path(root + own.rstrip("/"))).is_dir():
            return here
    return None


@functools.cache
def groups_can_be_made(here: Path) -> bool:
    """Tries to make a group that can be killed, and takes it away again."""
    probe = here / f"{_PREFIX}-probe-{os.getpid()}"
    try:
        probe.mkdir()
        killable = (probe / "cgroup.kill").exists()
        probe.rmdir()
    except OSError:
        return False
    return killable


@dataclass(frozen=True, slots=True)
class SessionCgroup:
    """One session's group."""

    path: Path
    #: What the kernel enforces here; 0: the memory controller is not delegated.
    memory_bytes: int

    @classmethod
    def create(cls, limits: OsLimits) -> SessionCgroup | None:
        """A new group below our own, with the limits its controllers allow; None where that is not to be had."""
        here = own_cgroup()
        if here is None or not groups_can_be_made(here):
            return None
        path = here / f"{_PREFIX}-{_me()}-{next(_numbers)}"
        try:
            path.mkdir()
        except OSError:
            return None
        memory, processes = limits.tree_limits()
        for controller in ("memory", "pids"):
            with contextlib.suppress(OSError):
                # Refused where it is not delegated, and while processes live directly in our own group: then the
                # warden alone looks. Each by itself: the kernel takes all of one write or nothing.
                (here / "cgroup.subtree_control").write_text(f"+{controller}")
        held = False
        if memory:
            with contextlib.suppress(OSError):
                (path / "memory.max").write_text(str(memory))
                (path / "memory.oom.group").write_text("1")
                held = True
        if processes:
            with contextlib.suppress(OSError):
                (path / "pids.max").write_text(str(processes + _PIDS_MARGIN))
        return cls(path, memory if held else 0)

    def struck(self) -> str | None:
        """What the kernel ended the group for, in the warden's words: `NAME OBSERVED ALLOWED`."""
        with contextlib.suppress(OSError, ValueError):
            events = dict(line.split() for line in (self.path / "memory.events").read_text().splitlines())
            if self.memory_bytes and int(events.get("oom_kill", "0")) > 0:
                peak = int((self.path / "memory.peak").read_text())
                return f"session_memory {max(peak, self.memory_bytes)} {self.memory_bytes}"
        return None

    def members(self) -> list[int]:
        """Who is in it."""
        with contextlib.suppress(OSError):
            return [int(pid) for pid in (self.path / "cgroup.procs").read_text().split()]
        return []

    def end(self) -> bool:
        """Kills whoever is left and removes the group. False if somebody cannot be killed."""
        with contextlib.suppress(OSError):
            (self.path / "cgroup.kill").write_text("1")
        until = time.monotonic() + _REMOVE_S
        while True:
            try:
                self.path.rmdir()
            except OSError as error:
                if error.errno == errno.ENOENT:
                    return True
                if time.monotonic() >= until:
                    return False
                time.sleep(0.002)  # the dead leave their group a moment after the kill
            else:
                return True


def _me() -> str:
    stat = procfs.read_stat(os.getpid())
    assert stat is not None
    return f"{stat.ref.pid}-{stat.ref.start}"


def sweep_cgroups() -> int:
    """Ends groups whose owner is dead; returns how many processes were in them."""
    here = own_cgroup()
    if here is None:
        return 0
    found = 0
    for path in here.glob(f"{_PREFIX}-*-*-*"):
        pid, start = path.name.removeprefix(f"{_PREFIX}-").split("-")[:2]
        if not (pid.isdigit() and start.isdigit()) or procfs.alive(procfs.ProcessRef(int(pid), int(start))):
            continue
        group = SessionCgroup(path, 0)
        found += len(group.members())
        group.end()
    return found
