"""The checklist against services that already run: one of ours, and one that accepts everything."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from agentao_gov.checklist.items import select
from agentao_gov.checklist.report import ChecklistReport
from agentao_gov.checklist.scaling import ProbeConfig
from agentao_gov.checklist.stage import Stage
from agentao_gov.checklist.target import walk_target
from agentao_gov.simulator import Simulator
from tests.checklist.conftest import House

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]

KEY = "CHECKLIST_TEST_KEY"


@pytest.fixture
def ours(house: House, simulator: Simulator, monkeypatch: pytest.MonkeyPatch) -> Iterator[Stage]:
    """A service with small limits over the simulated model, which obeys scripts."""
    facts = house.facts()
    config = ProbeConfig.of(facts, facts.profiles[0])
    config.scale_tenant("max_sessions", 8)
    config.scale_tenant("max_sessions_per_user", 4)
    config.scale_tenant("daily_tokens", 400_000)
    config.scale("limits.turn_timeout", "4s", profile=True)
    config.scale("limits.tool_timeout", "2s", profile=True)
    config.lift("limits.tool_timeouts", {}, profile=True)
    config.lift("pool.max_busy", 32)
    with Stage(config, simulator) as stage:
        monkeypatch.setenv(KEY, config.keys[config.tenant])
        yield stage


def _walk(house: House, url: str, *only: str, **options: Any) -> ChecklistReport:
    facts = house.facts()
    return walk_target(url, facts, facts.profiles[0], select(only), **options)


def test_what_can_be_proved_from_outside_is_proved_on_our_own_service(house: House, ours: Stage) -> None:
    """Five items hold; two would harm others and are skipped with that reason."""
    report = _walk(house, ours.base_url, key_variable=KEY)

    assert {item.id: item.status for item in report.items} == {
        "session_caps": "pass",
        "daily_token_budget": "pass",
        "turn_timeout": "pass",
        "max_iterations": "pass",
        "pool_limits": "skip",
        "graceful_shutdown": "skip",
        "monitoring": "pass",
    }, report.to_json()
    assert report.target == ours.base_url
    assert ours.client().sessions() == {}


def test_a_service_that_accepts_everything_fails(house: House, simulator: Simulator) -> None:
    """A model server has no tenants, no budgets and no metrics of sessions."""
    report = _walk(house, f"http://127.0.0.1:{simulator.port}", "session_caps", "daily_token_budget", "monitoring")

    tried = {item.id: item.status for item in report.items if item.status != "skip"}
    assert tried == {"session_caps": "fail", "daily_token_budget": "fail", "monitoring": "fail"}
    assert report.exit_code == 1
    assert all(item.remedy for item in report.items if item.id in ("session_caps", "daily_token_budget"))
