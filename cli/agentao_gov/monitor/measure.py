"""Measures this process and its children from /proc: memory, also a session's, descriptors, threads, children."""

from __future__ import annotations

import math
import threading
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from agentao_gov.governor.types import SessionKey
from agentao_gov.pool.types import SessionInfo
from agentao_gov.process.census import KINDS, Census, Member, take_census


def quantile(values: Sequence[float], q: float) -> float:
    """The nearest-rank quantile; 0 of nothing."""
    if not values:
        return 0.0
    ordered = sorted(values)
    return ordered[max(0, math.ceil(q * len(ordered)) - 1)]


@dataclass(frozen=True, slots=True)
class Measurement:
    """What /proc said at `at` (monotonic seconds). Bytes."""

    at: float
    rss_bytes: int
    open_fds: int
    threads: int
    children: Mapping[str, int]
    children_rss_bytes: Mapping[str, int]
    cpu_s: float
    #: Memory of each resident session: its own process trees, and its share of what this process grew by.
    session_bytes: Mapping[SessionKey, int] = field(default_factory=dict)
    #: Its processes by kind: kinds it has none of are left out.
    session_processes: Mapping[SessionKey, Mapping[str, int]] = field(default_factory=dict)

    @property
    def total_bytes(self) -> int:
        """This process and all its children, resident."""
        return self.rss_bytes + sum(self.children_rss_bytes.values())

    @property
    def mcp_processes(self) -> int:
        """MCP servers and their helpers."""
        return self.children.get("mcp", 0)


class Measurer:
    """Takes measurements. Thread-safe; one takes a few milliseconds with dozens of children."""

    def __init__(self, not_ours: Collection[int] = ()) -> None:
        """`not_ours`: child processes that are no part of the service, like a local model."""
        self._me = psutil.Process()
        self._not_ours = frozenset(not_ours)
        self._lock = threading.Lock()
        #: What the process weighed before its first session; guarded by `_lock`.
        self._baseline_bytes = self._me.memory_info().rss

    @property
    def baseline_bytes(self) -> int:
        """What this process weighed without sessions."""
        with self._lock:
            return self._baseline_bytes

    def set_baseline(self) -> None:
        """Says that the process holds no session now: what it grows by from here on is the sessions'."""
        with self._lock:
            self._baseline_bytes = self._me.memory_info().rss

    def take(self, at: float, sessions: Iterable[SessionInfo] = ()) -> Measurement:
        """One measurement; `sessions` are the resident ones, with the process trees they own."""
        census = take_census()
        foreign = [size for pid in self._not_ours if (size := _rss(pid))]
        counts: dict[str, int] = {kind: census.counts.get(kind, 0) for kind in KINDS}
        sizes: dict[str, int] = {kind: census.rss_bytes.get(kind, 0) for kind in KINDS}
        counts["other"] = max(0, counts["other"] - len(foreign))
        sizes["other"] = max(0, sizes["other"] - sum(foreign))
        with self._me.oneshot():
            rss = self._me.memory_info().rss
            cpu = self._me.cpu_times()
        resident = list(sessions)
        return Measurement(
            at=at,
            rss_bytes=rss,
            open_fds=_open_fds(),
            threads=self._me.num_threads(),
            children=counts,
            children_rss_bytes=sizes,
            cpu_s=cpu.user + cpu.system,
            session_bytes=self._per_session(rss, resident, census),
            session_processes={
                info.key: Counter(member.kind for pid in info.process_ids for member in census.tree(pid))
                for info in resident
            },
        )

    def _per_session(self, rss_bytes: int, sessions: Sequence[SessionInfo], census: Census) -> dict[SessionKey, int]:
        """Trees are exact; in one address space nobody can tell whose a page is, so growth is shared out evenly."""
        in_process = sum(1 for info in sessions if info.mode != "subprocess")
        growth = max(0, rss_bytes - self.baseline_bytes)
        share = growth // in_process if in_process else 0
        shared_roots = _shared_roots(sessions)
        return {
            info.key: (0 if info.mode == "subprocess" else share)
            + sum(sum(map(_weight, census.tree(pid))) // shared_roots[pid] for pid in info.process_ids)
            for info in sessions
        }


def _shared_roots(sessions: Sequence[SessionInfo]) -> dict[int, int]:
    """How many sessions name each root: a shared MCP server is paid for by all who use it."""
    counts: dict[int, int] = {}
    for info in sessions:
        for pid in info.process_ids:
            counts[pid] = counts.get(pid, 0) + 1
    return counts


def _open_fds() -> int:
    """Descriptors of this process, without the one that lists them."""
    return sum(1 for _ in Path("/proc/self/fd").iterdir()) - 1


def _rss(pid: int) -> int:
    """Resident memory of one process; 0 once it is gone."""
    try:
        return int(psutil.Process(pid).memory_info().rss)
    except psutil.Error:
        return 0


def _weight(member: Member) -> int:
    """What a process adds: a fork's resident memory counts every page it shares, 120 MB of which 18 are its own."""
    if not member.forked:
        return member.rss_bytes
    try:
        return int(psutil.Process(member.pid).memory_full_info().pss)
    except psutil.Error:
        return 0
