"""Findings without an experiment: what is missing, what contradicts itself, and lines that mend it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from agentao_gov.checklist.items import ITEMS, ItemId
from agentao_gov.checklist.report import ItemReport, assemble, place_of
from agentao_gov.checklist.static import static_checks
from tests.checklist.conftest import House

Break = Callable[[House], Any]


def _items(house: House, profile: str = "qa", **machine: int) -> dict[ItemId, ItemReport]:
    checks = static_checks(house.facts(profile, **machine))
    return {item.id: assemble(item, checks[item.id]) for item in ITEMS}


@pytest.mark.parametrize("profile", ["qa", "code", "research"])
def test_a_complete_configuration_has_no_findings(house: House, profile: str) -> None:
    """With each shipped profile, not even a warning."""
    assert {report.status for report in _items(house, profile).values()} == {"pass"}


BREAKS: list[tuple[ItemId, str, Break]] = [
    ("session_caps", "fail", lambda h: h.deployment["tenants"]["default"].pop("max_sessions")),
    ("session_caps", "fail", lambda h: h.deployment["tenants"]["default"].pop("max_sessions_per_user")),
    ("session_caps", "fail", lambda h: h.deployment.pop("tenants")),
    ("session_caps", "fail", lambda h: h.deployment["tenants"]["default"].update(max_sessions=10**9)),
    ("session_caps", "warn", lambda h: h.deployment["tenants"]["default"].update(max_sessions_per_user=51)),
    ("session_caps", "fail", lambda h: h.deployment["tenants"].update({"a.b": {"daily_tokens": 10**6}})),
    ("daily_token_budget", "fail", lambda h: h.deployment["budget"].pop("session_daily_tokens")),
    ("daily_token_budget", "fail", lambda h: h.deployment["budget"].pop("user_daily_tokens")),
    ("daily_token_budget", "fail", lambda h: h.deployment["budget"].update(session_daily_tokens=50)),
    ("daily_token_budget", "warn", lambda h: h.deployment["budget"].update(session_daily_tokens=4_000_000)),
    ("daily_token_budget", "warn", lambda h: h.deployment["budget"].update(on_store_failure="allow")),
    ("daily_token_budget", "warn", lambda h: h.deployment["budget"].update(store="memory")),
    ("turn_timeout", "warn", lambda h: h.profile("qa")["limits"].update(turn_timeout="5m")),
    ("turn_timeout", "fail", lambda h: h.profile("qa")["limits"].update(turn_timeout="3h")),
    ("max_iterations", "warn", lambda h: h.profile("qa")["limits"].update(max_iterations=100)),
    ("max_iterations", "fail", lambda h: h.profile("qa")["limits"].update(max_iterations=100_000)),
    ("max_iterations", "warn", lambda h: h.profile("qa").update(on_limit={"max_iterations": "stop"})),
    ("pool_limits", "fail", lambda h: h.deployment.update(pool={"hibernate": False})),
    ("pool_limits", "warn", lambda h: h.deployment.update(pool={"session_ttl": "30d"})),
    ("pool_limits", "warn", lambda h: h.deployment.update(pool={"mode": "subprocess"})),
    ("graceful_shutdown", "fail", lambda h: h.deployment.update(shutdown={"drain": 0})),
    ("graceful_shutdown", "warn", lambda h: h.deployment.update(server={"shutdown_budget": "10m"})),
    ("graceful_shutdown", "warn", lambda h: h.deployment.update(shutdown={"close": 0})),
    ("monitoring", "fail", lambda h: h.deployment.pop("capacity")),
    ("monitoring", "fail", lambda h: h.deployment["capacity"].pop("memory")),
    ("monitoring", "fail", lambda h: h.deployment["capacity"].update(memory="900GiB")),
    ("monitoring", "fail", lambda h: h.deployment["capacity"].update(sessions=100_000)),
    ("monitoring", "warn", lambda h: h.deployment["capacity"].update(alert_at=1.0)),
]


@pytest.mark.parametrize(("item", "status", "spoil"), BREAKS)
def test_a_sabotaged_setting_fails_its_item_alone_and_the_remedy_mends_it(
    house: House, item: ItemId, status: str, spoil: Break
) -> None:
    """The lines of the remedy are pasted into the files as they are."""
    spoil(house)

    # A tenant less leaves no daily limit of its own either; that is the budget's to say.
    found = _items(house)
    assert found[item].status == status
    others = {name: report.status for name, report in found.items() if name != item}
    assert set(others.values()) == {"pass"}
    assert found[item].remedy

    house.mend(found[item].remedy)
    assert _items(house)[item].status == "pass"


def test_a_session_budget_above_the_tenants_never_binds(house: House) -> None:
    """Which is worth a warning, as nothing refuses where one would expect it."""
    house.deployment["budget"]["session_daily_tokens"] = 4_000_000

    report = _items(house)["daily_token_budget"]

    assert report.status == "warn"
    assert "never binds" in report.observed


def test_sessions_that_do_not_fit_the_machine_are_found(house: House) -> None:
    """500 processes of 65 MiB in 4 GiB."""
    house.deployment["pool"] = {"mode": "subprocess"}

    report = _items(house, memory_bytes=4 * 2**30)["pool_limits"]

    assert report.status == "warn"
    assert "max_sessions" in str(report.remedy)


def test_a_listed_tenant_without_a_default_is_enough(house: House) -> None:
    """Who is not listed is refused, which is the strictest cap there is."""
    caps = house.deployment["tenants"].pop("default")
    house.deployment["tenants"]["acme"] = {**caps, "api_key_sha256": ["0" * 64]}

    assert _items(house)["session_caps"].status == "pass"


PLACES: list[tuple[Break, ItemId, str, str]] = [
    (lambda h: h.deployment["capacity"].update(alert_at=1.0), "monitoring", "agentao-gov.toml", "alert_at = 1.0"),
    (lambda h: h.deployment["budget"].pop("user_daily_tokens"), "daily_token_budget", "agentao-gov.toml", "[budget]"),
    (lambda h: h.profile("qa")["limits"].update(turn_timeout="3h"), "turn_timeout", "qa.toml", 'turn_timeout = "3h"'),
]


@pytest.mark.parametrize(("spoil", "item", "file", "text"), PLACES)
def test_a_finding_knows_its_file_and_line(
    house: House, monkeypatch: pytest.MonkeyPatch, spoil: Break, item: ItemId, file: str, text: str
) -> None:
    """The key's line; of a key that is missing, the table it belongs into. As a CI names files: from where it runs."""
    spoil(house)
    monkeypatch.chdir(house.root)
    facts = house.facts()

    place = place_of(static_checks(facts)[item], facts)

    assert place is not None
    assert not Path(place.file).is_absolute()
    assert Path(place.file).name == file
    assert (house.root / place.file).read_text().splitlines()[(place.line or 0) - 1] == text


def test_the_context_cap_is_held_against_the_deployments_model(house: House) -> None:
    """A profile without a model of its own runs on the deployment's."""
    house.deployment["model"] = {"name": "mine", "base_url": "http://127.0.0.1:1/v1", "context_window": 70_000}

    report = _items(house)["daily_token_budget"]

    assert report.status == "fail"
    assert "64,000 of 70,000" in report.observed
    house.mend(report.remedy)
    assert _items(house)["daily_token_budget"].status == "pass"
