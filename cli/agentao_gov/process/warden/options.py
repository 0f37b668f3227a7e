"""What one warden is asked to do."""

from __future__ import annotations

__all__ = ["RESTART_EXIT", "Options"]

#: Ends with this code ask for a restart (EX_TEMPFAIL), e.g. when too many turns are stuck.
RESTART_EXIT = 75


class Options:
    """What one warden does. Zero and -1 mean off."""

    def __init__(
        self,
        *,
        lifeline: int = -1,
        status: int = -1,
        heartbeat: bool = False,
        stale_s: float = 30.0,
        dump_s: float = 2.0,
        restarts: int = 0,
        grace_s: float = 0.3,
        memory_bytes: int = 0,
        processes: int = 0,
        name: str = "gov-warden",
        leash: bool = True,
        cgroup: str = "",
    ) -> None:
        self.lifeline = lifeline
        self.status = status
        self.heartbeat = heartbeat
        self.stale_s = stale_s
        self.dump_s = dump_s
        self.restarts = restarts
        self.grace_s = grace_s
        self.memory_bytes = memory_bytes
        self.processes = processes
        self.name = name
        #: SIGKILL for the child when the warden dies. Not between the two of a pair: the inner one must live to kill.
        self.leash = leash
        #: Directory of a control group to live in, with everything below.
        self.cgroup = cgroup
        #: Descriptors only the child needs, closed in the warden after the fork.
        self.closes: tuple[int, ...] = ()
