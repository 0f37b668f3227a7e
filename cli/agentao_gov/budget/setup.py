"""From the deployment file to a ledger: which scopes a turn has, with which limits, and where it is kept."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, cast

from agentao_gov.budget.ledger import TokenLedger
from agentao_gov.budget.memory import MemoryStore
from agentao_gov.budget.prices import PriceTable
from agentao_gov.budget.redis.store import RedisStore
from agentao_gov.budget.sqlite.store import SqliteStore
from agentao_gov.budget.store import Store, StoreSettings
from agentao_gov.budget.types import LIMIT_TOKENS_MAX, Scope, ScopeLimit
from agentao_gov.budget.windows import zone
from agentao_gov.clock import SYSTEM_CLOCK, Clock
from agentao_gov.errors import ConfigError, UsageError

if TYPE_CHECKING:
    from agentao_gov.config import Deployment, ResolvedDeployment

#: The turn has one window whatever the zone.
_TURN_TIMEZONE = "UTC"


def scope_limits(
    deployment: ResolvedDeployment | Deployment | None,
    tenant: str,
    user: str,
    session: str,
    turn_id: str,
    turn_tokens: int | None,
) -> tuple[ScopeLimit, ...]:
    """The four scopes of a turn, in the ledger's fixed order: tenant, user, session, turn.

    User and session are named below their tenant, so that two tenants' `ann` never share a budget; their day is
    the tenant's day. A tenant's own `daily_tokens` wins over the deployment's; without a deployment the turn's own
    budget is the only one. Raises UsageError for names that could be taken for another's, or that cannot be written
    down.
    """
    _check_names(tenant, user, session)
    timezone = _TURN_TIMEZONE if deployment is None else tenant_timezone(deployment, tenant)
    of_tenant, of_user, of_session = _daily_limits(deployment, tenant)
    return (
        ScopeLimit(Scope("tenant", tenant), _bounded(of_tenant), timezone),
        ScopeLimit(Scope("user", f"{tenant}/{user}"), _bounded(of_user), timezone),
        ScopeLimit(Scope("session", f"{tenant}/{session}"), _bounded(of_session), timezone),
        ScopeLimit(Scope("turn", turn_id), _bounded(turn_tokens), _TURN_TIMEZONE),
    )


def limit_of(deployment: ResolvedDeployment | Deployment, scope: Scope) -> ScopeLimit:
    """A daily scope by its name alone: its limit and zone as the deployment has them."""
    tenant, _, name = scope.key.partition("/")
    user, session = (name, "") if scope.kind == "user" else ("", name)
    limits = scope_limits(deployment, tenant, user, session, "", None)
    return next(limit for limit in limits if limit.scope.kind == scope.kind)


def tenant_timezone(deployment: ResolvedDeployment | Deployment, tenant: str) -> str:
    """The zone whose calendar the tenant's budgets follow."""
    config = _plain(deployment)
    entry = config.tenants.get(tenant) or config.tenants.get("default")
    own: str | None = entry.timezone if entry else None
    shared: str = config.budget.timezone
    return own or shared


def open_ledger(deployment: ResolvedDeployment, clock: Clock = SYSTEM_CLOCK) -> TokenLedger:
    """Opens the ledger that `deployment` names; creates it where there is none. The caller closes it.

    `clock`: time for budget days and waits. Raises ConfigError for an unknown zone or store, StoreError when it cannot
    be used (with `on_store_failure = "allow"` each later use does). Blocks for file access.
    """
    budget = deployment.deployment.budget
    for name in {budget.timezone, *(t.timezone for t in deployment.deployment.tenants.values() if t.timezone)}:
        zone(name)
    prices = PriceTable.load(deployment.prices_path)
    settings = StoreSettings(warn_at=tuple(sorted(budget.warn_at)), price=prices.price)

    def open_store() -> Store:
        return _open_store(deployment, clock, settings)

    # Where calls may go on without a record, a store that cannot be opened is tried again with every heartbeat.
    store = open_store if budget.on_store_failure == "allow" else open_store()
    return TokenLedger(store, clock, settings=settings, on_store_failure=budget.on_store_failure)


def ledger_path(deployment: ResolvedDeployment) -> Path:
    """Where a SQLite ledger is: `[budget] path`, relative to the state directory."""
    return deployment.state_dir / Path(deployment.deployment.budget.path).expanduser()


def _open_store(deployment: ResolvedDeployment, clock: Clock, settings: StoreSettings) -> Store:
    name, retain_s = deployment.deployment.budget.store, deployment.deployment.budget.retain_journal_s
    if name == "memory":
        return MemoryStore(clock, settings)
    if name == "sqlite":
        return SqliteStore(ledger_path(deployment), clock, settings, retain_s=retain_s)
    if name.startswith(("redis://", "rediss://", "unix://")):
        mark = deployment.state_dir / "ledger.redis.mark"
        mark.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        return RedisStore(name, settings, mark=mark, retain_s=retain_s)
    raise ConfigError(f"There is no ledger store {name!r}.", hint="Use sqlite, memory or redis://HOST:PORT/DB.")


def _check_names(tenant: str, user: str, session: str) -> None:
    if "/" in tenant:
        # Its user `c` would share a budget with the user `b/c` of tenant `a`.
        raise UsageError(f"A tenant's name has no slash: {tenant!r}.")
    for name in (tenant, user, session):
        try:
            name.encode()
        except UnicodeEncodeError as error:
            raise UsageError(f"A name is no valid text: {name!r}.", hint="Write it in UTF-8.") from error


def _bounded(limit: int | None) -> int | None:
    return None if limit is None else min(limit, LIMIT_TOKENS_MAX)


def _daily_limits(
    deployment: ResolvedDeployment | Deployment | None, tenant: str
) -> tuple[int | None, int | None, int | None]:
    if deployment is None:
        return None, None, None
    config = _plain(deployment)
    entry = config.tenants.get(tenant) or config.tenants.get("default")
    own = entry.daily_tokens if entry else None
    budget = config.budget
    return budget.tenant_daily_tokens if own is None else own, budget.user_daily_tokens, budget.session_daily_tokens


def _plain(deployment: ResolvedDeployment | Deployment) -> Deployment:
    inner = getattr(deployment, "deployment", None)
    return cast("Deployment", deployment if inner is None else inner)
