"""Names and amounts that nobody should send: no budget is shared by accident, and no sum breaks."""

from __future__ import annotations

from pathlib import Path

import pytest

from agentao_gov.budget import Reservation, SqliteStore, Store, StoreSettings, TokenLedger, limit_of, scope_limits
from agentao_gov.budget.reservation import Price
from agentao_gov.budget.store import Refused
from agentao_gov.budget.types import CALL_TOKENS_MAX, LIMIT_TOKENS_MAX, Scope, ScopeLimit
from agentao_gov.clock import Deadline
from agentao_gov.config import Deployment
from agentao_gov.errors import BudgetExhaustedError, UsageError
from tests.budget.calls import balance, call, idle, scopes

NAMES = [
    "a/b",
    "日本語 ж",
    "x" * 10_000,
    "\0",
    "line\nbreak\ttab",
    "'; DROP TABLE lines; --",
    "ann UTC 2026-01-01",
    "*",
    "%2F",
]


@pytest.mark.parametrize("name", NAMES)
def test_odd_names_have_budgets_of_their_own(store: Store, name: str) -> None:
    """As users and as sessions, beside the plain ones."""
    odd = scopes(user=300, session=300, names=("acme", name, name, f"t-{name}"))
    plain = scopes(user=300, session=300)

    held = [store.reserve(call("c-1", odd)), store.reserve(call("c-2", plain))]
    store.settle("c-1", 100, 20, 0)
    store.settle("c-2", 100, 30, 0)

    assert all(isinstance(answer, Reservation) for answer in held)
    assert [b.used for b in store.balances(odd)] == [250, 120, 120, 120]
    assert [b.used for b in store.balances(plain)] == [250, 130, 130, 130]
    result = store.verify()
    assert result.ok, result.problems


def test_kinds_are_told_apart_where_keys_are_alike(store: Store) -> None:
    """A user and a session of one name, and a tenant that is called like a user's key."""
    same = scopes(names=("acme", "x", "x", "acme/x"))
    tenant = (ScopeLimit(Scope("tenant", "acme/x"), 1_000),)
    store.reserve(call("c-1", same))

    store.settle("c-1", 100, 20, 0)

    assert [b.used for b in store.balances(same)] == [120] * 4
    assert [b.used for b in store.balances(tenant)] == [0]


@pytest.mark.parametrize("names", [("a/b", "c", "s"), ("a", "c\ud800", "s"), ("a", "c", "\udcff")])
def test_names_that_could_be_anothers_or_no_text_are_refused(names: tuple[str, str, str]) -> None:
    """Before anything is reserved: tenant `a/b` and user `c` would be user `b/c` of tenant `a`."""
    with pytest.raises(UsageError):
        scope_limits(Deployment(), *names, "t", 100)


def test_limits_beyond_all_measure_are_limits(store: Store) -> None:
    """A limit of 10^30 tokens limits nothing, and overflows nothing."""
    deployment = Deployment.model_validate({"budget": {"user_daily_tokens": 10**30, "tenant_daily_tokens": 2**63}})
    limits = scope_limits(deployment, "acme", "ann", "s", "t", 10**25)

    assert isinstance(store.reserve(call("c-1", limits)), Reservation)
    store.settle("c-1", 100, 20, 0)

    assert [b.limit for b in store.balances(limits)] == [LIMIT_TOKENS_MAX, LIMIT_TOKENS_MAX, None, LIMIT_TOKENS_MAX]
    assert limit_of(deployment, Scope("user", "acme/ann")).limit == LIMIT_TOKENS_MAX


def test_a_provider_that_reports_the_absurd_breaks_no_sum(store: Store, caplog: pytest.LogCaptureFixture) -> None:
    """It counts as the largest call there can be, with a warning, and the budget is spent."""
    ledger = TokenLedger(store, settings=StoreSettings(price=lambda _: Price(10**6, 10**7)), heartbeat_s=None)
    limits = scopes()
    for number in range(3):
        try:
            ledger.reserve(call(f"c-{number}", limits, model="m"), deadline=Deadline.after(5))
        except BudgetExhaustedError:
            break
        ledger.settle(f"c-{number}", 10**30, 2**70)

    assert balance(store, limits).used == 2 * CALL_TOKENS_MAX
    assert idle(store, limits)
    assert "reported" in caplog.text
    result = store.verify()
    assert result.ok, result.problems


@pytest.mark.parametrize("tokens", [0, -5, 2**63, 10**30])
def test_a_grant_that_is_none_is_refused(store: Store, tokens: int) -> None:
    """Nothing taken away by granting, nothing overflown."""
    ledger = TokenLedger(store, heartbeat_s=None)

    with pytest.raises(UsageError):
        ledger.grant(scopes()[0], tokens)

    assert store.all_balances("all") == ()


def test_a_limit_lowered_below_what_is_used_refuses_and_gives_nothing_back(store: Store) -> None:
    """What was spent was spent; raising it again lets calls through, and the books agree all the while."""
    high, low = scopes(session=1_000), scopes(session=300)
    store.reserve(call("c-1", high, prompt=500))
    store.settle("c-1", 500, 50, 0)

    answer = store.reserve(call("c-2", low))

    assert isinstance(answer, Refused)
    assert (answer.reason, answer.limit, answer.used) == ("exhausted", 300, 550)
    assert isinstance(store.reserve(call("c-3", high)), Reservation)
    store.release("c-3")
    assert store.verify().ok


def test_a_limit_lowered_below_what_is_held_makes_nobody_wait_in_vain(store: Store) -> None:
    """A running call is not cut by it; the next ones wait or are told, and nothing goes below zero."""
    high, low = scopes(session=1_000), scopes(session=150)
    store.reserve(call("c-1", high, prompt=500))

    assert store.extend("c-1", 50) == 50
    waits = store.reserve(call("c-2", low, prompt=20))
    store.settle("c-1", 500, 50, 0)

    assert not isinstance(waits, Reservation)
    assert isinstance(store.reserve(call("c-2", low, prompt=20)), Refused)
    assert idle(store, low)


def test_thresholds_fire_once_over_openings_and_restarts(tmp_path: Path) -> None:
    """Whoever posts the crossing reports it, and nobody after."""
    limits, found = scopes(session=1_000), []
    for start in range(3):
        stores = [SqliteStore(tmp_path / "ledger.db") for _ in range(2)]
        for number in range(6):
            name = f"{start}-{number}"
            store = stores[number % 2]
            store.reserve(call(name, limits, prompt=54, output=(0, 0)))
            found += [(c.scope.kind, c.threshold) for c in store.settle(name, 54, 0, 0).crossings]
        for store in stores:
            store.close()

    assert found == [("session", 0.8), ("session", 0.95)]
