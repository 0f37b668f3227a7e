"""A process that its neighbours can tell alive or dead, across reused pids, reboots and namespaces of pids.

Whatever outlives a process names its owner in this way: a reservation in the ledger, the tag of a child process.
"""

from __future__ import annotations

import hashlib
import os
import secrets
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

from agentao_gov.clock import Clock
from agentao_gov.process import procfs
from agentao_gov.process.procfs import ProcessRef

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_PID_NAMESPACE = Path("/proc/self/ns/pid")


@dataclass(frozen=True, slots=True)
class Owner:
    """One process, or one of its openings of a ledger."""

    #: Random, tells two openings by one process apart; empty where the process itself is meant.
    id: str
    pid: int
    #: Start of the process in clock ticks since the boot: tells a reused pid.
    started: int
    boot: str
    #: The namespace in which `pid` means anything.
    pid_namespace: str

    @classmethod
    def me(cls) -> Owner:
        """This process."""
        stat = procfs.read_stat(os.getpid())
        assert stat is not None
        return cls("", stat.ref.pid, stat.ref.start, boot_id(), str(_PID_NAMESPACE.readlink()))

    @property
    def ref(self) -> ProcessRef:
        """The process within its boot and namespace."""
        return ProcessRef(self.pid, self.started)

    @property
    def here(self) -> bool:
        """Whether this process can judge the owner at all: same boot, same namespace of pids."""
        return self.boot == boot_id() and self.pid_namespace == str(_PID_NAMESPACE.readlink())

    @property
    def gone(self) -> bool:
        """Whether the owner's process is seen to have ended. False also where nobody here can tell."""
        return self.here and not procfs.alive(self.ref)


@cache
def boot_id() -> str:
    """Names this boot of the machine."""
    return _BOOT_ID.read_text().strip()


@cache
def host_token() -> str:
    """Names this boot and this namespace of pids to others, without saying which machine it is.

    Two processes with the same token see each other under the same pids.
    """
    return hashlib.sha256(f"{boot_id()} {_PID_NAMESPACE.readlink()}".encode()).hexdigest()[:16]


def this_process() -> Owner:
    """A new opening by the calling process."""
    me = Owner.me()
    return replace(me, id=f"{me.pid}-{secrets.token_hex(4)}")


class Liveness:
    """Decides which owners are dead: their process is gone, or they have been silent for a whole lease.

    Silence is measured on this process's own monotonic clock, from the first look at an unchanged heartbeat
    counter: no step of any wall clock can make a living owner look dead.
    """

    def __init__(self, here: Owner, lease_s: float, clock: Clock) -> None:
        """`here`: the opening that asks; `lease_s`: seconds of silence after which an owner counts as dead."""
        self._here = here
        self._clock = clock
        self._lease_s = lease_s
        #: Owner id → heartbeat counter and when it was first seen.
        self._seen: dict[str, tuple[int, float]] = {}

    def dead(self, owner: Owner, heartbeat: int) -> bool:
        """Whether what this owner holds may be resolved by someone else. `heartbeat`: the owner's counter now."""
        if owner.id == self._here.id:
            return False
        if owner.boot != self._here.boot or owner.gone:
            return True
        now_s = self._clock.monotonic()
        counter, since_s = self._seen.get(owner.id, (heartbeat, now_s))
        if counter != heartbeat:
            since_s = now_s
        self._seen[owner.id] = (heartbeat, since_s)
        return now_s - since_s >= self._lease_s

    def forget(self, owner_id: str) -> None:
        """Drops what was remembered of an owner that is resolved."""
        self._seen.pop(owner_id, None)
