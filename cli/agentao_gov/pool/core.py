"""Who may run, who waits, who is refused, who must leave memory: the pool's decisions, without threads, files or clock.

Events come in as method calls with a time, effects come out as values, in the order they were decided.
Not thread-safe: the shell holds one lock around each call, and performs the effects after giving it back.

The rules, each held by `tests/pool/simulation.py` after every step:

* a busy session is never evicted; nor is one that somebody waits for;
* one agent per key: a turn for a closing session waits for the close, then opens anew;
* a slot is free when its close has returned;
* who may be evicted: the idle ones, the longest idle first, of the group (user, tenant, pool) that lacks room;
* first come first served within a session and among a tenant's ready turns, round-robin between tenants;
* a tenant with too many stuck sessions gets no further turn, whatever is free;
* every waiter is answered exactly once.
"""

from __future__ import annotations

import heapq
from collections import OrderedDict
from collections.abc import Iterator
from enum import Enum, auto

from agentao_gov.governor.types import SessionKey
from agentao_gov.pool.events import Close, Effect, Grant, Leak, Open, RefusalReason, Refuse
from agentao_gov.pool.limits import PoolLimits
from agentao_gov.pool.records import UNLIMITED, Counters, Entry, FairQueue, Group, Lease, SessionTable, Waiter
from agentao_gov.pool.types import EVICTIONS, CloseReason, SessionState

# An enum's member costs 0.15 µs a look-up in Python 3.11, and these lie on the way of every turn.
_BUSY = SessionState.BUSY
_CLOSING = SessionState.CLOSING
_GONE = SessionState.GONE
_IDLE = SessionState.IDLE
_OPENING = SessionState.OPENING
_STUCK = SessionState.STUCK


class StaleLeaseError(Exception):
    """Raised when a lease is released that is not out: released before, or taken away because its turn was stuck."""

    def __init__(self, lease_id: int) -> None:
        super().__init__(f"Lease {lease_id} is not out: it was released before, or its turn was abandoned.")
        self.lease_id = lease_id


class SessionHealth(Enum):
    """What a returned lease says about its session."""

    #: Idle, ready for the next turn.
    OK = auto()
    #: Its agent or process is not to be used again; the conversation goes on from the archive.
    BROKEN = auto()
    #: Another process advanced the session: close this copy, and give the same waiter a new one.
    STALE = auto()
    #: The turn never came back: quarantined, its slot and its place stay taken.
    STUCK = auto()


