"""One worker's part of the deployment's limits: N workers together must not hold N times what the file allows."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import TYPE_CHECKING

from agentao_gov.monitor.logs import log_event

if TYPE_CHECKING:
    from agentao_gov.config import ResolvedDeployment

__all__ = ["share_of"]


def share_of(deployment: ResolvedDeployment, workers: int) -> ResolvedDeployment:
    """The deployment with pool limits and tenant caps divided by the number of workers, each at least 1.

    Token budgets are not divided: the ledger is shared and exact. A cap below the number of workers cannot be
    divided; it is told in the log.
    """
    if workers == 1:
        return deployment
    config = deployment.deployment

    def part(name: str, limit: int | None) -> int | None:
        if limit is None:
            return None
        if limit < workers:
            log_event("limit below the number of workers", logging.WARNING, key=name, limit=limit, workers=workers)
        return max(1, limit // workers)

    pool = config.pool.model_copy(
        update={
            "max_sessions": part("pool.max_sessions", config.pool.max_sessions),
            "max_busy": part("pool.max_busy", config.pool.max_busy),
            "queue_limit": config.pool.queue_limit // workers,
        }
    )
    tenants = {
        name: tenant.model_copy(
            update={
                field: part(f"tenants.{name}.{field}", getattr(tenant, field))
                for field in ("max_sessions", "max_sessions_per_user")
            }
        )
        for name, tenant in config.tenants.items()
    }
    capacity = config.capacity.model_copy(
        update={
            name: None if (limit := getattr(config.capacity, name)) is None else limit // workers
            for name in ("sessions", "mcp_processes", "memory_bytes")
        }
    )
    shared = config.model_copy(update={"pool": pool, "tenants": tenants, "capacity": capacity})
    return replace(deployment, deployment=shared)
