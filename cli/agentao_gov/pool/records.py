"""The core's own records: a session in memory, a turn that waits, a lease. Owned by `PoolCore`, touched by it alone."""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections import Counter, OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Literal

from agentao_gov.governor.types import SessionKey
from agentao_gov.pool.limits import PoolLimits
from agentao_gov.pool.types import CloseReason, SessionState


@dataclass(slots=True, eq=False)
class Waiter:
    """A turn that has no place yet."""

    #: Arrival order over the whole pool; never used twice.
    id: int
    key: SessionKey
    user: str
    arrived_at: float
    #: When its caller stops caring; infinity: never.
    deadline_at: float
    #: The session closes after this turn.
    once: bool
    leak_after_s: float
    #: How long it waits for its session's opening.
    open_s: float
    #: How long the MCP servers may need that start when it opens its session.
    servers_s: float
    #: When it has waited long enough for a place; the opening of its own session does not count.
    wait_by: float
    #: The queue it stands in as the head of its session; None: it waits behind others, or for its opening.
    queue: FairQueue | None = None


@dataclass(slots=True, eq=False)
class Lease:
    """The right to run one turn on one session."""

    #: Never used twice, so that a release with an old lease cannot free somebody else's turn.
    id: int
    entry: Entry
    waiter: Waiter
    granted_at: float
    #: From when on it is held longer than a turn can last.
    leak_at: float = field(init=False)
    #: The leak has been told; told once more when the lease comes back.
    reported: bool = False

    def __post_init__(self) -> None:
        self.leak_at = self.granted_at + self.waiter.leak_after_s


@dataclass(slots=True, eq=False)
class Entry:
    """One session the core knows: in memory, or with somebody waiting for it."""

    key: SessionKey
    #: Whoever opened it; their cap counts it.
    user: str
    #: The caps it counts against: user, tenant, pool.
    groups: tuple[Group, ...]
    state: SessionState = SessionState.GONE
    #: Turns for this session, oldest first.
    waiters: list[Waiter] = field(default_factory=list)
    #: Set while busy or stuck.
    lease: Lease | None = None
    idle_since: float = 0.0
    #: It closes when its one turn is over, or when nobody waits for that any more.
    once: bool = False
    #: It has had a turn since it was opened.
    spent: bool = False
    #: Why it must close as soon as nobody uses it; None: it may stay.
    doomed: CloseReason | None = None
    close_reason: CloseReason | None = None
    closing_since: float = 0.0
    #: While opening: since when, and when it counts as hung.
    opening_since: float = 0.0
    open_by: float = 0.0
    #: Its opening hung: whatever comes of it is closed at once.
    overdue: bool = False
    #: Its archive could not be written: not to be evicted before this time.
    pinned_until: float = 0.0

    @property
    def is_deleted(self) -> bool:
        """Whether it only waits to be removed."""
        return CloseReason.DELETED in (self.doomed, self.close_reason)


@dataclass(slots=True)
class Counters:
    """What the core has counted since the start, and how long turns have lasted lately. Read under the shell's lock."""

    grants: int = 0
    openings: int = 0
    opening_failures: int = 0
    evictions: Counter[str] = field(default_factory=Counter)
    refusals: Counter[str] = field(default_factory=Counter)
    ghost_hits: int = 0
    abandoned: int = 0
    leaks: int = 0
    #: Moving average of a lease's length; one second until a turn has been seen.
    turn_s: float = 1.0

    def turn_lasted(self, seconds: float) -> None:
        """Folds one lease into the average; a twentieth, so that a single long turn does not frighten clients away."""
        self.turn_s += (seconds - self.turn_s) / 20

    def retry_after_s(self, waiting: int, places: int) -> float:
        """When a place is likely: the time the present queue needs, at least a second, at most a minute."""
        return float(min(60, max(1, math.ceil(self.turn_s * (waiting + 1) / max(1, places)))))


_by_id = attrgetter("id")


