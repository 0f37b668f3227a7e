"""From the deployment file to what the pool decides by."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from agentao_gov.pool.ladder import RungTimes
from agentao_gov.pool.limits import PoolLimits, TenantCaps

if TYPE_CHECKING:
    from agentao_gov.config import Deployment

__all__ = ["pool_limits", "rung_times"]


def pool_limits(deployment: Deployment) -> PoolLimits:
    """The core's limits. A tenant that is not listed has the caps of `[tenants.default]`."""
    pool = deployment.pool
    caps = {
        name: TenantCaps(tenant.max_sessions, tenant.max_sessions_per_user)
        for name, tenant in deployment.tenants.items()
    }
    return PoolLimits(
        max_sessions=pool.max_sessions,
        max_busy=pool.max_busy,
        max_opening=pool.max_opening or os.cpu_count() or 1,
        queue_limit=pool.queue_limit,
        queue_timeout_s=pool.queue_timeout_s,
        session_ttl_s=pool.session_ttl_s,
        caps=caps,
        default_caps=caps.get("default", TenantCaps()),
    )


def rung_times(deployment: Deployment) -> RungTimes:
    """The shutdown ladder's times."""
    times = deployment.shutdown
    return RungTimes(
        lame_duck_s=times.lame_duck_s,
        drain_s=times.drain_s,
        cancel_s=times.cancel_s,
        close_s=times.close_s,
        kill_s=times.kill_s,
        budget_s=deployment.server.shutdown_budget_s,
    )