class PoolCore:
    """The decisions. Every event method returns the effects to be performed."""

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

    # -- events: turns -------------------------------------------------------------------------------------------

    def acquire(
        self,
        now: float,
        key: SessionKey,
        user: str,
        *,
        deadline_at: float = UNLIMITED,
        once: bool = False,
        leak_after_s: float = UNLIMITED,
        open_s: float = UNLIMITED,
        servers_s: float = 0.0,
    ) -> tuple[int, list[Effect]]:
        """A turn wants to run. It is granted, refused, or waits until its deadline or `queue_timeout`.

        `open_s`: how long it waits beyond that once its session is being opened. `servers_s`: how long the opening
        may take for the sake of MCP servers, if that is longer than `open_timeout_s`.
        """
        now = self._advance(now)
        out: list[Effect] = []
        self._ids += 1
        wait_by = now + self.limits.queue_timeout_s
        waiter = Waiter(self._ids, key, user, now, deadline_at, once, leak_after_s, open_s, servers_s, wait_by)
        entry = self.table.entries.get(key)
        if self.draining:
            self._refuse(waiter, "draining", out)
        elif self.table.count[_STUCK] and (limit := self._stuck_limit(key.tenant)) is not None:
            self._refuse(waiter, "stuck" if entry and entry.state is _STUCK else "tenant_stuck", out, limit=limit)
        elif entry is not None and self._is_free(entry):
            # The common case takes no detour through the queues; nothing else has become free by it.
            self.table.unlist_idle(entry)
            self._lend(waiter, entry, out)
        elif entry is not None and entry.state is _STUCK:
            self._refuse(waiter, "stuck", out)
        elif self._admit(waiter, entry, out):
            self._enqueue(waiter, entry or self.table.add(key, user))
            self._schedule(out)
            if waiter.id in self.waiters:
                self._remind(waiter, wait_by)
        return waiter.id, out

    def cancel(self, now: float, waiter_id: int) -> tuple[int | None, list[Effect]]:
        """The caller went away. Returns its lease if it was granted meanwhile: the caller must release it then."""
        self._advance(now)
        out: list[Effect] = []
        waiter = self.waiters.get(waiter_id)
        if waiter is None:
            lease = next((lease.id for lease in self.leases.values() if lease.waiter.id == waiter_id), None)
            return lease, out
        self._remove(waiter, out)
        self._schedule(out)
        return None, out

    def release(self, now: float, lease_id: int, verdict: SessionHealth = SessionHealth.OK) -> list[Effect]:
        """A turn ended. Raises StaleLeaseError for a lease that is not out."""
        now = self._advance(now)
        out: list[Effect] = []
        lease = self.leases.pop(lease_id, None)
        if lease is None:
            raise StaleLeaseError(lease_id)
        held_s = now - lease.granted_at
        entry = lease.entry
        if verdict is SessionHealth.STUCK:
            self.counters.abandoned += 1
            self._quarantine(entry, "stuck", out)
            self._schedule(out)
            return out
        entry.lease = None
        self._note_return(lease, out)
        self.busy -= 1
        self.counters.turn_lasted(held_s)
        self._settle(lease, verdict, out)
        self._schedule(out)
        return out

    def unstuck(self, now: float, key: SessionKey) -> list[Effect]:
        """A stuck turn came back, or its process was ended: the session closes and its slot will be free."""
        self._advance(now)
        out: list[Effect] = []
        entry = self.table.entries[key]
        if entry.state is not _STUCK:
            raise ValueError(f"{key} is {entry.state}, not stuck")
        if entry.lease is not None:
            self._note_return(entry.lease, out)
            entry.lease = None
            self.busy -= 1
        self._close(entry, CloseReason.UNSTUCK, out)
        self._schedule(out)
        return out

    # -- events: openings and closes -----------------------------------------------------------------------------

    def opened(self, now: float, key: SessionKey) -> list[Effect]:
        """An `Open` succeeded."""
        now = self._advance(now)
        out: list[Effect] = []
        entry = self.table.entries[key]
        if entry.overdue:
            self._close(entry, CloseReason.UNSTUCK, out)
        else:
            self._end_opening(entry)
            self.table.move(entry, _IDLE)
            entry.idle_since = now
            if entry.waiters:
                head = entry.waiters[0]
                # Its opening was no waiting for a place.
                head.wait_by += now - max(head.arrived_at, entry.opening_since)
                self._remind(head, head.wait_by)
            self._head_changed(entry, out)
        self._schedule(out)
        return out

    def open_failed(self, now: float, key: SessionKey) -> list[Effect]:
        """An `Open` failed: its slots are free, and all who wait for this session share the failure."""
        self._advance(now)
        out: list[Effect] = []
        entry = self.table.entries[key]
        self.counters.opening_failures += 1
        self._end_opening(entry)
        doomed = entry.doomed is not None or entry.overdue
        self.table.leave(entry)
        if not doomed:
            self._refuse_all(entry, "open_failed", out)
        if self.table.entries.get(key) is entry:
            self._head_changed(entry, out)
        self._schedule(out)
        return out

    def closed(self, now: float, key: SessionKey) -> list[Effect]:
        """A `Close` has returned: only now is the slot free."""
        self._advance(now)
        out: list[Effect] = []
        entry = self.table.entries[key]
        if entry.close_reason in EVICTIONS:
            self._note_eviction(key)
        self.table.leave(entry)
        self._head_changed(entry, out)
        self._schedule(out)
        return out

    def close_refused(self, now: float, key: SessionKey) -> list[Effect]:
        """A `Close` would have lost the conversation: the session stays in memory and is left alone for a while."""
        now = self._advance(now)
        out: list[Effect] = []
        entry = self.table.entries[key]
        self.table.undo_close(entry)
        if entry.doomed is None:
            entry.pinned_until = now + self.limits.pin_s
            self._pinned[entry] = None
        self._head_changed(entry, out)
        self._schedule(out)
        return out

    def delete(self, now: float, key: SessionKey) -> tuple[SessionState, list[Effect]]:
        """The session is to go for good. Returns the state it was in; busy: the shell cancels the turn."""
        self._advance(now)
        out: list[Effect] = []
        entry = self.table.entries.get(key)
        if entry is None:
            return _GONE, out
        state = entry.state
        entry.doomed = CloseReason.DELETED
        self._refuse_all(entry, "deleted", out)
        # Where somebody waited, the last one's refusal has closed it already.
        if entry.state is _IDLE:
            self._close(entry, CloseReason.DELETED, out)
        elif state is _CLOSING:
            entry.close_reason = CloseReason.DELETED
        self._schedule(out)
        return state, out

    # -- events: time, memory, limits, the way down ----------------------------------------------------------------

    def tick(self, now: float) -> list[Effect]:
        """Time has passed: deadlines, idle time-outs, hung openings, leaks."""
        now = self._advance(now)
        out: list[Effect] = []
        while self._deadlines and self._deadlines[0][0] <= now:
            waiter = self.waiters.get(heapq.heappop(self._deadlines)[1])
            if waiter is not None:
                self._expire(waiter, out)
        idle = self.table.pool.idle
        while idle and (oldest := next(iter(idle))).idle_since + self.limits.session_ttl_s <= now:
            self._close(oldest, CloseReason.TTL, out)
        if self.openings or self.slow_openings:
            self._expire_openings(out)
        closing = self.table.closing
        while closing and (oldest := next(iter(closing))).closing_since + self.limits.close_patience_s <= now:
            self.table.give_up_close(oldest)
        for lease in self.leases.values():
            if lease.leak_at <= now and not lease.reported:
                lease.reported = True
                self.counters.leaks += 1
                out.append(Leak(lease.id, lease.entry.key, lease.waiter.id, now - lease.granted_at, returned=False))
        for entry in [entry for entry in self._pinned if entry.pinned_until <= now]:
            del self._pinned[entry]
            if entry.state is _IDLE and not entry.waiters:
                self._head_changed(entry, out)
        self._schedule(out)
        return out

    def memory(self, now: float, fraction: float) -> list[Effect]:
        """A reading of the memory in use, as a part of the plan's. Two thresholds, so that it does not flutter."""
        self._advance(now)
        out: list[Effect] = []
        if fraction >= self.limits.memory_start:
            self._pressure = True
        elif fraction < self.limits.memory_stop:
            self._pressure = False
        pool = self.table.pool
        while self._pressure and pool.idle and pool.closing < self.limits.memory_batch:
            self._close(next(iter(pool.idle)), CloseReason.MEMORY, out)
        return out

    def resize(self, now: float, limits: PoolLimits) -> list[Effect]:
        """New limits, at once: surplus idle sessions go, busy ones finish first."""
        self._advance(now)
        out: list[Effect] = []
        self.limits = limits
        self.table.recap(limits)
        for tenant in list(self._waiting_of):
            self._refuse_stuck(tenant, out)
        self._crowded.update(dict.fromkeys(self.table.groups()))
        self._schedule(out)
        return out

    def drain(self, now: float) -> list[Effect]:
        """The way down: waiters are refused at once, idle sessions close, busy ones close after their turn."""
        self._advance(now)
        out: list[Effect] = []
        self.draining = True
        for entry in [entry for entry in self.table.entries.values() if entry.waiters]:
            self._refuse_all(entry, "draining", out)
        for entry in list(self.table.pool.idle) + list(self._pinned):
            if entry.state is _IDLE:
                self._close(entry, CloseReason.DRAIN, out)
        return out

    def next_wake(self) -> float:
        """When `tick` has something to do next; infinity: not before another event."""
        times = [UNLIMITED]
        if self._deadlines:
            times.append(self._deadlines[0][0])
        if self.table.pool.idle:
            times.append(next(iter(self.table.pool.idle)).idle_since + self.limits.session_ttl_s)
        times.extend(lease.leak_at for lease in self.leases.values() if not lease.reported)
        times.extend(entry.pinned_until for entry in self._pinned)
        times.extend(entry.opening_since + self.limits.open_patience_s for entry in self.openings)
        times.extend(entry.open_by for entry in self._all_openings())
        if self.table.closing and self._crowded:
            times.append(next(iter(self.table.closing)).closing_since + self.limits.close_patience_s)
        return min(times)

    def _note_return(self, lease: Lease, out: list[Effect]) -> None:
        if lease.reported:
            held_s = self._now - lease.granted_at
            out.append(Leak(lease.id, lease.entry.key, lease.waiter.id, held_s, returned=True))

    def _settle(self, lease: Lease, verdict: SessionHealth, out: list[Effect]) -> None:
        """Where the session goes after its turn."""
        entry = lease.entry
        self.table.move(entry, _IDLE)
        if verdict is SessionHealth.OK:
            self._head_changed(entry, out)
            return
        if verdict is SessionHealth.STALE and entry.doomed is None and not self.draining:
            # The same waiter, first in its session as before: nobody of this session may overtake it.
            waiter = lease.waiter
            self._enqueue_first(waiter, entry)
            self._close(entry, CloseReason.STALE, out)
            self._refuse_stuck(waiter.key.tenant, out)
            return
        if verdict is SessionHealth.STALE:
            self._refuse(lease.waiter, "draining" if self.draining else "deleted", out)
        self._close(entry, entry.doomed or CloseReason.BROKEN, out)

    # -- who is next, who opens, who is evicted to make room, who is refused ----------------------------------------

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
            self._quarantine(entry, "open_hung", out)

    def _quarantine(self, entry: Entry, reason: RefusalReason, out: list[Effect]) -> None:
        """Nobody gets the session until it comes back; a tenant with too many of them gets no turn at all."""
        self.table.move(entry, _STUCK)
        self._refuse_all(entry, reason, out)
        self._refuse_stuck(entry.key.tenant, out)

    def _refuse_stuck(self, tenant: str, out: list[Effect]) -> None:
        """Refuses all who wait of a tenant with too many stuck sessions. The newest first, so that no head changes."""
        if (limit := self._stuck_limit(tenant)) is not None:
            for waiter in reversed(list(self._waiting_of.get(tenant, {}).values())):
                self._remove(waiter, out)
                self._refuse(waiter, "tenant_stuck", out, limit=limit)

    def _stuck_limit(self, tenant: str) -> int | None:
        """How many stuck sessions a tenant may have, if it has as many."""
        limit = self.limits.max_stuck_per_tenant
        return limit if self.table.stuck_of(tenant) >= limit else None

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
