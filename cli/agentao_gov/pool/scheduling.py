"""The mechanics under `PoolCore`'s events: who is next, who opens, who is evicted to make room, who is refused."""

from __future__ import annotations

import heapq
from collections import OrderedDict
from collections.abc import Iterator

from agentao_gov.governor.types import SessionKey
from agentao_gov.pool.counters import Counters
from agentao_gov.pool.effects import Close, Effect, Grant, Open, RefusalReason, Refuse
from agentao_gov.pool.entries import Entry, Lease, Waiter
from agentao_gov.pool.fairness import FairQueue
from agentao_gov.pool.groups import Group
from agentao_gov.pool.limits import PoolLimits
from agentao_gov.pool.table import SessionTable
from agentao_gov.pool.types import EVICTIONS, CloseReason, SessionState

__all__ = ["Scheduler"]

# An enum's member costs 0.15 µs a look-up in Python 3.11, and these lie on the way of every turn.
_BUSY = SessionState.BUSY
_GONE = SessionState.GONE
_IDLE = SessionState.IDLE
_OPENING = SessionState.OPENING
_STUCK = SessionState.STUCK


class Scheduler:
    """State and private steps of the core. Every change ends in `_schedule`, which hands out all that is free."""

    def __init__(self, limits: PoolLimits) -> None:
        self.limits = limits
        self.counters = Counters()
        self.draining = False
        self.table = SessionTable(limits)
        #: Turns running, and stuck ones: each holds a thread.
        self.busy = 0
        #: Openings under way that hold one of the `max_opening` places, the oldest first.
        self.openings: dict[Entry, None] = {}
        #: Those that take so long that they gave their place away.
        self.slow_openings: dict[Entry, None] = {}
        #: Every turn without a place, by id.
        self.waiters: dict[int, Waiter] = {}
        #: The same turns by tenant, oldest first.
        self._waiting_of: dict[str, dict[int, Waiter]] = {}
        #: Leases that are out, by id, oldest first.
        self.leases: dict[int, Lease] = {}
        #: Heads of idle sessions: they need a place to run.
        self._ready = FairQueue()
        #: Heads of sessions not in memory: they need a place to open.
        self._cold = FairQueue()
        #: Groups with parked turns, or over their cap after a resize.
        self._crowded: dict[Group, None] = {}
        #: Idle sessions whose archive could not be written: left alone for a while.
        self._pinned: dict[Entry, None] = {}
        #: (deadline, waiter id); may hold ids that are long gone.
        self._deadlines: list[tuple[float, int]] = []
        #: When sessions were evicted, oldest first; bounded by the window and by `ghost_limit`.
        self._evicted: OrderedDict[SessionKey, float] = OrderedDict()
        self._pressure = False
        self._ids = 0
        #: The latest time seen: threads read the clock before they take the lock, so their times may cross.
        self._now = float("-inf")

    @property
    def queue_length(self) -> int:
        """Turns that wait for a place; one whose session is being opened, with a place free for it, has got its own."""
        places = max(0, self.limits.max_busy - self.busy)
        return max(0, len(self.waiters) - min(len(self.openings) + len(self.slow_openings), places))

    def waiting_by_tenant(self) -> dict[str, int]:
        """How many turns of each tenant have no place."""
        return {tenant: len(waiters) for tenant, waiters in self._waiting_of.items()}

    def _advance(self, now: float) -> float:
        self._now = max(now, self._now)
        return self._now

    # -- the queue -------------------------------------------------------------------------------------------------

    def _admit(self, waiter: Waiter, entry: Entry | None, out: list[Effect]) -> bool:
        """Whether there is room in the waiting room, or no need of it.

        When it is full the tenant with the longest queue gives up its newest turn to one with a shorter queue:
        otherwise a flood by one tenant would fill the room and every other tenant would be refused.
        """
        if self.queue_length < self.limits.queue_limit or self._servable(entry, waiter):
            return True
        tenant = waiter.key.tenant
        if self._waiting_of:
            longest = max(self._waiting_of, key=lambda name: len(self._waiting_of[name]))
            if len(self._waiting_of[longest]) > len(self._waiting_of.get(tenant, ())) + 1:
                victim = next(reversed(self._waiting_of[longest].values()))
                self._remove(victim, out)
                self._refuse(victim, "queue_full", out)
                return True
        self._refuse(waiter, "queue_full", out)
        return False

    def _is_free(self, entry: Entry) -> bool:
        """Whether a turn can begin on the session in this moment without overtaking anybody."""
        return entry.state is _IDLE and not entry.waiters and self.busy < self.limits.max_busy and not self._ready

    def _servable(self, entry: Entry | None, waiter: Waiter) -> bool:
        """Whether the turn would get its place at once, or after its opening."""
        if entry is not None:
            return self._is_free(entry)
        if len(self.openings) >= self.limits.max_opening or self._cold or self._crowded or self._ready:
            return False
        if self.busy + len(self.openings) + len(self.slow_openings) >= self.limits.max_busy:
            return False
        return self.table.room_for(waiter.key, waiter.user)

    def _enqueue(self, waiter: Waiter, entry: Entry) -> None:
        self.waiters[waiter.id] = waiter
        self._waiting_of.setdefault(waiter.key.tenant, {})[waiter.id] = waiter
        entry.waiters.append(waiter)
        if len(entry.waiters) == 1:
            self._line_up(waiter, entry)

    def _enqueue_first(self, waiter: Waiter, entry: Entry) -> None:
        """Puts a waiter back to where it stood before its grant. The session is on its way out: nobody is lined up."""
        self.waiters[waiter.id] = waiter
        self._waiting_of.setdefault(waiter.key.tenant, {})[waiter.id] = waiter
        entry.waiters.insert(0, waiter)
        self._remind(waiter, waiter.wait_by)

    def _line_up(self, head: Waiter, entry: Entry) -> None:
        """Puts the head of a session into the queue that its session's state calls for."""
        if entry.state is _IDLE:
            self.table.unlist_idle(entry)
            self._ready.push(head)
            head.queue = self._ready
        elif entry.state is _GONE:
            self._cold.push(head)
            head.queue = self._cold
        elif entry.state is _OPENING:
            self._remind(head, _ready_by(head, entry))

    def _take(self, waiter: Waiter, entry: Entry) -> None:
        """Takes a waiter out of every list it stands in."""
        if waiter.queue is not None:
            waiter.queue.remove(waiter)
            waiter.queue = None
        entry.waiters.remove(waiter)
        del self.waiters[waiter.id]
        of_tenant = self._waiting_of[waiter.key.tenant]
        del of_tenant[waiter.id]
        if not of_tenant:
            del self._waiting_of[waiter.key.tenant]

    def _remove(self, waiter: Waiter, out: list[Effect]) -> None:
        """The waiter leaves without a place; its session goes on with the next, or without any."""
        entry = self.table.entries[waiter.key]
        was_head = entry.waiters[0] is waiter
        self._take(waiter, entry)
        if was_head:
            self._head_changed(entry, out)

    def _remind(self, waiter: Waiter, at: float) -> None:
        """Notes when the waiter must be looked at. The heap is rebuilt when most of it is about waiters long served."""
        if len(self._deadlines) > 64 + 4 * len(self.waiters):
            self._deadlines = [item for item in self._deadlines if item[1] in self.waiters]
            heapq.heapify(self._deadlines)
        heapq.heappush(self._deadlines, (min(at, waiter.deadline_at), waiter.id))

    def _expire(self, waiter: Waiter, out: list[Effect]) -> None:
        """Refuses the waiter if its time is up. While its session is opened for it, that is the turn's own time."""
        entry = self.table.entries[waiter.key]
        opens = entry.state is _OPENING and entry.waiters[0] is waiter
        patience = _ready_by(waiter, entry) if opens else waiter.wait_by
        if min(patience, waiter.deadline_at) > self._now:
            self._remind(waiter, patience)
            return
        self._remove(waiter, out)
        self._refuse(waiter, "open_timeout" if opens else "queue_timeout", out)

    # -- handing out -----------------------------------------------------------------------------------------------

    def _schedule(self, out: list[Effect]) -> None:
        """Hands out every free place, until nothing moves."""
        while True:
            while self._ready and self.busy < self.limits.max_busy:
                self._grant(self._ready.pop(), out)
            while len(self.openings) < self.limits.max_opening and (waiter := self._next_to_open()) is not None:
                self._try_open(waiter, out)
            if not self._crowded or not self._make_room(out):
                return

    def _grant(self, waiter: Waiter, out: list[Effect]) -> None:
        entry = self.table.entries[waiter.key]
        waiter.queue = None
        self._take(waiter, entry)
        self._lend(waiter, entry, out)

    def _lend(self, waiter: Waiter, entry: Entry, out: list[Effect]) -> None:
        """The place and the session are the waiter's."""
        self.table.move(entry, _BUSY)
        self.busy += 1
        self._ids += 1
        lease = entry.lease = self.leases[self._ids] = Lease(self._ids, entry, waiter, self._now)
        entry.once, entry.spent = waiter.once, True
        self.counters.grants += 1
        out.append(Grant(waiter.id, waiter.key, lease.id, self._now - waiter.arrived_at))

    def _next_to_open(self) -> Waiter | None:
        """The next head whose session must be opened; those parked in a group that has room now came first."""
        for group in self._crowded:
            if group.parked and group.has_room:
                waiter = group.parked.pop()
                waiter.queue = None
                return waiter
        if not self._cold:
            return None
        waiter = self._cold.pop()
        waiter.queue = None
        return waiter

    def _try_open(self, waiter: Waiter, out: list[Effect]) -> None:
        """Begins the opening, or parks the head in the first group that lacks room."""
        entry = self.table.entries[waiter.key]
        for group in entry.groups:
            if not group.has_room:
                group.parked.push(waiter)
                waiter.queue = group.parked
                self._crowded[group] = None
                return
        self.table.enter(entry)
        entry.opening_since = self._now
        entry.open_by = self._now + self.limits.open_limit_s(waiter.servers_s)
        entry.once = waiter.once
        self.openings[entry] = None
        self._remind(waiter, _ready_by(waiter, entry))
        self.counters.openings += 1
        evicted_at = self._evicted.pop(entry.key, None)
        if evicted_at is not None and self._now - evicted_at <= self.limits.ghost_window_s:
            self.counters.ghost_hits += 1
        out.append(Open(entry.key, waiter.id))

    def _make_room(self, out: list[Effect]) -> bool:
        """Evicts, longest idle first, for those parked; refuses whom no eviction can help. True: heads have moved."""
        moved = False
        for group in list(self._crowded):
            while group.idle and group.shortage() > 0:
                self._close(next(iter(group.idle)), CloseReason.LRU, out)
            # A full pool of busy sessions queues; a tenant or user whose sessions are all busy is refused at once.
            # Where the pool is short only because archives cannot be written, waiting would not help either.
            refusals = group.shortage() if group.kind != "pool" else min(group.shortage(), len(self._pinned))
            while refusals > 0 and group.parked:
                waiter = group.parked.newest()
                self._remove(waiter, out)
                self._refuse(waiter, _CAP_REASON[group.kind], out, limit=int(group.cap))
                refusals -= 1
                moved = True
            if not group.parked and group.resident <= group.cap:
                del self._crowded[group]
        return moved

    # -- sessions --------------------------------------------------------------------------------------------------

    def _head_changed(self, entry: Entry, out: list[Effect]) -> None:
        """Whoever is first for this session now is lined up; with nobody, the session rests, closes or is forgotten."""
        if entry.state is _IDLE:
            over = entry.once and (entry.spent or not entry.waiters)
            reason = entry.doomed or (CloseReason.DRAIN if self.draining else CloseReason.ONCE if over else None)
            if reason is not None and entry not in self._pinned:
                self._close(entry, reason, out)
                return
        if entry.waiters:
            self._line_up(entry.waiters[0], entry)
        elif entry.state is _IDLE:
            # Somebody wanted it just now, served or not; a list in the order of `idle_since` keeps eviction O(1).
            entry.idle_since = self._now
            if entry not in self._pinned:
                self.table.list_idle(entry)
                self._crowded.update(dict.fromkeys(group for group in entry.groups if group.resident > group.cap))
        elif entry.state is _GONE:
            self.table.forget(entry)

    def _close(self, entry: Entry, reason: CloseReason, out: list[Effect]) -> None:
        """Reserves the session for its close first, then orders it: nobody can be granted it in between."""
        self._pinned.pop(entry, None)
        self.table.begin_close(entry, reason, self._now)
        if reason in EVICTIONS:
            self.counters.evictions[reason.value] += 1
        out.append(Close(entry.key, reason))

    def _note_eviction(self, key: SessionKey) -> None:
        """Remembers the eviction for as long as coming back would be a ghost hit."""
        self._evicted[key] = self._now
        self._evicted.move_to_end(key)
        oldest = next(iter(self._evicted.values()))
        if len(self._evicted) > self.limits.ghost_limit or oldest < self._now - self.limits.ghost_window_s:
            self._evicted.popitem(last=False)

    def _expire_openings(self, out: list[Effect]) -> None:
        """A slow opening gives up its place among the openings, a hung one its waiters; both keep a slot in memory."""
        patience_s = self.limits.open_patience_s
        for entry in [entry for entry in self.openings if entry.opening_since + patience_s <= self._now]:
            del self.openings[entry]
            self.slow_openings[entry] = None
        for entry in [entry for entry in self._all_openings() if entry.open_by <= self._now]:
            self._end_opening(entry)
            entry.overdue = True
            self.table.move(entry, _STUCK)
            self._refuse_all(entry, "open_hung", out)

    def _all_openings(self) -> Iterator[Entry]:
        yield from self.openings
        yield from self.slow_openings

    def _end_opening(self, entry: Entry) -> None:
        """Its opening is over or given up. One that was given up may still come back."""
        self.openings.pop(entry, None)
        self.slow_openings.pop(entry, None)

    # -- refusals --------------------------------------------------------------------------------------------------

    def _refuse_all(self, entry: Entry, reason: RefusalReason, out: list[Effect]) -> None:
        """Refuses everyone who waits for the session. The newest first, so that no head changes before the last."""
        for waiter in reversed(entry.waiters[:]):
            self._remove(waiter, out)
            self._refuse(waiter, reason, out)

    def _refuse(self, waiter: Waiter, reason: RefusalReason, out: list[Effect], *, limit: int | None = None) -> None:
        self.counters.refusals[reason] += 1
        waiting, busy, resident = self.queue_length, self.busy, self.table.pool.resident
        retry_after_s = self.counters.retry_after_s(waiting, self.limits.max_busy)
        waited_s = self._now - waiter.arrived_at
        out.append(Refuse(waiter.id, waiter.key, reason, waited_s, retry_after_s, waiting, busy, resident, limit))


def _ready_by(head: Waiter, entry: Entry) -> float:
    """Until when the first who waits for a session that is being opened goes on waiting."""
    return max(head.arrived_at, entry.opening_since) + head.open_s


_CAP_REASON: dict[str, RefusalReason] = {
    "pool": "store",
    "tenant": "tenant_session_limit",
    "user": "user_session_limit",
}
