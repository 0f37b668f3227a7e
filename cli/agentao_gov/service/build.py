"""Assembles one process's service: profiles with their models, keys, monitor, metrics, and the gateway over a pool."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from starlette.types import ASGIApp

from agentao_gov.budget import TokenLedger, scope_limits
from agentao_gov.budget.types import ScopeLimit
from agentao_gov.clock import Deadline
from agentao_gov.config import (
    Deployment,
    ModelChoice,
    Overrides,
    ResolvedDeployment,
    ResolvedProfile,
    fit_to_model,
    load_profile,
    profile_paths,
)
from agentao_gov.errors import ConfigError
from agentao_gov.governor.turn import TurnObserver
from agentao_gov.governor.types import SessionKey, SessionSpec
from agentao_gov.monitor import Metrics, Monitor, plan_rules
from agentao_gov.monitor.audit import AuditFile
from agentao_gov.monitor.budgets import BudgetWatch
from agentao_gov.monitor.logs import log_event, log_pool_event
from agentao_gov.monitor.tracing import Tracing
from agentao_gov.pool.events import PoolEvent, TurnEnded
from agentao_gov.process.sandbox import find_layers, require_sandbox
from agentao_gov.service.app import create_app
from agentao_gov.service.gateway import Gateway
from agentao_gov.service.peers import NO_PEERS, Peers
from agentao_gov.service.tenants import OfferedProfile, ProfileCatalog, TenantDirectory

if TYPE_CHECKING:
    from agentao_gov.config import ResolvedDeployment
    from agentao_gov.governor import Governor
    from agentao_gov.pool import AgentPool

#: How long `warm_up` may take.
_WARM_S_MAX = 10.0


@dataclass(frozen=True, slots=True)
class Service:
    """One process's service: the application, and what must be closed after it."""

    app: ASGIApp
    gateway: Gateway
    #: What watches turns; give them to the governor.
    observers: tuple[TurnObserver, ...]

    def close(self) -> None:
        """Ends the monitor, the executors and the audit file. The pool is its owner's to close."""
        self.gateway.monitor.close()
        self.gateway.executors.close()
        for observer in self.observers:
            if isinstance(observer, AuditFile):
                observer.close()


def offered_profiles(
    deployment: ResolvedDeployment, choose: Callable[[ResolvedProfile], ModelChoice], overrides: Overrides
) -> dict[str, OfferedProfile]:
    """Every profile that some tenant may use, with the model that `choose` gives it.

    `overrides`: what the command line sets, in profiles as in the deployment. Raises ConfigError for one that cannot
    be served.
    """
    tenants = deployment.deployment.tenants.values()
    wanted: set[str] | None = set()
    for tenant in tenants:
        wanted = None if tenant.profiles is None or wanted is None else wanted | set(tenant.profiles)
    if not tenants:
        wanted = None
    names = [name for name in profile_paths(deployment) if wanted is None or name in wanted]
    offered: dict[str, OfferedProfile] = {}
    for name in names:
        resolved = load_profile(name, deployment=deployment, overrides=overrides)
        if resolved.profile.tools.sandbox == "required":
            require_sandbox(f'Profile {name} says [tools] sandbox = "required"', find_layers())
        # Clients call a profile by the name it is found by, and its turns are reported under that name.
        resolved = replace(resolved, profile=resolved.profile.model_copy(update={"name": name}))
        model = choose(resolved)
        offered[name] = OfferedProfile(fit_to_model(resolved, model), model)
    return offered


