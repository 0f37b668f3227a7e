"""When alerts fire and clear."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from agentao_gov.monitor.alerts import AlertRule, AlertStates, plan_rules


def book(*, sessions: int | None = 10, mcp: int | None = 3, memory: int | None = 1000) -> AlertStates:
    rules = plan_rules(sessions=sessions, mcp_processes=mcp, memory_bytes=memory, alert_at=0.85, stuck_max=4)
    return AlertStates(rules)


def standing(alerts: AlertStates) -> set[str]:
    return {alert.rule.name for alert in alerts.alerts() if alert.active}


def test_an_alert_fires_at_its_line_and_tells_so_once() -> None:
    """8.5 of 10 sessions is the line: nine are past it."""
    alerts = book()

    assert alerts.update({"sessions": 8}, 1.0) == []
    fired = alerts.update({"sessions": 9}, 2.0)
    again = alerts.update({"sessions": 10}, 3.0)

    assert [(alert.rule.name, alert.active, alert.since) for alert in fired] == [("sessions", True, 2.0)]
    assert again == []
    assert standing(alerts) == {"sessions"}


def test_an_alert_clears_well_below_its_line() -> None:
    """A figure that trembles on the line is one alert."""
    alerts = book()

    turned = [len(alerts.update({"sessions": value}, 1.0)) for value in (9, 8, 9, 8, 9, 7)]

    assert turned == [1, 0, 0, 0, 0, 1]
    assert standing(alerts) == set()


def test_each_part_of_the_plan_has_its_own_alert() -> None:
    """Sessions, MCP processes, memory, memory a session."""
    alerts = book()

    alerts.update({"sessions": 10, "mcp_processes": 3, "memory": 900, "session_memory": 900}, 1.0)

    assert standing(alerts) == {"sessions", "mcp_processes", "memory", "session_memory"}


def test_a_part_without_a_plan_has_no_alert() -> None:
    """Absent means unlimited."""
    names = {alert.rule.name for alert in book(sessions=None, mcp=None, memory=None).alerts()}

    assert names == {"threads_abandoned", "pool_too_small", "unsaved_sessions", "ledger"}


def test_a_plan_of_zero_alerts_on_the_first_and_not_on_none() -> None:
    """A deployment without MCP servers says so with 0."""
    alerts = book(mcp=0)

    alerts.update({"mcp_processes": 0}, 1.0)
    quiet = standing(alerts)
    alerts.update({"mcp_processes": 1}, 2.0)

    assert quiet == set()
    assert standing(alerts) == {"mcp_processes"}


@given(st.lists(st.floats(min_value=0, max_value=200), max_size=50))
def test_an_alert_never_stands_below_its_clear_line_nor_is_silent_past_its_line(values: list[float]) -> None:
    """After every reading, for any series."""
    rule = AlertRule("x", "", 100, 85)
    alerts = AlertStates([rule])

    for n, value in enumerate(values):
        alerts.update({"x": value}, float(n))
        active = alerts.alerts()[0].active

        assert not (value >= rule.line and not active)
        assert not (value < rule.clear_line and active)
