"""When an alert fires and when it clears: arithmetic only, no clock, no I/O.

An alert fires at `limit * alert_at` and clears below nine tenths of that line, so that a figure that trembles on the
line is one alert and not a hundred (`tests/monitor/test_alerts.py`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

#: A fired alert clears below this part of its line.
CLEAR_AT = 0.9


@dataclass(frozen=True, slots=True)
class AlertRule:
    """One figure that must stay below its line. `line` is where the alert fires, in the figure's unit."""

    name: str
    unit: str
    limit: float
    line: float
    #: What to do, for the log and the page.
    remedy: str = ""

    @property
    def clear_line(self) -> float:
        """Below this a fired alert clears."""
        return self.line * CLEAR_AT

    def fires(self, value: float, *, active: bool) -> bool:
        """Whether the alert stands at this value. Nothing at all never alerts, not even against a plan of zero."""
        if value <= 0:
            return False
        return value >= self.clear_line if active else value >= self.line


@dataclass(frozen=True, slots=True)
class Alert:
    """An alert as it stands: `since` is when it fired (seconds since the epoch), None while it is quiet."""

    rule: AlertRule
    value: float
    since: float | None

    @property
    def active(self) -> bool:
        """Whether it stands now."""
        return self.since is not None

    @property
    def message(self) -> str:
        """One sentence with the figures."""
        rule = self.rule
        if not rule.unit:
            return f"{rule.name}: {'down' if self.active else 'up'}."
        value, line, limit = (_figure(figure, rule.unit) for figure in (self.value, rule.line, rule.limit))
        if self.active:
            return f"{rule.name}: {value} is past the alert line of {line} (limit {limit})."
        return f"{rule.name}: {value} is within the alert line of {line} (limit {limit})."


def _figure(value: float, unit: str) -> str:
    if unit == "bytes":
        return f"{value / 2**20:,.0f} MiB"
    if unit == "ratio":
        return f"{value:.0%}"
    return f"{value:,.0f}" if value == int(value) else f"{value:,.1f}"


class AlertStates:
    """Which alerts stand. Not thread-safe: its owner updates it from one thread."""

    def __init__(self, rules: Iterable[AlertRule]) -> None:
        self._alerts: dict[str, Alert] = {rule.name: Alert(rule, 0.0, None) for rule in rules}

    def update(self, readings: Mapping[str, float], now: float) -> list[Alert]:
        """Takes new readings; returns the alerts that fired or cleared with them. A missing reading changes nothing."""
        turned = []
        for name, alert in self._alerts.items():
            value = readings.get(name)
            if value is None:
                continue
            stands = alert.rule.fires(value, active=alert.active)
            since = (alert.since if alert.active else now) if stands else None
            fresh = self._alerts[name] = Alert(alert.rule, value, since)
            if fresh.active != alert.active:
                turned.append(fresh)
        return turned

    def alerts(self) -> tuple[Alert, ...]:
        """All of them, standing or not, in the order of the rules."""
        return tuple(self._alerts.values())


def plan_rules(
    *,
    sessions: int | None,
    mcp_processes: int | None,
    memory_bytes: int | None,
    alert_at: float,
    stuck_max: int,
) -> tuple[AlertRule, ...]:
    """The rules of a capacity plan, and those that need none. A part of the plan that is None has no rule."""
    rules = []
    if sessions is not None:
        remedy = "Raise the plan (`agentao-gov plan`) or add an instance."
        rules.append(AlertRule("sessions", "sessions", sessions, sessions * alert_at, remedy))
    if mcp_processes is not None:
        remedy = 'Share MCP servers (`share = "tenant"`) or lower max_sessions.'
        rules.append(AlertRule("mcp_processes", "processes", mcp_processes, mcp_processes * alert_at, remedy))
    if memory_bytes is not None:
        remedy = "Lower max_sessions or session_ttl, or give the service more memory."
        rules.append(AlertRule("memory", "bytes", memory_bytes, memory_bytes * alert_at, remedy))
        if sessions is not None:
            remedy = "At this memory a session the planned sessions will not fit: run `agentao-gov plan` again."
            rules.append(AlertRule("session_memory", "bytes", memory_bytes, memory_bytes * alert_at, remedy))
    remedy = "Turns were abandoned; the instance drains itself past the cap. The log has their stacks."
    rules.append(AlertRule("threads_abandoned", "threads", stuck_max, 1.0, remedy))
    remedy = "Sessions come back within a minute of their eviction: raise max_sessions."
    rules.append(AlertRule("pool_too_small", "ratio", 0.1, 0.1, remedy))
    remedy = "Make room under `[state] dir`, see the log: with the process these sessions would lose their last turns."
    rules.append(AlertRule("unsaved_sessions", "sessions", 1.0, 1.0, remedy))
    rules.append(AlertRule("ledger", "", 1.0, 1.0, "The token ledger does not answer; no model call is made."))
    return tuple(rules)
