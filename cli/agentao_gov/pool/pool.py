"""The pool as its users see it: orders in, reports out, a look at what goes on, and the way down."""

from __future__ import annotations

import functools
import logging
import threading
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from agentao_gov.clock import SYSTEM_CLOCK, Clock, Deadline
from agentao_gov.governor.report import Mode, TurnReport
from agentao_gov.governor.types import EventSink, SessionKey, TurnEvent
from agentao_gov.pool.core import SessionHealth
from agentao_gov.pool.engine import CLOSERS, Engine
from agentao_gov.pool.events import EndedByShutdown, RungEntered
from agentao_gov.pool.ladder import Ladder, Rung, RungTimes
from agentao_gov.pool.limits import pool_limits, rung_times
from agentao_gov.pool.records import UNLIMITED
from agentao_gov.pool.residents import Lifecycle
from agentao_gov.pool.ticker import Ticker
from agentao_gov.pool.tickets import HeldLease, Ticket
from agentao_gov.pool.turns import Turns
from agentao_gov.pool.types import (
    EVICTIONS,
    PoolStats,
    SessionInfo,
    SessionPage,
    SessionState,
    SessionUsage,
    TenantStats,
    TurnOrder,
)

if TYPE_CHECKING:
    from agentao_gov.config import ResolvedDeployment
    from agentao_gov.pool.archive import SessionArchive, SessionHead
    from agentao_gov.pool.events import Effect, PoolObserver
    from agentao_gov.pool.host import HostFactory
    from agentao_gov.pool.limits import PoolLimits
    from agentao_gov.pool.records import Entry
    from agentao_gov.pool.residents import Resident

_log = logging.getLogger(__name__)

#: Past a turn's limit and grace by this much, its host counts as hung and its lease as leaked.
_LEAK_MARGIN_S = 5.0
#: Between looks at whether a rung of the way down has nothing left to wait for.
_RUNG_LOOK_S = 0.05
#: How long `delete` waits for the session's agent to be gone.
_DELETE_S = 5.0


def _no_env(_: SessionKey) -> Mapping[str, str]:
    return {}