def build_service(
    deployment: ResolvedDeployment,
    pool: AgentPool,
    ledger: TokenLedger,
    offered: Mapping[str, OfferedProfile],
    *,
    host: str | None = None,
    worker: int = 0,
    workers: int = 1,
    restarts: int = 0,
    not_ours: Collection[int] = (),
    peers: Peers = NO_PEERS,
) -> Service:
    """The service over `pool` and `ledger`. Starts the monitor's thread; `Service.close` ends it.

    `offered`: by name. `host`: where it listens, if not where the deployment says. `worker`, `workers`: this process's
    number and how many there are. `restarts`: how often this process was started again. `not_ours`: child processes
    that are no part of the service, like a local model. `peers`: the other workers.
    Raises ConfigError where the listener would be open to other machines without keys.
    """
    config = deployment.deployment
    directory = TenantDirectory(
        {name: tenant.api_key_sha256 for name, tenant in config.tenants.items()},
        host=host or config.server.host,
        admin_sha256=config.admin.api_key_sha256,
    )
    if config.server.metrics == "admin" and not config.admin.api_key_sha256:
        raise ConfigError(
            'Nobody could read /metrics: `[server] metrics = "admin"` needs an admin key.',
            hint="Create one with `agentao-gov admin key`.",
        )
    catalog = ProfileCatalog(offered, {name: tenant.profiles for name, tenant in config.tenants.items()})
    known = [name for name in config.tenants if name != "default"] or ["default"]
    monitor = _monitor(config, pool, ledger, known, not_ours)
    metrics = Metrics(monitor.observe, tenants=known, restarts=restarts)
    _connect(pool, ledger, monitor.budgets, metrics)
    gateway = Gateway(
        pool=pool,
        deployment=config,
        profiles=catalog,
        tenants=directory,
        monitor=monitor,
        metrics=metrics,
        worker=worker,
        workers=workers,
        peers=peers,
    )
    observers: tuple[TurnObserver, ...] = (AuditFile(deployment.state_dir / "audit"), Tracing())
    monitor.start()
    return Service(create_app(gateway), gateway, observers)


def _monitor(
    config: Deployment, pool: AgentPool, ledger: TokenLedger, known: Sequence[str], not_ours: Collection[int]
) -> Monitor:
    """What measures the process, watches the budgets of the known tenants, and alerts on the capacity plan."""

    def tenant_limit(tenant: str) -> ScopeLimit:
        return scope_limits(config, tenant, "", "", "", None)[0]

    plan = config.capacity
    rules = plan_rules(
        sessions=plan.sessions,
        mcp_processes=plan.mcp_processes,
        memory_bytes=plan.memory_bytes,
        alert_at=plan.alert_at,
        stuck_max=config.pool.max_stuck,
    )
    return Monitor(
        pool,
        BudgetWatch(ledger, tenant_limit, known),
        rules,
        planned_sessions=plan.sessions,
        on_memory=pool.memory_used,
        not_ours=not_ours,
    )


def _connect(pool: AgentPool, ledger: TokenLedger, budgets: BudgetWatch, metrics: Metrics) -> None:
    """Brings what happens in pool and ledger to metrics, budgets and log."""

    def on_pool_event(event: PoolEvent) -> None:
        metrics.on_event(event)
        if isinstance(event, TurnEnded):
            budgets.on_report(event.report)
        log_pool_event(event)

    pool.subscribe(on_pool_event)
    ledger.subscribe(metrics.on_budget_event)


def limits_per_worker(deployment: ResolvedDeployment, workers: int) -> ResolvedDeployment:
    """One worker's part of the deployment: pool limits and tenant caps divided by `workers`, each at least 1.

    N workers together must not hold N times what the file allows.
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


def warm_up(governor: Governor, offered: Iterable[OfferedProfile]) -> None:
    """Does before the service is ready what its first turn would else wait for: imports of 40 MiB and 0.5 s.

    Opens and closes one agent of the first of `offered`, without MCP servers. Nothing is sent; a failure is left for
    the first turn to tell.
    """
    offer = next(iter(offered), None)
    if offer is None:
        return
    plain = offer.resolved.profile
    profile = replace(
        offer.resolved, profile=plain.model_copy(update={"mcp": plain.mcp.model_copy(update={"servers": {}})})
    )
    try:
        with tempfile.TemporaryDirectory(prefix="agentao-gov-warm-") as folder:
            key = SessionKey("default", "warm-up")
            spec = SessionSpec(key, "warm-up", profile, offer.model, Path(folder), "in-process")
            deadline = Deadline.after(_WARM_S_MAX)
            governor.open(spec, None, deadline).close(deadline)
    except Exception:
        logging.getLogger(__name__).warning("warm-up failed", exc_info=True)
