"""From the deployment file to a ledger: which scopes a turn has, with which limits, and where it is kept."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, cast

from agentao_gov.budget.ledger import TokenLedger
from agentao_gov.budget.memory import MemoryStore
from agentao_gov.budget.prices import PriceTable
from agentao_gov.budget.redis.store import RedisStore
from agentao_gov.budget.sqlite.store import SqliteStore
from agentao_gov.budget.store import JournalRow, Refused, Settlement, Store, StoreSettings, Verification, Waiting
from agentao_gov.budget.types import LIMIT_TOKENS_MAX, Balance, Reservation, ReserveRequest, Scope, ScopeLimit
from agentao_gov.budget.windows import zone
from agentao_gov.clock import SYSTEM_CLOCK, Clock
from agentao_gov.errors import ConfigError, StoreError, UsageError

if TYPE_CHECKING:
    from agentao_gov.config import Deployment, ResolvedDeployment

__all__ = ["LateStore", "ledger_path", "limit_of", "open_ledger", "scope_limits", "tenant_timezone"]


# A store that could not be opened yet: for operators who would rather go on without a ledger than stop.


class LateStore:
    """Implements Store: every step raises what the opening did, until a heartbeat's try succeeds. Thread-safe."""

    def __init__(self, error: StoreError, reopen: Callable[[], Store]) -> None:
        self._error = error
        self._reopen = reopen
        #: Set once.
        self._store: Store | None = None
        self._settings = StoreSettings()

    @property
    def settings(self) -> StoreSettings:
        """What the ledger told this store."""
        return self._settings

    @settings.setter
    def settings(self, settings: StoreSettings) -> None:
        self._settings = settings
        if self._store is not None:
            self._store.settings = settings

    def _opened(self) -> Store:
        if self._store is None:
            raise StoreError(self._error.message, hint=self._error.hint)
        return self._store

    def heartbeat(self) -> None:
        """See Store."""
        if self._store is None:
            store = self._reopen()
            store.settings = self._settings
            self._store = store
        self._store.heartbeat()

    def reserve(self, request: ReserveRequest) -> Reservation | Refused | Waiting:
        """See Store."""
        return self._opened().reserve(request)

    def withdraw(self, reservation_id: str) -> None:
        """See Store."""
        self._opened().withdraw(reservation_id)

    def dispatch(self, reservation_id: str) -> None:
        """See Store."""
        self._opened().dispatch(reservation_id)

    def extend(self, reservation_id: str, output_tokens: int) -> int:
        """See Store."""
        return self._opened().extend(reservation_id, output_tokens)

    def settle(self, reservation_id: str, prompt: int, completion: int, estimated: int) -> Settlement:
        """See Store."""
        return self._opened().settle(reservation_id, prompt, completion, estimated)

    def charge(self, reservation_id: str, prompt: int, completion: int) -> Settlement:
        """See Store."""
        return self._opened().charge(reservation_id, prompt, completion)

    def release(self, reservation_id: str) -> None:
        """See Store."""
        self._opened().release(reservation_id)

    def grant(self, scope: ScopeLimit, tokens: int) -> Balance:
        """See Store."""
        return self._opened().grant(scope, tokens)

    def balances(self, scopes: Sequence[ScopeLimit]) -> tuple[Balance, ...]:
        """See Store."""
        return self._opened().balances(scopes)

    def all_balances(self, window: str | None = None) -> tuple[Balance, ...]:
        """See Store."""
        return self._opened().all_balances(window)

    def answered(self, reservation_ids: Sequence[str]) -> list[str]:
        """See Store."""
        return self._opened().answered(reservation_ids)

    def serve_waiting(self) -> None:
        """See Store."""
        self._opened().serve_waiting()

    def journal(self) -> Iterable[JournalRow]:
        """See Store."""
        return self._opened().journal()

    def verify(self) -> Verification:
        """See Store."""
        return self._opened().verify()

    def close(self) -> None:
        """See Store."""
        if self._store is not None:
            self._store.close()


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
    try:
        store = _open_store(deployment, clock, settings)
    except StoreError as error:
        if budget.on_store_failure != "allow":
            raise
        # Each call is let through with a line in the log; what comes later is recorded once the store is back.
        store = LateStore(error, lambda: _open_store(deployment, clock, settings))
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
