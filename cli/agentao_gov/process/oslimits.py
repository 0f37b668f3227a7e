"""The operating system's limits of one session process, and how each is named when it strikes."""

from __future__ import annotations

import errno
import math
import os
import resource
import signal
from dataclasses import asdict, dataclass
from typing import Any

__all__ = ["OsLimits", "explain_start_failure", "explain_tool_exit"]


#: Those of this process, once it is a session's own; set before its first session.
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
            if which == resource.RLIMIT_CPU and allowed > 1:
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
