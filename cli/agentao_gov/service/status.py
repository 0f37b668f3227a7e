"""`GET /v1/status`: how the instance is, as JSON. A tenant sees its own part, the operator everything."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Mapping
from importlib.metadata import version
from typing import TYPE_CHECKING

from agentao_gov.governor.report import BudgetLine
from agentao_gov.monitor.alerts import Alert
from agentao_gov.monitor.measure import quantile
from agentao_gov.monitor.monitor import RUNGS, Observed
from agentao_gov.process.owner import host_token
from agentao_gov.process.tree import ORPHANS_KILLED
from agentao_gov.service.answers import (
    AlertState,
    Instance,
    MemoryState,
    PlanState,
    PoolState,
    ProcessState,
    ServiceStatus,
    Session,
    TurnsState,
)
from agentao_gov.service.tenants import ADMIN

if TYPE_CHECKING:
    from agentao_gov.pool.types import SessionInfo
    from agentao_gov.service.gateway import Gateway

#: Turns and budget lines shown: a page for a person, not an export.
ROWS_MAX = 100


def status_json(gateway: Gateway, tenant: str) -> ServiceStatus:
    """The document for one tenant, or for `ADMIN`. Measures when the last picture is stale: call it on a thread.

    Without keys everybody is the operator, and sees everything.
    """
    seen = gateway.monitor.observe()
    everything = gateway.tenants.open or tenant == ADMIN
    whose = None if everything else tenant
    reasons = gateway.not_ready_because()
    own = seen.pool.tenants.get(tenant)
    return {
        "schema": "agentao-gov/status/1",
        "instance": _instance(gateway, whose),
        "ready": not reasons,
        "not_ready_because": reasons,
        "shutdown_rung": {"name": RUNGS[seen.rung], "number": seen.rung},
        "pool": _pool(gateway, seen) if whose is None else _tenants_pool(gateway, seen, whose),
        "busy": seen.pool.busy if everything else (own.busy if own else 0),
        "queue": {
            "length": seen.pool.queue_length if everything else (own.waiting if own else 0),
            "limit": seen.pool.queue_limit,
        },
        "hibernated": _by_state(seen).get("hibernated", 0) if everything else None,
        "tenants": {
            name: {
                "resident": stats.resident,
                "busy": stats.busy,
                "waiting": stats.waiting,
                "max_sessions": stats.max_sessions,
            }
            for name, stats in seen.pool.tenants.items()
            if everything or name == tenant
        },
        "turns": _turns(gateway, whose),
        "processes": _processes(seen) if whose is None else _tenants_processes(seen, whose),
        "memory": _memory(gateway, seen) if whose is None else _tenants_memory(seen, whose),
        "budgets": [line.model_dump(mode="json") for line in _visible(seen.budgets, whose)[:ROWS_MAX]],
        "alerts": [_alert(alert) for alert in seen.alerts] if everything else [],
        "capacity": _capacity(gateway),
    }


def history_json(gateway: Gateway) -> dict[str, list[int]]:
    """The last minutes, one figure a second, for a page that was just opened."""
    names = ("busy", "queue", "resident", "memory")
    looks = gateway.monitor.history()
    return {name: [look[n] for look in looks] for n, name in enumerate(names)}


def _instance(gateway: Gateway, tenant: str | None) -> Instance:
    offers = gateway.profiles.all() if tenant is None else gateway.profiles.of_tenant(tenant)
    return {
        "version": version("agentao-gov"),
        "pid": os.getpid(),
        "host": host_token(),
        "worker": gateway.worker,
        "workers": gateway.workers,
        "uptime_s": round(time.time() - gateway.started_at, 1),
        "profiles": [offer.name for offer in offers],
    }


def _by_state(seen: Observed) -> dict[str, int]:
    return {str(state): count for state, count in seen.pool.sessions.items() if str(state) != "gone"}


def _pool(gateway: Gateway, seen: Observed) -> PoolState:
    stats = seen.pool
    return {
        "mode": gateway.deployment.pool.mode,
        "sessions": _by_state(seen),
        "resident": stats.resident,
        "max_sessions": stats.max_sessions,
        "busy": stats.busy,
        "max_busy": stats.max_busy,
        "evictions": dict(stats.evictions),
        "rehydrations": stats.rehydrations,
        "refusals": dict(stats.refusals),
        "wait_ms": {
            "p50": round(stats.wait_s_p50 * 1000, 2),
            "p95": round(stats.wait_s_p95 * 1000, 2),
            "p99": round(stats.wait_s_p99 * 1000, 2),
        },
    }


def _tenants_pool(gateway: Gateway, seen: Observed, tenant: str) -> PoolState:
    """The tenant's own sessions under the pool's limits, which are told to clients that plan their load."""
    own = seen.pool.tenants.get(tenant)
    states = Counter(str(info.state) for info in gateway.pool.sessions() if info.key.tenant == tenant)
    return {
        "mode": gateway.deployment.pool.mode,
        "sessions": dict(states),
        "resident": own.resident if own else 0,
        "max_sessions": seen.pool.max_sessions,
        "busy": own.busy if own else 0,
        "max_busy": seen.pool.max_busy,
        "evictions": None,
        "rehydrations": None,
        "refusals": None,
        "wait_ms": None,
    }


def _turns(gateway: Gateway, tenant: str | None) -> TurnsState:
    now = time.time()
    flying = [turn for turn in list(gateway.in_flight.values()) if tenant is None or turn.order.key.tenant == tenant]
    flying.sort(key=lambda turn: turn.since)
    return {
        "ended": gateway.pool.stats().turns if tenant is None else None,
        "in_flight": [
            {
                "turn_id": turn.order.turn_id,
                "tenant": turn.order.key.tenant,
                "session": turn.order.key.session,
                "profile": turn.order.profile.profile.name,
                "age_s": round(now - turn.since, 2),
                "limit_s": gateway.turn_s_max(turn.order),
            }
            for turn in flying[:ROWS_MAX]
        ],
    }


def _processes(seen: Observed) -> ProcessState:
    m = seen.measurement
    held = [sum(kinds.values()) for kinds in m.session_processes.values()]
    return {
        "children": dict(m.children),
        "per_session": {"p50": int(quantile(held, 0.5)), "max": int(quantile(held, 1.0))},
        "orphans_killed": ORPHANS_KILLED.total,
        "mcp": m.mcp_processes,
        "open_fds": m.open_fds,
        "threads": m.threads,
        "threads_abandoned": seen.threads_abandoned,
        "cpu_s": round(m.cpu_s, 2),
    }


def _tenants_processes(seen: Observed, tenant: str) -> ProcessState:
    own = [kinds for key, kinds in seen.measurement.session_processes.items() if key.tenant == tenant]
    held = [sum(kinds.values()) for kinds in own]
    children = {kind: sum(kinds.get(kind, 0) for kinds in own) for kind in seen.measurement.children}
    return {
        "children": children,
        "per_session": {"p50": int(quantile(held, 0.5)), "max": int(quantile(held, 1.0))},
        "orphans_killed": None,
        "mcp": children.get("mcp", 0),
        "open_fds": None,
        "threads": None,
        "threads_abandoned": None,
        "cpu_s": None,
    }


def _memory(gateway: Gateway, seen: Observed) -> MemoryState:
    m = seen.measurement
    return {
        "process_bytes": m.rss_bytes,
        "children_bytes": sum(m.children_rss_bytes.values()),
        "total_bytes": m.total_bytes,
        "baseline_bytes": gateway.monitor.measurer.baseline_bytes,
        "session_bytes": _sizes(list(m.session_bytes.values())),
    }


def _tenants_memory(seen: Observed, tenant: str) -> MemoryState:
    sizes = [size for key, size in seen.measurement.session_bytes.items() if key.tenant == tenant]
    return {
        "process_bytes": None,
        "children_bytes": None,
        "total_bytes": sum(sizes),
        "baseline_bytes": None,
        "session_bytes": _sizes(sizes),
    }


def _sizes(sizes: list[int]) -> dict[str, int]:
    return {
        "p50": int(quantile(sizes, 0.5)),
        "p95": int(quantile(sizes, 0.95)),
        "max": int(quantile(sizes, 1.0)),
        "sum": sum(sizes),
    }


def _visible(lines: tuple[BudgetLine, ...], tenant: str | None) -> list[BudgetLine]:
    mine = [line for line in lines if tenant is None or line.key.partition("/")[0] == tenant]
    rank = {"tenant": 0, "user": 1, "session": 2, "turn": 3}
    return sorted(mine, key=lambda line: (rank[line.scope], -(line.used / line.limit if line.limit else 0.0)))


def _alert(alert: Alert) -> AlertState:
    rule = alert.rule
    return {
        "alert": rule.name,
        "active": alert.active,
        "since": alert.since,
        "value": alert.value,
        "line": rule.line,
        "limit": rule.limit,
        "unit": rule.unit,
        "message": alert.message,
        "remedy": rule.remedy,
    }


def _capacity(gateway: Gateway) -> PlanState | None:
    plan = gateway.deployment.capacity
    if plan.sessions is None and plan.mcp_processes is None and plan.memory_bytes is None:
        return None
    return {
        "sessions": plan.sessions,
        "mcp_processes": plan.mcp_processes,
        "memory_bytes": plan.memory_bytes,
        "alert_at": plan.alert_at,
    }


def session_json(info: SessionInfo, memory_bytes: int | None, processes: Mapping[str, int] | None = None) -> Session:
    """One session for its owner. `processes`: its own by kind; None: not measured yet."""
    return {
        "id": info.key.session,
        "object": "session",
        "state": str(info.state),
        "user": info.user,
        "profile": info.profile,
        "mode": info.mode,
        "model": info.model,
        "created_at": info.created_at,
        "last_turn_at": info.last_turn_at,
        "idle_s": None if info.idle_s is None else round(info.idle_s, 3),
        "turn_id": info.turn_id,
        "waiting": info.waiting,
        "memory_bytes": memory_bytes,
        "processes": None if processes is None else dict(processes),
        "usage": {
            "turns": info.usage.turns,
            "prompt_tokens": info.usage.prompt_tokens,
            "completion_tokens": info.usage.completion_tokens,
            "total_tokens": info.usage.total_tokens,
            "llm_calls": info.usage.llm_calls,
        },
    }
