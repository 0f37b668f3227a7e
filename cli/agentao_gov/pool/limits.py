"""The core's limits: every wait, queue and list has one. What the deployment file sets has its default there."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field

from agentao_gov.config.deployment import Deployment, Pool
from agentao_gov.pool.ladder import RungTimes

_POOL = Pool()
_CORES = os.cpu_count() or 1


@dataclass(frozen=True, slots=True)
class TenantCaps:
    """How many sessions in memory a tenant, and each of its users, may have. None: unlimited."""

    sessions: int | None = None
    sessions_per_user: int | None = None


@dataclass(frozen=True, slots=True)
class PoolLimits:
    """What the core decides by. Seconds, counts; changed only as a whole, through `PoolCore.resize`."""

    #: Sessions in memory: the memory bound.
    max_sessions: int = _POOL.max_sessions
    #: Turns at once: the bound on threads and on the model's concurrency.
    max_busy: int = _POOL.max_busy
    #: Openings at once. Building an agent is CPU work: more than the cores only makes each slower.
    max_opening: int = _CORES
    queue_limit: int = _POOL.queue_limit
    #: Stuck sessions after which a tenant gets no further turn: what it does counts against itself, before it is enough
    #: for the service to start anew.
    max_stuck_per_tenant: int = _POOL.max_stuck
    queue_timeout_s: float = _POOL.queue_timeout_s
    session_ttl_s: float = _POOL.session_ttl_s
    #: A session with MCP servers has 0.9-3.5 s to start on an idle machine; ten times that is hung, unless the profile
    #: gives its servers longer.
    open_timeout_s: float = 35.0
    #: An opening that takes longer gives its place among the openings to another: it waits for something, it does not
    #: work. Two sessions whose servers hang must not keep everybody else's sessions from being opened; others wait for
    #: them this long, once. Most agents with servers are there by then.
    open_patience_s: float = 2.0
    caps: Mapping[str, TenantCaps] = field(default_factory=dict)
    #: For tenants that are not listed.
    default_caps: TenantCaps = TenantCaps()
    #: A session rehydrated within this time of its eviction should not have been evicted.
    ghost_window_s: float = 60.0
    #: Keys remembered for that; 10,000 evictions a minute are far beyond what one process serves.
    ghost_limit: int = 10_000
    #: Memory, as a part of the plan's, at which idle sessions start to go, and at which that stops.
    memory_start: float = 0.90
    memory_stop: float = 0.80
    #: Sessions evicted per memory reading: freed memory shows late, so one reading must not empty the pool.
    memory_batch: int = 8
    #: A close that takes longer is not counted on: whoever waits for room gets another session's. A polite MCP server
    #: takes 0.3 s to end; one that hangs for half a minute must cost the others this once and no more.
    close_patience_s: float = 0.5
    #: How long a session whose archive could not be written is left alone before the next try.
    pin_s: float = 5.0

    def open_limit_s(self, servers_s: float) -> float:
        """After how many seconds an opening counts as hung whose MCP servers may need `servers_s` to start."""
        return max(self.open_timeout_s, servers_s)

    def caps_of(self, tenant: str) -> TenantCaps:
        """The caps of one tenant."""
        return self.caps.get(tenant, self.default_caps)


def pool_limits(deployment: Deployment) -> PoolLimits:
    """The limits of a `deployment`. A tenant that is not listed has the caps of `[tenants.default]`."""
    pool = deployment.pool
    caps = {
        name: TenantCaps(tenant.max_sessions, tenant.max_sessions_per_user)
        for name, tenant in deployment.tenants.items()
    }
    return PoolLimits(
        max_sessions=pool.max_sessions,
        max_busy=pool.max_busy,
        max_opening=pool.max_opening or _CORES,
        queue_limit=pool.queue_limit,
        # A single tenant harms nobody but itself.
        max_stuck_per_tenant=pool.max_stuck_per_tenant or max(1, pool.max_stuck // min(2, len(caps) or 1)),
        queue_timeout_s=pool.queue_timeout_s,
        session_ttl_s=pool.session_ttl_s,
        caps=caps,
        default_caps=caps.get("default", TenantCaps()),
    )


def rung_times(deployment: Deployment) -> RungTimes:
    """The times of a `deployment`'s shutdown ladder."""
    times = deployment.shutdown
    return RungTimes(
        lame_duck_s=times.lame_duck_s,
        drain_s=times.drain_s,
        cancel_s=times.cancel_s,
        close_s=times.close_s,
        kill_s=times.kill_s,
        budget_s=deployment.server.shutdown_budget_s,
    )