class AgentPool:
    """Sessions of many tenants, one turn at a time each. Thread-safe; what blocks says so."""

    def __init__(
        self,
        deployment: ResolvedDeployment,
        factories: Mapping[Mode, HostFactory],
        archive: SessionArchive,
        *,
        clock: Clock = SYSTEM_CLOCK,
        workdirs: Path | None = None,
        child_env: Callable[[SessionKey], Mapping[str, str]] = _no_env,
        closers: int = CLOSERS,
    ) -> None:
        """Builds an empty pool; its threads start with the first turn.

        `deployment`: limits, caps and times come from its `[pool]` and `[tenants]`. `factories`: what opens a session's
        host in each mode that is offered. `archive`: where evicted sessions go. `clock`: time for idle times and
        deadlines. `workdirs`: the directory that temporary working directories are made in; None: the system's.
        `child_env`: the variables by which every child of a session is known. `closers`: how many sessions may be
        closing at once.
        """
        config = deployment.deployment
        self._times = rung_times(config)
        self._memory_bytes = config.capacity.memory_bytes if config.capacity is not None else None
        self._clock = clock
        self._archive = archive
        lifecycle = Lifecycle(
            archive,
            factories,
            hibernate=config.pool.hibernate,
            workdirs=workdirs if workdirs is not None else deployment.state_dir / "work",
            child_env=child_env,
            clock=clock,
        )
        self._engine = Engine(pool_limits(config), lifecycle, clock, self._times.close_s)
        self._engine.closers.allow(closers)
        self._turns = Turns(self._engine)
        self._ticker = Ticker(self._engine, self._turns, config.pool.retain_hibernated_s, closers)
        self._rung = Rung.SERVING
        #: Held by whoever walks the shutdown ladder.
        self._walking = threading.Lock()
        #: Rungs to be ended before their time; under the engine's lock.
        self._skips = 0

    # -- turns -----------------------------------------------------------------------------------------------------

    def submit(self, order: TurnOrder, on_event: EventSink | None = None) -> Future[TurnReport]:
        """Asks for one turn; returns at once.

        `order`: who asks what, under which profile and in which mode. `on_event` is called on the turn's thread. The
        future ends with the turn's report, or with a CapacityError when there is no place for it, another GovError when
        its session cannot be opened. `future.cancel()` works until the turn has its place; `cancel` from then on.
        """
        future: Future[TurnReport] = Future()
        self._acquire(Ticket(order, future, self._turns.granted, on_event or _ignore, self._clock.monotonic()))
        return future

    def lease(self, order: TurnOrder) -> Future[HeldLease]:
        """Asks for the session itself instead of a turn on it; returns at once.

        `order`: as for `submit`, but its message is not used. The future ends with the lease, or as that of `submit`.
        """
        future: Future[HeldLease] = Future()
        self._acquire(Ticket(order, future, self._lend, _ignore, self._clock.monotonic()))
        return future

    def cancel(self, key: SessionKey, reason: str = "cancelled", *, turn_id: str | None = None) -> bool:
        """Cancels the turn in flight of the session `key`, or the first that waits for it; with `turn_id` that alone.

        `reason`: `cancelled`, `client_gone`, `shutdown`. False: there was none.
        """
        engine = self._engine
        with engine.lock:
            ticket = engine.running.get(key)
            if ticket is None or (turn_id is not None and ticket.order.turn_id != turn_id):
                ticket = self._waiting(key, turn_id)
            if ticket is None:
                return False
            ticket.cancel_reason = ticket.cancel_reason or reason
            waits = ticket.waiter_id in engine.tickets
        if waits:
            self._call_off(ticket)
        elif ticket.started and ticket.resident is not None:
            ticket.resident.host.cancel(reason)
            # The host may be between its grant and its first step: the watch says it again until the turn ends.
            self._ticker.expect(0.0)
        return True

    # -- sessions --------------------------------------------------------------------------------------------------

    def delete(self, key: SessionKey) -> bool:
        """Removes the session `key` for good, with archive and working directory; cancels its turn. Blocks 5 s at most.

        False: there was no such session. A turn that comes later begins a new one.
        """
        engine = self._engine
        gone = threading.Event()
        before = SessionState.GONE

        def forget(now: float) -> list[Effect]:
            nonlocal before
            before, effects = engine.core.delete(now, key)
            return effects

        engine.decide(forget)
        if before is SessionState.BUSY:
            self.cancel(key)
        existed = self._archive.delete(key)
        in_memory = before not in (SessionState.GONE, SessionState.STUCK)
        deadline = Deadline.after(_DELETE_S, self._clock)
        while in_memory and self._dying(key) and not deadline.passed:
            gone.wait(0.01)
        return existed or before is not SessionState.GONE

    def session(self, key: SessionKey) -> SessionInfo | None:
        """The session `key`, in memory or hibernated; None: there is none. May read a file: blocks."""
        found = resident_infos(self._engine, key=key)
        if found:
            return found[0]
        if self._dying(key):
            return None
        head = self._archive.head(key)
        return info_of_head(head) if head is not None else None

    def sessions(self, tenant: str | None = None) -> list[SessionInfo]:
        """The first 1,000 of a tenant's sessions, as `page`; without `tenant` those of all in memory. Blocks."""
        return resident_infos(self._engine) if tenant is None else list(self.page(tenant, limit=1000).sessions)

    def page(self, tenant: str, *, limit: int = 100, after: str | None = None) -> SessionPage:
        """Up to `limit` of a `tenant`'s sessions, in memory and on disk, in an order that nothing changes. Reads files.

        `after`: the id that the page before ended with; None: from the first. Raises StoreError.
        """
        archive, place = self._archive, self._archive.place
        resident = resident_infos(self._engine, tenant)
        known = {info.key for info in resident}
        heads, more = archive.page(tenant, limit, after)
        found = [info_of_head(head) for head in heads if head.key not in known and not self._dying(head.key)]
        found += [info for info in resident if after is None or place(info.key.session) > place(after)]
        if more:
            # Of what comes later on disk nothing has been read.
            found = [info for info in found if place(info.key.session) <= place(heads[-1].key.session)]
        found.sort(key=lambda info: place(info.key.session))
        total = len({*archive.places(tenant), *(place(info.key.session) for info in resident)})
        return SessionPage(tuple(found[:limit]), more or len(found) > limit, total)

    def profile_of(self, key: SessionKey) -> str | None:
        """The profile of the session `key`; None where it is not in memory. Never blocks."""
        with self._engine.lock:
            resident = self._engine.residents.get(key)
        return resident.spec.profile.profile.name if resident is not None else None

    def stats(self) -> PoolStats:
        """The pool at this moment."""
        return stats_of(self._engine, self._rung.label)

    def subscribe(self, observer: PoolObserver) -> None:
        """Tells `observer` of everything that happens from now on, on the pool's threads: it must not block."""
        self._engine.subscribe(observer)

    # -- limits ----------------------------------------------------------------------------------------------------

    @property
    def limits(self) -> PoolLimits:
        """What holds now."""
        return self._engine.core.limits

    def resize(self, limits: PoolLimits) -> None:
        """Puts `limits` in place of those that held: surplus idle sessions leave memory, busy ones finish first."""
        self._engine.decide(lambda now: self._engine.core.resize(now, limits))

    def memory_used(self, used_bytes: int) -> None:
        """Takes a reading: `used_bytes` is what the service holds in memory now.

        Above nine tenths of the capacity plan's memory, idle sessions leave until it is eight.
        """
        if self._memory_bytes:
            engine = self._engine
            fraction = used_bytes / self._memory_bytes
            if fraction >= engine.core.limits.memory_stop and engine.core.counters.evictions["memory"]:
                # What the last reading's evictions freed is not the machine's again before this.
                engine.closers.submit(engine.trim)
            engine.decide(lambda now: engine.core.memory(now, fraction))

    # -- the way down ----------------------------------------------------------------------------------------------

    def close(self, times: RungTimes | None = None) -> None:
        """The whole way down: refuses, cancels, closes, kills; tells the observers of each rung.

        `times`: the seconds of each rung; by default turns in flight are cancelled at once. Blocks for the ladder's
        budget at most. The first call walks, any other waits for its end and does nothing more.
        """
        with self._walking:
            if self._rung is not Rung.GONE:
                self._walk(Ladder(times if times is not None else _at_once(self._times)))

    def next_rung(self) -> None:
        """Ends the present rung of a `close` under way; the first one of a `close` that comes later."""
        with self._engine.lock:
            self._skips += 1
        self._engine.changed.set()

    def _drain(self) -> list[SessionKey]:
        """Refuses new and waiting turns, closes idle sessions; turns in flight go on. Ends nobody's turn."""
        # Five hundred polite closes of 0.25 s would take sixteen threads longer than the whole budget.
        self._ticker.widen()
        self._engine.decide(self._engine.core.drain)
        return []

    def _cancel_running(self) -> list[SessionKey]:
        """Cancels the turns in flight; returns whose."""
        with self._engine.lock:
            keys = list(self._engine.running)
        return [key for key in keys if self.cancel(key, "shutdown")]

    def _kill_all(self) -> list[SessionKey]:
        """Ends by force what is left; returns which sessions. Does not wait for it."""
        with self._engine.lock:
            left = dict(self._engine.residents)
        for resident in left.values():
            threading.Thread(target=resident.host.kill, name="pool-kill", daemon=True).start()
        return list(left)

    def _walk(self, ladder: Ladder) -> None:
        engine = self._engine
        entered = ladder.signal(self._clock.monotonic())
        while ladder.rung is not Rung.GONE:
            for rung in entered:
                self._perform(rung, ladder.times.of(rung))
            with engine.lock:
                engine.changed.clear()
                skips, self._skips = self._skips, 0
                busy, resident = self._left_to_end()
            now = self._clock.monotonic()
            entered = [rung for _ in range(skips) for rung in ladder.signal(now)]
            entered = entered or ladder.tick(now, busy=busy, resident=resident)
            if not entered:
                engine.changed.wait(_RUNG_LOOK_S)
        for rung in entered[:-1]:
            self._perform(rung, ladder.times.of(rung))
        self._ticker.stop()
        engine.lifecycle.shutdown(Deadline(ladder.shared_until(self._clock.monotonic()), self._clock))
        self._perform(Rung.GONE, 0.0)

    def _perform(self, rung: Rung, seconds: float) -> None:
        """Enters a rung. What fails is logged and the way down goes on: the next rung is harder than this one."""
        self._rung = rung
        engine = self._engine
        with engine.lock:
            table, waiting = engine.core.table, engine.core.queue_length
            entered = RungEntered(rung, seconds, table.count[SessionState.BUSY], waiting, table.pool.resident)
        engine.tell(entered)
        try:
            act = {Rung.DRAINING: self._drain, Rung.CANCELLING: self._cancel_running, Rung.KILLING: self._kill_all}
            ended = act[rung]() if rung in act else []
        except Exception:
            _log.exception("The shutdown rung %s failed", rung.label)
        else:
            for key in ended:
                engine.tell(EndedByShutdown(key, rung))

    def _left_to_end(self) -> tuple[int, int]:
        """What may still end by itself: turns, and sessions in memory. A stuck one never does. Under the lock."""
        core = self._engine.core
        count = core.table.count
        turns = count[SessionState.BUSY] + count[SessionState.OPENING] + core.queue_length
        return turns, core.table.pool.resident - count[SessionState.STUCK]

    # -- inside ----------------------------------------------------------------------------------------------------

    def _acquire(self, ticket: Ticket) -> None:
        engine, order = self._engine, ticket.order
        limits = order.profile.profile.limits
        deadline_at = order.deadline.at if order.deadline is not None else float("inf")
        leak_after_s = limits.turn_timeout_s + limits.cancel_grace_s + engine.core.limits.queue_timeout_s

        def ask(now: float) -> list[Effect]:
            ticket.waiter_id, effects = engine.core.acquire(
                now,
                order.key,
                order.user,
                deadline_at=deadline_at,
                once=order.mode == "fresh",
                leak_after_s=leak_after_s + _LEAK_MARGIN_S,
                open_s=order.open_s_max,
                servers_s=order.servers_s,
            )
            engine.tickets[ticket.waiter_id] = ticket
            return effects

        engine.decide(ask)
        if ticket.lease_id is None:
            ticket.future.add_done_callback(functools.partial(self._left, ticket.waiter_id))
            with engine.lock:
                due_at = engine.core.next_wake()
            self._ticker.expect(due_at)

    def _left(self, waiter_id: int, future: Future[Any]) -> None:
        """The caller cancelled the future while the turn waited."""
        if future.cancelled():
            with self._engine.lock:
                ticket = self._engine.tickets.get(waiter_id)
            if ticket is not None:
                self._call_off(ticket)

    def _call_off(self, ticket: Ticket) -> None:
        """Takes a waiting turn out of the queue. One that was granted in the same moment ends on its own thread."""
        engine = self._engine
        waits = False

        def leave(now: float) -> list[Effect]:
            nonlocal waits
            waits = engine.tickets.pop(ticket.waiter_id, None) is not None
            return engine.core.cancel(now, ticket.waiter_id)[1] if waits else []

        engine.decide(leave)
        if waits:
            ticket.drop_hold()
            self._turns.answer(ticket, self._turns.cancelled_report(ticket) if ticket.cancel_reason else None)

    def _waiting(self, key: SessionKey, turn_id: str | None) -> Ticket | None:
        """The first turn that waits for a session, or the one with this id. Under the lock."""
        entry = self._engine.core.table.entries.get(key)
        for waiter in entry.waiters if entry is not None else ():
            ticket = self._engine.tickets[waiter.id]
            if turn_id is None or ticket.order.turn_id == turn_id:
                return ticket
        return None

    def _dying(self, key: SessionKey) -> bool:
        with self._engine.lock:
            entry = self._engine.core.table.entries.get(key)
            return entry is not None and entry.is_deleted

    def _lend(self, ticket: Ticket) -> None:
        resident, lease_id = ticket.resident, ticket.lease_id
        assert resident is not None
        assert lease_id is not None
        ticket.thread_id = threading.get_ident()
        if ticket.future.set_running_or_notify_cancel():
            # The lease does not know its ticket: ticket, future and lease would be a cycle, and each lease garbage
            # that only a collection finds (p99 of `release` 130-320 µs instead of some 30).
            lease = HeldLease(lease_id, ticket.key, resident.host, ticket.waited_s, self._take_back)
            ticket.future.set_result(lease)
        else:
            self._take_back(ticket.key, lease_id, SessionHealth.OK)

    def _take_back(self, key: SessionKey, lease_id: int, verdict: SessionHealth) -> None:
        engine = self._engine

        def release(now: float) -> list[Effect]:
            effects = engine.core.release(now, lease_id, verdict)
            del engine.running[key]
            engine.rests.note(engine.residents[key], now)
            return effects

        # Raises StaleLeaseError before anything has changed.
        engine.decide(release)
        engine.changed.set()


