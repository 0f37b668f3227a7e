"""Requests and scopes as the ledger's tests need them."""

from __future__ import annotations

from agentao_gov.budget import Balance, ReserveRequest, Scope, ScopeLimit, Store

__all__ = ["PLENTY", "balance", "call", "idle", "scopes"]

PLENTY = 10**9


def scopes(
    *,
    tenant: int | None = PLENTY,
    user: int | None = PLENTY,
    session: int | None = PLENTY,
    turn: int | None = PLENTY,
    names: tuple[str, str, str, str] = ("acme", "ann", "s-1", "t-1"),
    timezone: str = "UTC",
) -> tuple[ScopeLimit, ...]:
    """The four scopes of a turn."""
    t, u, s, n = names
    return (
        ScopeLimit(Scope("tenant", t), tenant, timezone),
        ScopeLimit(Scope("user", f"{t}/{u}"), user, timezone),
        ScopeLimit(Scope("session", f"{t}/{s}"), session, timezone),
        ScopeLimit(Scope("turn", n), turn),
    )


def call(
    call_id: str,
    limits: tuple[ScopeLimit, ...] | None = None,
    *,
    prompt: int = 100,
    output: tuple[int, int] = (10, 100),
    model: str = "",
) -> ReserveRequest:
    """One model call; its tenant and user are those of the scopes."""
    limits = limits or scopes()
    tenant, _, user = limits[1].scope.key.partition("/")
    return ReserveRequest(call_id, limits, prompt, output[0], output[1], tenant, user, model)


def balance(store: Store, limits: tuple[ScopeLimit, ...], kind: str = "tenant") -> Balance:
    """The balance of one scope."""
    return next(b for b in store.balances(limits) if b.scope.kind == kind)


def idle(store: Store, limits: tuple[ScopeLimit, ...]) -> bool:
    """Whether nothing is held anywhere: what every workload has to end with."""
    return all(b.reserved == 0 for b in (*store.balances(limits), *store.all_balances("all")))
