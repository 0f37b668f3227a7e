"""The operating system's limits of one session process, its control group, and how each is named when it strikes."""

from __future__ import annotations

import contextlib
import errno
import functools
import itertools
import math
import os
import resource
import signal
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from agentao_gov.process import procfs
from agentao_gov.process.owner import Owner

_PREFIX = "agentao-gov"
_numbers = itertools.count(1)
#: Above what the warden allows: it names the limit, the kernel only stops what outruns the warden.
_PIDS_MARGIN = 32
#: How long a killed group may take until it is empty.
_REMOVE_S = 1.0
#: The limits of this process, once it is a session's own; set before its first session.
_applied: OsLimits | None = None


@dataclass(frozen=True, slots=True)
class OsLimits:
    """Limits of a session's whole tree (memory, processes: the warden looks) and of each process in it (the rest).

    RLIMIT_NPROC is not used: it counts per user id, so one session's processes would count against another's.
    RLIMIT_AS is not used: threads and arenas reserve address space they never touch. What counts is memory in use.
    """

    #: Proportional memory of the session's processes together; None: unlimited.
    memory_bytes: int | None = None
    #: Processes below the session at once. A test suite or a build runs some dozens.
    processes: int | None = 256
    #: Processor seconds of each process over its life; None: turns are limited by their deadline anyway.
    cpu_s: float | None = None
    #: Open files of each process.
    files: int | None = 1024
    #: Largest file any process may write.
    file_bytes: int | None = 1 << 30

    def to_wire(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)

    @classmethod
    def from_wire(cls, data: dict[str, Any]) -> OsLimits:
        """Back from JSON."""
        return cls(**data)

    def tree_limits(self) -> tuple[int, int]:
        """What the warden looks after: memory in bytes, processes; 0 is off."""
        return self.memory_bytes or 0, self.processes or 0

    def apply(self) -> None:
        """Takes on the per-process limits; everything this process starts inherits them."""
        global _applied
        _applied = self
        wanted = {
            resource.RLIMIT_CPU: None if self.cpu_s is None else math.ceil(self.cpu_s),
            resource.RLIMIT_NOFILE: self.files,
            resource.RLIMIT_FSIZE: self.file_bytes,
            resource.RLIMIT_CORE: 0,
            # More than the machine has can never be right: fails at once instead of swapping the host.
            resource.RLIMIT_DATA: os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        }
        for which, value in wanted.items():
            if value is None:
                continue
            hard = resource.getrlimit(which)[1]
            allowed = value if hard == resource.RLIM_INFINITY else min(value, hard)
            if which == resource.RLIMIT_CPU:
                # The hard limit kills without a word; a second earlier the soft one sends the signal that names it.
                resource.setrlimit(which, (allowed, allowed + 1 if hard == resource.RLIM_INFINITY else hard))
                continue
            resource.setrlimit(which, (allowed, allowed))
        try:
            # Under memory pressure the kernel takes a session process, never the service.
            with open("/proc/self/oom_score_adj", "w") as file:  # noqa: PTH123
                file.write("800")
        except OSError:
            pass

    def explain_exit(self, code: int, struck: str | None) -> str | None:
        """A sentence naming the limit that ended the process, if one did.

        `code` is negative for a signal; `struck` is the warden's own line, `NAME OBSERVED ALLOWED`.
        """
        if struck is not None:
            name, observed, allowed = struck.split()
            if name == "session_memory":
                used, cap = int(observed) >> 20, int(allowed) >> 20
                return f"The session used {used} MiB, over [pool] session_memory = {cap} MiB."
            return f"The session ran {observed} processes, over [pool] {name} = {allowed}."
        if code == -signal.SIGXCPU:
            return f"The session process used its processor time, [pool] session_cpu = {self.cpu_s:g}s."
        if code == -signal.SIGXFSZ:
            return f"The session process wrote a file over [pool] session_file_size = {self.file_bytes}."
        return None


def explain_tool_exit(code: int, said: bytes) -> str | None:
    """A sentence naming the limit that ended a tool's process in a session process, if one did.

    `code` is negative for a signal, or a shell's 128 and more; `said` is what it wrote: many programs meet a limit as
    an error of theirs. Elsewhere there are no such limits, and a user's own `ulimit` is not ours to name.
    """
    if _applied is None or code == 0:
        return None
    cpu_s, size, files = _applied.cpu_s, _applied.file_bytes, _applied.files
    signum = -code if code < 0 else code - 128
    if cpu_s is not None and signum == signal.SIGXCPU:
        return f"The command used its processor time, [pool] session_cpu = {cpu_s:g}s."
    if size is not None and (signum == signal.SIGXFSZ or os.strerror(errno.EFBIG).encode() in said):
        return f"The command wrote a file over [pool] session_file_size = {size}."
    if files is not None and os.strerror(errno.EMFILE).encode() in said:
        return f"The command had more open files than [pool] session_files = {files}."
    return None


def explain_start_failure(error: OSError) -> OSError:
    """The same error, with the limit named where the session process itself had no descriptor left for a command."""
    if _applied is None or _applied.files is None or error.errno != errno.EMFILE:
        return error
    return OSError(error.errno, f"{error.strerror}, [pool] session_files = {_applied.files}")


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
    """A control group (v2) of one session process, where this process may make groups below its own.

    The kernel then keeps what no process can: membership survives any daemonising and any emptied environment, one
    write kills the whole group, and with a delegated memory controller the limit holds without looking. Where it is
    not allowed, which is the rule without delegation, everything else works as before.
    """

    path: Path
    #: What the kernel enforces here; 0: the memory controller is not delegated.
    memory_bytes: int

    @classmethod
    def create(cls, limits: OsLimits) -> SessionCgroup | None:
        """A new group below our own, with the limits its controllers allow; None where that is not to be had."""
        here = own_cgroup()
        if here is None or not groups_can_be_made(here):
            return None
        me = Owner.me()
        path = here / f"{_names()}{me.pid}-{me.started}-{next(_numbers)}"
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
        """Lists the pids in the group."""
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


def _names() -> str:
    """How the names of all groups begin whose owners this process can judge.

    A container that shares our control group has pids of its own. No group outlives the boot.
    """
    return f"{_PREFIX}-{Owner.me().pid_namespace.strip('pid:[]')}-"


def sweep_cgroups() -> int:
    """Ends groups whose owner is dead; returns how many processes were in them."""
    here = own_cgroup()
    if here is None:
        return 0
    found, names = 0, _names()
    for path in here.glob(f"{names}*-*-*"):
        pid, started = path.name.removeprefix(names).split("-")[:2]
        if not (pid.isdigit() and started.isdigit()) or procfs.alive(procfs.ProcessRef(int(pid), int(started))):
            continue
        group = SessionCgroup(path, 0)
        found += len(group.members())
        group.end()
    return found
