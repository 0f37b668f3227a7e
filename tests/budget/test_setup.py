"""From the deployment file to scopes, limits, zones, prices and a store."""

from __future__ import annotations

from pathlib import Path

import pytest

from agentao_gov.budget import MemoryStore, PriceTable, Scope, SqliteStore, limit_of, open_ledger, scope_limits, usd
from agentao_gov.clock import Deadline
from agentao_gov.config import Deployment, ResolvedDeployment
from agentao_gov.errors import ConfigError
from tests.budget.calls import call


def resolved(tmp_path: Path, **sections: object) -> ResolvedDeployment:
    return ResolvedDeployment(Deployment.model_validate(sections), {}, state_dir=tmp_path / "state")


def test_a_turn_has_four_scopes_below_its_tenant(tmp_path: Path) -> None:
    """In a fixed order; users and sessions of different tenants never share a budget."""
    deployment = resolved(
        tmp_path,
        budget={"tenant_daily_tokens": 500, "user_daily_tokens": 300, "timezone": "Europe/Berlin"},
        tenants={"acme": {"daily_tokens": 900, "timezone": "Asia/Tokyo"}},
    )

    acme = scope_limits(deployment, "acme", "ann", "s-1", "t-1", 50)
    local = scope_limits(deployment.deployment, "local", "ann", "s-1", "t-1", None)

    assert [(str(s.scope), s.limit, s.timezone) for s in acme] == [
        ("tenant:acme", 900, "Asia/Tokyo"),
        ("user:acme/ann", 300, "Asia/Tokyo"),
        ("session:acme/s-1", None, "Asia/Tokyo"),
        ("turn:t-1", 50, "UTC"),
    ]
    assert [(s.limit, s.timezone) for s in local[:2]] == [(500, "Europe/Berlin"), (300, "Europe/Berlin")]


def test_an_unlisted_tenant_has_the_defaults_of_default(tmp_path: Path) -> None:
    """From its very first request."""
    deployment = resolved(tmp_path, tenants={"default": {"daily_tokens": 70}})

    assert scope_limits(deployment, "somebody", "u", "s", "t", None)[0].limit == 70


@pytest.mark.parametrize(
    ("scope", "limit"),
    [(Scope("tenant", "t"), 5), (Scope("user", "t/a/b"), 6), (Scope("session", "t/s:1"), 7)],
)
def test_a_scope_is_found_by_its_name_alone(tmp_path: Path, scope: Scope, limit: int) -> None:
    """A user's name may contain a slash."""
    deployment = resolved(
        tmp_path, budget={"tenant_daily_tokens": 5, "user_daily_tokens": 6, "session_daily_tokens": 7}
    )

    found = limit_of(deployment, scope)

    assert (found.scope, found.limit) == (scope, limit)


@pytest.mark.parametrize(("name", "kind"), [("memory", MemoryStore), ("sqlite", SqliteStore)])
def test_the_store_is_the_one_that_is_named(tmp_path: Path, name: str, kind: type) -> None:
    """SQLite lies in the state directory."""
    ledger = open_ledger(resolved(tmp_path, budget={"store": name}))

    assert isinstance(ledger.store, kind)
    assert (tmp_path / "state" / "ledger.db").exists() is (name == "sqlite")
    ledger.close()


def test_dated_model_names_find_their_familys_price() -> None:
    """The longest name counts: a mini is not its big sister."""
    table = PriceTable.load()

    big, mini, unknown = (table.price(name) for name in ("gpt-4.1-2025-04-14", "openai/gpt-4.1-mini", "house-model"))

    assert big is not None
    assert mini is not None
    assert (big.prompt, mini.prompt) == (2_000_000, 400_000)
    assert unknown is None


def test_the_users_table_adds_to_the_shipped_one_and_wins(tmp_path: Path) -> None:
    """Prices change, and discounts are one's own."""
    own = tmp_path / "prices.toml"
    own.write_text(
        '[models]\n"gpt-4.1" = { prompt = 1, completion = 0.0375 }\n"house" = { prompt = 0, completion = 0 }\n'
    )

    table = PriceTable.load(own)

    assert table.price("gpt-4.1") == (1_000_000, 37_500)
    assert table.price("house") == (0, 0)
    assert table.price("gpt-4o") is not None


@pytest.mark.parametrize(
    "text",
    [
        "nonsense",
        "[other]",
        '[models]\n"m" = 3',
        '[models]\n"m" = { prompt = -1, completion = 1 }',
        '[models]\n"m" = { prompt = 1 }',
        '[models]\n"m" = { prompt = 0.0000001, completion = 1 }',
        '[models]\n"m" = { prompt = true, completion = 1 }',
    ],
)
def test_a_wrong_price_table_is_an_error(tmp_path: Path, text: str) -> None:
    """A price that is misread would be believed."""
    own = tmp_path / "prices.toml"
    own.write_text(text)

    with pytest.raises(ConfigError, match="price"):
        PriceTable.load(own)


@pytest.mark.parametrize(("pico", "text"), [(0, "$0.0000"), (12_300_000_000, "$0.0123"), (10**15, "$1,000.00")])
def test_dollars_are_written_as_people_read_them(pico: int, text: str) -> None:
    """Four digits below a dollar, because a call costs less than a cent."""
    assert usd(pico) == text


def test_a_store_that_is_back_is_used_where_the_operator_went_on_without(tmp_path: Path) -> None:
    """Unrecorded until then, exact from then on."""
    deployment = resolved(tmp_path, budget={"on_store_failure": "allow"})
    place = tmp_path / "state" / "ledger.db"
    place.mkdir(parents=True)
    ledger = open_ledger(deployment)
    limits = scope_limits(deployment, "acme", "ann", "s", "t", 10_000)
    ledger.reserve(call("lost", limits), deadline=Deadline.after(5))
    ledger.settle("lost", 50, 50)
    place.rmdir()

    ledger._beat()
    ledger.reserve(call("kept", limits), deadline=Deadline.after(5))
    ledger.settle("kept", 60, 10)

    assert [balance.used for balance in ledger.balances(limits)] == [70] * 4
    ledger.close()
