"""Counts this process's children by kind, with their memory: what metrics, status and the capacity plan read."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import psutil

from agentao_gov.process import procfs
from agentao_gov.process.tags import KIND_VARIABLE, Kind

KINDS: tuple[Kind, ...] = ("mcp", "shell", "session", "other")
#: What our own processes call themselves: a forked one cannot show a variable set after its start. Only the process
#: that runs a session's agent counts as `session`; its warden, the zygote and the stock are `other`.
_OWN_NAMES: dict[str, Kind] = {
    "gov-session": "session",
    "gov-ready": "other",
    "gov-warden": "other",
    "gov-init": "other",
    "gov-zygote": "other",
    "gov-files": "other",
}
#: Those that share most of their pages with the zygote.
_FORKED = frozenset(_OWN_NAMES) - {"gov-files"}


@dataclass(frozen=True, slots=True)
class Member:
    """One child process. Bytes; `forked`: it shares most of its resident pages with the zygote."""

    pid: int
    ppid: int
    kind: Kind
    rss_bytes: int
    forked: bool


@dataclass(frozen=True, slots=True)
class Census:
    """Child processes now, by kind. Bytes; `pss` shares common pages out fairly and is 0 unless it was asked for."""

    counts: Mapping[Kind, int]
    rss_bytes: Mapping[Kind, int]
    pss_bytes: Mapping[Kind, int] = field(default_factory=dict)
    members: Mapping[int, Member] = field(default_factory=dict)

    def tree(self, root: int) -> Iterator[Member]:
        """A child process and all below it; nothing once it is gone."""
        children: dict[int, list[Member]] = {}
        for member in self.members.values():
            children.setdefault(member.ppid, []).append(member)
        frontier = [self.members[root]] if root in self.members else []
        while frontier:
            member = frontier.pop()
            yield member
            frontier += children.get(member.pid, ())

    @property
    def total(self) -> int:
        """All children."""
        return sum(self.counts.values())


def _kind(process: psutil.Process, inherited: Kind) -> Kind:
    """By its own name, else by its mark, else what its parent is."""
    stat = procfs.read_stat(process.pid)
    if stat is not None and stat.comm in _OWN_NAMES:
        return _OWN_NAMES[stat.comm]
    mark = procfs.environ_value(process.pid, KIND_VARIABLE.encode())
    for kind in KINDS:
        if mark == kind:
            return kind
    return inherited


def take_census(pid: int | None = None, *, pss: bool = False) -> Census:
    """Counts the descendants of `pid` (default: this process).

    `pss=True` reads proportional memory, some 0.3 ms a process and more for large ones; keep it out of hot paths.
    """
    counts: Counter[Kind] = Counter(dict.fromkeys(KINDS, 0))
    rss: Counter[Kind] = Counter(dict.fromkeys(KINDS, 0))
    shares: Counter[Kind] = Counter(dict.fromkeys(KINDS, 0))
    try:
        root = psutil.Process(os.getpid() if pid is None else pid)
        everyone = root.children(recursive=True)
    except psutil.Error:
        return Census(counts, rss, shares)
    kinds: dict[int, Kind] = {root.pid: "other"}
    members: dict[int, Member] = {}
    for process in everyone:  # parents come before their children
        try:
            parent = process.ppid()
            kind = kinds[process.pid] = _kind(process, kinds.get(parent, "other"))
            if process.status() == psutil.STATUS_ZOMBIE:
                continue
            resident = process.memory_info().rss
            share = process.memory_full_info().pss if pss else 0
            forked = process.name() in _FORKED
        except psutil.Error:
            continue
        counts[kind] += 1
        rss[kind] += resident
        shares[kind] += share
        members[process.pid] = Member(process.pid, parent, kind, resident, forked)
    return Census(counts, rss, shares, members)
