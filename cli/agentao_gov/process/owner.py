"""Who holds a reservation: a process that its neighbours can tell alive or dead, across reused pids and reboots."""

from __future__ import annotations

import os
import secrets
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import psutil

from agentao_gov.clock import Clock

__all__ = ["Liveness", "Owner", "boot_id", "gone", "this_process"]

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_PID_NAMESPACE = Path("/proc/self/ns/pid")


@dataclass(frozen=True, slots=True)
class Owner:
    """One opening of the ledger by one process."""

    #: Random: two openings by one process differ.
    id: str
    pid: int
    #: Start of the process, in hundredths of a second since the boot or the epoch: tells a reused pid.
    started: int
    boot: str
    #: Namespace in which `pid` means anything.
    pid_namespace: str


@cache
def boot_id() -> str:
    """Names this boot of the machine."""
    try:
        return _BOOT_ID.read_text().strip()
    except OSError:
        return f"boot-{int(psutil.boot_time())}"


def this_process() -> Owner:
    """A new owner for the calling process."""
    pid = os.getpid()
    try:
        namespace = str(_PID_NAMESPACE.readlink())
    except OSError:
        namespace = ""
    return Owner(f"{pid}-{secrets.token_hex(4)}", pid, _started(pid) or 0, boot_id(), namespace)


def gone(owner: Owner, here: Owner) -> bool:
    """Whether the owner's process is seen to have ended: only for one of this boot and this namespace of pids."""
    same = (owner.boot, owner.pid_namespace) == (here.boot, here.pid_namespace)
    return same and owner.id != here.id and _started(owner.pid) != owner.started


class Liveness:
    """Decides which owners are dead: their process is gone, or they have been silent for a whole lease.

    Silence is measured on this process's own monotonic clock, from the first look at an unchanged heartbeat
    counter: no step of any wall clock can make a living owner look dead.
    """

    def __init__(self, here: Owner, lease_s: float, clock: Clock) -> None:
        self._here = here
        self._clock = clock
        self._lease_s = lease_s
        #: Owner id → heartbeat counter and when it was first seen.
        self._seen: dict[str, tuple[int, float]] = {}

    def dead(self, owner: Owner, heartbeat: int) -> bool:
        """Whether what this owner holds may be resolved by someone else."""
        if owner.id == self._here.id:
            return False
        if owner.boot != self._here.boot:
            return True
        if gone(owner, self._here):
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


def _started(pid: int) -> int | None:
    """When the process started; None where it does not run (a zombie no longer does)."""
    try:
        process = psutil.Process(pid)
        with process.oneshot():
            if process.status() == psutil.STATUS_ZOMBIE:
                return None
            return int(process.create_time() * 100)
    except psutil.Error:
        return None