class FairQueue:
    """Waiters of many tenants, served round-robin between tenants and first come first served within one.

    Sorted lists instead of heaps: a waiter leaves in the middle when its client goes away, and leaves nothing behind.
    """

    __slots__ = ("_ring",)

    def __init__(self) -> None:
        #: Tenants with at least one waiter, the next to be served first; each list is sorted by arrival.
        self._ring: OrderedDict[str, list[Waiter]] = OrderedDict()

    def __len__(self) -> int:
        return sum(map(len, self._ring.values()))

    def __bool__(self) -> bool:
        return bool(self._ring)

    def __iter__(self) -> Iterator[Waiter]:
        for waiters in self._ring.values():
            yield from waiters

    def push(self, waiter: Waiter) -> None:
        """Adds a waiter at the place its arrival gives it among its tenant's."""
        waiters = self._ring.get(waiter.key.tenant)
        if waiters is None:
            self._ring[waiter.key.tenant] = [waiter]
        elif waiters[-1].id < waiter.id:
            waiters.append(waiter)
        else:
            # A session that was locked becomes ready late: its waiter may be older than those already here.
            insort(waiters, waiter, key=_by_id)

    def pop(self) -> Waiter:
        """Takes the oldest waiter of the next tenant, and puts that tenant at the end of the ring."""
        tenant, waiters = next(iter(self._ring.items()))
        waiter = waiters.pop(0)
        if waiters:
            self._ring.move_to_end(tenant)
        else:
            del self._ring[tenant]
        return waiter

    def newest(self) -> Waiter:
        """The waiter that came last."""
        return max((waiters[-1] for waiters in self._ring.values()), key=_by_id)

    def remove(self, waiter: Waiter) -> None:
        """Takes out one waiter, wherever it stands."""
        waiters = self._ring[waiter.key.tenant]
        index = bisect_left(waiters, waiter.id, key=_by_id)
        if waiters[index] is not waiter:
            raise LookupError(waiter.id)
        del waiters[index]
        if not waiters:
            del self._ring[waiter.key.tenant]


GroupKind = Literal["pool", "tenant", "user"]

UNLIMITED = float("inf")


@dataclass(slots=True, eq=False)
class Group:
    """A cap on sessions in memory, of the pool, a tenant or a user: who counts, who is idle, who waits for room."""

    kind: GroupKind
    id: tuple[str, ...]
    #: Sessions in memory at once; infinity: unlimited.
    cap: float
    #: Entries that count here, in memory or waiting; at none the group is forgotten.
    members: int = 0
    #: Opening, idle, busy, closing and stuck ones.
    resident: int = 0
    #: The part of `resident` whose turn, or opening, never came back.
    stuck: int = 0
    #: The part of `resident` whose close has been ordered and will soon return.
    closing: int = 0
    #: Sessions that may be evicted, the longest idle first. One with a turn waiting for it is not among them.
    idle: OrderedDict[Entry, None] = field(default_factory=OrderedDict)
    #: Turns whose session needs room in this group.
    parked: FairQueue = field(default_factory=FairQueue)

    @property
    def has_room(self) -> bool:
        """Whether one more session may be opened."""
        return self.resident < self.cap

    def shortage(self) -> int:
        """How many sessions must go, beyond those already closing, to give room to everyone parked here."""
        if self.cap == UNLIMITED:
            return 0
        return int(self.resident - self.cap) + len(self.parked) - self.closing


# An enum's member costs 0.15 µs a look-up in Python 3.11, and these lie on the way of every turn.
_CLOSING = SessionState.CLOSING
_GONE = SessionState.GONE
_IDLE = SessionState.IDLE
_OPENING = SessionState.OPENING
_STUCK = SessionState.STUCK

_ABSENT = object()