def _ignore(_: TurnEvent) -> None:
    """Events of a turn that nobody listens to."""


def _at_once(times: RungTimes) -> RungTimes:
    return RungTimes(0.0, 0.0, times.cancel_s, times.close_s, times.kill_s, times.budget_s)


# -- what can be read from the pool: counted under the lock, put into words outside of it ---------------------------


class _Reading(NamedTuple):
    """What of a session must be read under the lock."""

    state: SessionState
    waiting: int
    idle_since: float
    turn_id: str | None
    resident: Resident | None
    order: TurnOrder | None


def resident_infos(engine: Engine, tenant: str | None = None, key: SessionKey | None = None) -> list[SessionInfo]:
    """Sessions in memory or being opened: one, a tenant's, or all. Reads process tables: a millisecond each."""
    with engine.lock:
        entries = engine.core.table.entries
        chosen = entries.values() if key is None else [entries[key]] if key in entries else []
        readings = [
            reading
            for entry in chosen
            if (tenant is None or entry.key.tenant == tenant) and (reading := _read(engine, entry)) is not None
        ]
    now, wall = engine.clock.monotonic(), engine.clock.time()
    return [_info_of(reading, now, wall) for reading in readings]


def _read(engine: Engine, entry: Entry) -> _Reading | None:
    if entry.is_deleted:
        return None
    resident, order = engine.residents.get(entry.key), engine.opening.get(entry.key)
    if resident is None and order is None:
        return None
    ticket = engine.running.get(entry.key)
    turn_id = ticket.order.turn_id if ticket is not None else None
    return _Reading(entry.state, len(entry.waiters), entry.idle_since, turn_id, resident, order)


