"""Who may run, who waits, who is refused, who must leave memory: the pool's decisions, without threads, files or clock.

Events come in as method calls with a time, effects come out as values, in the order they were decided.
Not thread-safe: the shell holds one lock around each call, and performs the effects after giving it back.

The rules, each held by `tests/pool/simulation.py` after every step:

* a busy session is never evicted; nor is one that somebody waits for;
* one agent per key: a turn for a closing session waits for the close, then opens anew;
* a slot is free when its close has returned;
* who may be evicted: the idle ones, the longest idle first, of the group (user, tenant, pool) that lacks room;
* first come first served within a session and among a tenant's ready turns, round-robin between tenants;
* every waiter is answered exactly once.
"""

from __future__ import annotations

import heapq
from enum import Enum, auto

from agentao_gov.governor.types import SessionKey
from agentao_gov.pool.effects import Effect, Leak
from agentao_gov.pool.entries import Lease, Waiter
from agentao_gov.pool.groups import UNLIMITED
from agentao_gov.pool.limits import PoolLimits
from agentao_gov.pool.scheduling import Scheduler
from agentao_gov.pool.types import EVICTIONS, CloseReason, SessionState

__all__ = ["PoolCore", "StaleLeaseError", "Verdict"]

# An enum's member costs 0.15 µs a look-up in Python 3.11, and these lie on the way of every turn.
_CLOSING = SessionState.CLOSING
_GONE = SessionState.GONE
_IDLE = SessionState.IDLE
_STUCK = SessionState.STUCK


class StaleLeaseError(Exception):
    """Raised when a lease is released that is not out: released before, or taken away because its turn was stuck."""

    def __init__(self, lease_id: int) -> None:
        super().__init__(f"Lease {lease_id} is not out: it was released before, or its turn was abandoned.")
        self.lease_id = lease_id


class Verdict(Enum):
    """What a returned lease says about its session."""

    #: Idle, ready for the next turn.
    OK = auto()
    #: Its agent or process is not to be used again; the conversation goes on from the archive.
    BROKEN = auto()
    #: Another process advanced the session: close this copy, and give the same waiter a new one.
    STALE = auto()
    #: The turn never came back: quarantined, its slot and its place stay taken.
    STUCK = auto()


class PoolCore(Scheduler):
    """The decisions. Every event method returns the effects to be performed."""

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

    def release(self, now: float, lease_id: int, verdict: Verdict = Verdict.OK) -> list[Effect]:
        """A turn ended. Raises StaleLeaseError for a lease that is not out."""
        now = self._advance(now)
        out: list[Effect] = []
        lease = self.leases.pop(lease_id, None)
        if lease is None:
            raise StaleLeaseError(lease_id)
        held_s = now - lease.granted_at
        entry = lease.entry
        if verdict is Verdict.STUCK:
            self.counters.abandoned += 1
            self.table.move(entry, _STUCK)
            self._refuse_all(entry, "stuck", out)
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

    def _settle(self, lease: Lease, verdict: Verdict, out: list[Effect]) -> None:
        """Where the session goes after its turn."""
        entry = lease.entry
        self.table.move(entry, _IDLE)
        if verdict is Verdict.OK:
            self._head_changed(entry, out)
            return
        if verdict is Verdict.STALE and entry.doomed is None and not self.draining:
            # The same waiter, first in its session as before: nobody of this session may overtake it.
            waiter = lease.waiter
            self._enqueue_first(waiter, entry)
            self._close(entry, CloseReason.STALE, out)
            return
        if verdict is Verdict.STALE:
            self._refuse(lease.waiter, "draining" if self.draining else "deleted", out)
        self._close(entry, entry.doomed or CloseReason.BROKEN, out)