class SessionTable:
    """The sessions the core knows and the groups they count in, right through every change of state.

    Every method is O(1) in the number of sessions.
    """

    def __init__(self, limits: PoolLimits) -> None:
        self.entries: dict[SessionKey, Entry] = {}
        #: How many entries are in each state.
        self.count: Counter[SessionState] = Counter()
        #: Sessions whose close has been ordered and may still be counted on, the oldest first.
        self.closing: dict[Entry, None] = {}
        self.pool = Group("pool", (), limits.max_sessions)
        #: Tenants and users with at least one entry.
        self._groups: dict[tuple[str, ...], Group] = {}
        self._limits = limits

    def groups(self) -> Iterator[Group]:
        """Every group there is now."""
        yield self.pool
        yield from self._groups.values()

    def tenants(self) -> Iterator[Group]:
        """The groups of the tenants."""
        return (group for group in self._groups.values() if group.kind == "tenant")

    def stuck_of(self, tenant: str) -> int:
        """How many sessions of a tenant are stuck."""
        group = self._groups.get((tenant,))
        return group.stuck if group is not None else 0

    def recap(self, limits: PoolLimits) -> None:
        """Takes over new caps."""
        self._limits = limits
        self.pool.cap = limits.max_sessions
        for group in self._groups.values():
            group.cap = self._cap(group.id)

    def room_for(self, key: SessionKey, user: str) -> bool:
        """Whether a session that is not known yet could be opened at once."""
        if not self.pool.has_room:
            return False
        return all(
            group.has_room if (group := self._groups.get(id)) is not None else self._cap(id) > 0
            for id in ((key.tenant,), (key.tenant, user))
        )

    def add(self, key: SessionKey, user: str) -> Entry:
        """A new entry, not in memory yet."""
        groups = (self._group("user", key.tenant, user), self._group("tenant", key.tenant), self.pool)
        entry = self.entries[key] = Entry(key, user, groups)
        for group in groups:
            group.members += 1
        self.count[entry.state] += 1
        return entry

    def forget(self, entry: Entry) -> None:
        """Drops an entry that is not in memory and that nobody waits for."""
        del self.entries[entry.key]
        self.count[entry.state] -= 1
        for group in entry.groups:
            group.members -= 1
            if not group.members and group is not self.pool:
                del self._groups[group.id]

    def move(self, entry: Entry, state: SessionState) -> None:
        """Changes an entry's state and what is counted by state."""
        self.count[entry.state] -= 1
        if _STUCK in (entry.state, state):
            for group in entry.groups:
                group.stuck += (state is _STUCK) - (entry.state is _STUCK)
        entry.state = state
        self.count[state] += 1

    def enter(self, entry: Entry) -> None:
        """The entry takes its slot in memory: its opening begins."""
        self.move(entry, _OPENING)
        for group in entry.groups:
            group.resident += 1

    def list_idle(self, entry: Entry) -> None:
        """The entry may be evicted from now on; it is the last that should be."""
        for group in entry.groups:
            group.idle[entry] = None

    def unlist_idle(self, entry: Entry) -> None:
        """The entry may not be evicted."""
        for group in entry.groups:
            group.idle.pop(entry, None)

    def begin_close(self, entry: Entry, reason: CloseReason, now: float) -> None:
        """Reserves the entry for its close."""
        self.unlist_idle(entry)
        self.move(entry, _CLOSING)
        entry.close_reason = reason
        entry.closing_since = now
        self.closing[entry] = None
        for group in entry.groups:
            group.closing += 1

    def undo_close(self, entry: Entry) -> None:
        """The close did not take place: the session is idle as before, and not listed."""
        self.give_up_close(entry)
        self.move(entry, _IDLE)
        entry.close_reason = None

    def give_up_close(self, entry: Entry) -> None:
        """Nobody counts on the entry's slot any more: its close has ended, or takes too long."""
        if self.closing.pop(entry, _ABSENT) is _ABSENT:
            return
        for group in entry.groups:
            group.closing -= 1

    def leave(self, entry: Entry) -> None:
        """The entry gives its slot back."""
        self.give_up_close(entry)
        for group in entry.groups:
            group.resident -= 1
        self.move(entry, _GONE)
        entry.close_reason = entry.doomed = None
        entry.once = entry.spent = entry.overdue = False

    def _group(self, kind: GroupKind, *id: str) -> Group:
        group = self._groups.get(id)
        if group is None:
            group = self._groups[id] = Group(kind, id, self._cap(id))
        return group

    def _cap(self, id: tuple[str, ...]) -> float:
        caps = self._limits.caps_of(id[0])
        cap = caps.sessions if len(id) == 1 else caps.sessions_per_user
        return UNLIMITED if cap is None else cap