def _info_of(reading: _Reading, now: float, wall: float) -> SessionInfo:
    if reading.resident is None:
        order = reading.order
        assert order is not None
        return SessionInfo(
            order.key, reading.state, order.user, order.profile.profile.name, order.mode, order.model.name,
            SessionUsage(), wall, None, waiting=reading.waiting,
        )  # fmt: skip
    head, spec = reading.resident.head, reading.resident.spec
    idle = reading.state is SessionState.IDLE
    return SessionInfo(
        key=spec.key,
        state=reading.state,
        user=head.user,
        profile=spec.profile.profile.name,
        mode=spec.mode,
        model=spec.model.name,
        usage=head.usage,
        created_at=head.created_at,
        last_turn_at=head.last_turn_at if head.usage.turns else None,
        idle_s=max(0.0, now - reading.idle_since) if idle else None,
        turn_id=reading.turn_id,
        waiting=reading.waiting,
        process_ids=reading.resident.host.process_ids(),
    )


def info_of_head(head: SessionHead) -> SessionInfo:
    """A session that is on disk alone."""
    return SessionInfo(
        head.key, SessionState.HIBERNATED, head.user, head.profile, head.mode, head.model,
        head.usage, head.created_at, head.last_turn_at,
    )  # fmt: skip


def stats_of(engine: Engine, rung: str) -> PoolStats:
    """The counters. Takes the lock for microseconds, and never while files are read."""
    archived = engine.lifecycle.archive.count()
    with engine.lock:
        core = engine.core
        table, counters, limits = core.table, core.counters, core.limits
        sessions: dict[SessionState, int] = {
            state: table.count[state] for state in SessionState if state is not SessionState.GONE
        }
        groups = {group.id[0]: (group.resident, group.cap, group.stuck) for group in table.tenants()}
        busy = Counter(key.tenant for key in engine.running)
        waiting = core.waiting_by_tenant()
        queue_length = core.queue_length
        evictions = {reason.value: counters.evictions[reason.value] for reason in sorted(EVICTIONS)}
        refusals = dict(counters.refusals)
        waits = sorted(engine.waits)
        awake = engine.rests.awake
        unsaved = sum(
            resident.dirty and core.table.entries[key].state is SessionState.IDLE
            for key, resident in engine.residents.items()
        )
        in_memory = sum(resident.archived and resident.head.version > 0 for resident in engine.residents.values())
    sessions[SessionState.HIBERNATED] = max(0, archived - in_memory)
    tenants = {
        tenant: TenantStats(
            resident, busy[tenant], waiting.get(tenant, 0), None if cap == UNLIMITED else int(cap), stuck
        )
        for tenant, (resident, cap, stuck) in groups.items()
    }
    return PoolStats(
        sessions=sessions,
        max_sessions=limits.max_sessions,
        max_busy=limits.max_busy,
        max_stuck_per_tenant=limits.max_stuck_per_tenant,
        queue_length=queue_length,
        queue_limit=limits.queue_limit,
        tenants=tenants,
        evictions=evictions,
        rehydrations=engine.rehydrations,
        ghost_hits=counters.ghost_hits,
        refusals=refusals,
        openings=counters.openings,
        opening_failures=counters.opening_failures,
        close_failures=engine.close_failures,
        abandoned=counters.abandoned,
        leaks=counters.leaks,
        turns=engine.turns,
        awake=awake,
        unsaved=unsaved,
        wait_s_p50=_quantile(waits, 0.5),
        wait_s_p95=_quantile(waits, 0.95),
        wait_s_p99=_quantile(waits, 0.99),
        rung=rung,
    )


def _quantile(ordered: list[float], part: float) -> float:
    return ordered[min(len(ordered) - 1, int(len(ordered) * part))] if ordered else 0.0
