"""The checklist against a broken configuration and a broken product: the item that should fail, fails.

Each test starts real services; those with one item take 3 to 12 s.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import pytest

from agentao_gov.checklist.items import ItemId
from agentao_gov.checklist.probe import ProbedService
from agentao_gov.checklist.report import ChecklistReport
from tests.checklist.conftest import House

pytestmark = [pytest.mark.slow, pytest.mark.timeout(480)]

SCRIPT = Path(__file__).with_name("sabotages.py")


def _broken(sabotage: str) -> type[ProbedService]:
    class Broken(ProbedService):
        program: ClassVar[tuple[str, ...]] = (sys.executable, str(SCRIPT), sabotage)

    return Broken


def _statuses(report: ChecklistReport) -> dict[str, str]:
    return {item.id: item.status for item in report.items if item.status != "skip"}


def _failed_checks(report: ChecklistReport, item: ItemId) -> list[str]:
    found = next(entry for entry in report.items if entry.id == item)
    return [line for line in found.evidence if line.startswith("[fail]")]


def test_all_items_hold_but_the_sabotaged_one_which_its_remedy_mends(house: House) -> None:
    """One absent capacity plan: seven pass, `monitoring` fails alone; its own lines make it pass."""
    house.deployment.pop("capacity")

    report = house.walk(settle_s=10)

    wrong = {name for name, status in _statuses(report).items() if status != "pass"}
    assert wrong == {"monitoring"}, report.to_json()
    assert report.exit_code == 1

    house.mend(next(item.remedy for item in report.items if item.id == "monitoring"))
    again = house.walk("monitoring")
    assert _statuses(again) == {"monitoring": "pass"}, again.to_json()
    assert again.exit_code == 0


PRODUCT: list[tuple[str, ItemId, str]] = [
    ("cap_not_enforced", "session_caps", "gets 429 tenant_session_limit"),
    ("cap_off_by_one", "session_caps", "gets 429 tenant_session_limit"),
    ("cap_when_whole", "session_caps", "by whichever door"),
    ("cap_for_each_worker", "session_caps", "--workers 2"),
    ("refusal_without_hint", "session_caps", "say when to come back"),
    ("refuses_everyone", "session_caps", "gets 429 tenant_session_limit"),
    ("budget_not_reserved", "daily_token_budget", "tokens at the model at most"),
    ("budget_for_each_worker", "daily_token_budget", "tokens at the model at most"),
    ("budget_ends_early", "daily_token_budget", "budget can be used"),
    ("refusal_forgets_midnight", "daily_token_budget", "carries the window's end"),
    ("timeout_returns_early", "turn_timeout", "connections to the model are closed"),
    ("timeout_returns_early", "turn_timeout", "every turn's thread is back"),
    ("cap_counts_late", "max_iterations", "exactly 25 calls"),
    ("no_last_call", "max_iterations", "one last call without tools"),
    ("servers_left_behind", "pool_limits", "left with it"),
    ("sessions_forget", "pool_limits", "goes on with its context"),
    ("idle_from_the_start", "pool_limits", "count from the end of a turn"),
    ("drain_cancels", "graceful_shutdown", "the turns in flight are answered"),
    ("second_signal_ignored", "graceful_shutdown", "a second signal ends the drain"),
    ("metric_is_the_setting", "monitoring", "MCP processes are true"),
    ("alert_sticks", "monitoring", "clears"),
    ("ledger_always_fine", "monitoring", "the alert on ledger fires"),
]


@pytest.mark.parametrize(("sabotage", "item", "words"), PRODUCT)
def test_a_product_that_does_not_hold_its_setting_fails(house: House, sabotage: str, item: ItemId, words: str) -> None:
    """The configuration is right, every static check passes, and the probe sees it all the same."""
    report = house.walk(item, service=_broken(sabotage), settle_s=2.0)

    failed = _failed_checks(report, item)
    assert _statuses(report) == {item: "fail"}
    assert any(words in line for line in failed), failed


CONFIGURATION: list[tuple[ItemId, Callable[[House], Any], str]] = [
    ("session_caps", lambda h: h.deployment["tenants"]["default"].pop("max_sessions"), "were all served"),
    ("daily_token_budget", lambda h: h.deployment["budget"].pop("session_daily_tokens"), "unlimited: "),
    ("turn_timeout", lambda h: h.profile("qa")["limits"].update(turn_timeout="3h"), "3h is outside"),
    ("max_iterations", lambda h: h.profile("qa")["limits"].update(max_iterations=5_000), "5000 is outside"),
    ("pool_limits", lambda h: h.deployment.update(pool={"hibernate": False}), "goes on with its context"),
    ("graceful_shutdown", lambda h: h.deployment.update(shutdown={"drain": 0}), "turns in flight are answered"),
    ("monitoring", lambda h: h.deployment["capacity"].pop("sessions"), "nothing is planned, and nothing alerts"),
]


@pytest.mark.parametrize(("item", "spoil", "words"), CONFIGURATION)
def test_a_setting_that_does_not_refuse_fails_and_its_remedy_mends_it(
    house: House, item: ItemId, spoil: Callable[[House], Any], words: str
) -> None:
    """The lines of the remedy are pasted into the file as they are, and the item is walked again."""
    spoil(house)

    report = house.walk(item, settle_s=5.0)

    failed = _failed_checks(report, item)
    assert _statuses(report) == {item: "fail"}
    assert any(words in line for line in failed), failed

    house.mend(next(entry.remedy for entry in report.items if entry.id == item))
    again = house.walk(item)
    assert _statuses(again) == {item: "pass"}, again.to_json()
