"""Pictures of the pool for people and metrics, taken under the lock and painted outside of it."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, NamedTuple

from agentao_gov.pool.groups import UNLIMITED
from agentao_gov.pool.types import (
    EVICTIONS,
    PoolStats,
    SessionInfo,
    SessionState,
    SessionUsage,
    TenantStats,
    TurnOrder,
)

if TYPE_CHECKING:
    from agentao_gov.governor.types import SessionKey
    from agentao_gov.pool.archive import SessionHead
    from agentao_gov.pool.engine import Engine
    from agentao_gov.pool.entries import Entry
    from agentao_gov.pool.keeper import Resident

__all__ = ["info_of_head", "resident_infos", "stats_of"]


class _Sketch(NamedTuple):
    """What must be read under the lock."""

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
        sketches = [
            sketch
            for entry in chosen
            if (tenant is None or entry.key.tenant == tenant) and (sketch := _sketch(engine, entry)) is not None
        ]
    now, wall = engine.clock.monotonic(), engine.clock.time()
    return [_paint(sketch, now, wall) for sketch in sketches]


def _sketch(engine: Engine, entry: Entry) -> _Sketch | None:
    if entry.is_deleted:
        return None
    resident, order = engine.residents.get(entry.key), engine.opening.get(entry.key)
    if resident is None and order is None:
        return None
    ticket = engine.running.get(entry.key)
    turn_id = ticket.order.turn_id if ticket is not None else None
    return _Sketch(entry.state, len(entry.waiters), entry.idle_since, turn_id, resident, order)


def _paint(sketch: _Sketch, now: float, wall: float) -> SessionInfo:
    if sketch.resident is None:
        order = sketch.order
        assert order is not None
        return SessionInfo(
            order.key, sketch.state, order.user, order.profile.profile.name, order.mode, order.model.name,
            SessionUsage(), wall, None, waiting=sketch.waiting,
        )  # fmt: skip
    head, spec = sketch.resident.head, sketch.resident.spec
    idle = sketch.state is SessionState.IDLE
    return SessionInfo(
        key=spec.key,
        state=sketch.state,
        user=head.user,
        profile=spec.profile.profile.name,
        mode=spec.mode,
        model=spec.model.name,
        usage=head.usage,
        created_at=head.created_at,
        last_turn_at=head.last_turn_at if head.usage.turns else None,
        idle_s=max(0.0, now - sketch.idle_since) if idle else None,
        turn_id=sketch.turn_id,
        waiting=sketch.waiting,
        process_ids=sketch.resident.host.process_ids(),
    )


def info_of_head(head: SessionHead) -> SessionInfo:
    """A session that is on disk alone."""
    return SessionInfo(
        head.key, SessionState.HIBERNATED, head.user, head.profile, head.mode, head.model,
        head.usage, head.created_at, head.last_turn_at,
    )  # fmt: skip


def stats_of(engine: Engine, rung: str) -> PoolStats:
    """The counters. Takes the lock for microseconds, and never while files are read."""
    archived = engine.keeper.archive.count()
    with engine.lock:
        core = engine.core
        table, counters, limits = core.table, core.counters, core.limits
        sessions: dict[SessionState, int] = {
            state: table.count[state] for state in SessionState if state is not SessionState.GONE
        }
        caps = {group.id[0]: (group.resident, group.cap) for group in table.tenants()}
        busy = Counter(key.tenant for key in engine.running)
        waiting = core.waiting_by_tenant()
        queue_length = core.queue_length
        evictions = {reason.value: counters.evictions[reason.value] for reason in sorted(EVICTIONS)}
        refusals = dict(counters.refusals)
        waits = sorted(engine.waits)
        awake = engine.rests.awake
        in_memory = sum(resident.archived and resident.head.version > 0 for resident in engine.residents.values())
    sessions[SessionState.HIBERNATED] = max(0, archived - in_memory)
    tenants = {
        tenant: TenantStats(resident, busy[tenant], waiting.get(tenant, 0), None if cap == UNLIMITED else int(cap))
        for tenant, (resident, cap) in caps.items()
    }
    return PoolStats(
        sessions=sessions,
        max_sessions=limits.max_sessions,
        max_busy=limits.max_busy,
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
        wait_s_p50=_quantile(waits, 0.5),
        wait_s_p95=_quantile(waits, 0.95),
        wait_s_p99=_quantile(waits, 0.99),
        rung=rung,
    )


def _quantile(ordered: list[float], part: float) -> float:
    return ordered[min(len(ordered) - 1, int(len(ordered) * part))] if ordered else 0.0
