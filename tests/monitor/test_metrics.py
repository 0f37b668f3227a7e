"""The metrics of the contract: names, labels, bounds and figures."""

from __future__ import annotations

from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from agentao_gov.endings import Outcome
from agentao_gov.errors import QueueFullError
from agentao_gov.governor.report import ToolCall
from agentao_gov.governor.types import SessionKey
from agentao_gov.monitor.alerts import Alert, AlertRule
from agentao_gov.monitor.measure import Measurement
from agentao_gov.monitor.metrics import TOOLS_MAX, Metrics
from agentao_gov.monitor.monitor import Observed
from agentao_gov.pool.events import SessionClosed, TurnEnded, TurnRefused, TurnStarted
from agentao_gov.pool.types import CloseReason, PoolStats, SessionState, TenantStats
from tests.service.samples import line, report

#: contract.md, "Metrics", typed by hand: name and labels.
CONTRACT: dict[str, set[str]] = {
    "sessions": {"state"},
    "tenant_sessions": {"tenant"},
    "session_memory_bytes": {"quantile"},
    "session_memory_bytes_sum": set(),
    "process_memory_bytes": set(),
    "mcp_processes": set(),
    "child_processes": {"kind"},
    "open_fds": set(),
    "threads_abandoned": set(),
    "queue_length": set(),
    "queue_wait_seconds_count": set(),
    "turns_total": {"profile", "outcome"},
    "turn_duration_seconds_count": {"profile"},
    "first_token_seconds_count": {"profile"},
    "llm_calls_total": {"profile", "outcome"},
    "tokens_total": {"tenant", "kind"},
    "tool_calls_total": {"tool", "outcome"},
    "tool_duration_seconds_count": {"tool"},
    "budget_used_ratio": {"scope", "tenant"},
    "budget_refusals_total": {"scope", "reason"},
    "rejections_total": {"reason"},
    "evictions_total": {"reason"},
    "rehydrations_total": set(),
    "close_duration_seconds_count": set(),
    "orphans_killed_total": set(),
    "shutdown_rung": set(),
    "alert_active": {"alert"},
}


def observed(**fields: Any) -> Observed:
    counts = dict.fromkeys(SessionState, 0) | {SessionState.IDLE: 3, SessionState.BUSY: 2, SessionState.HIBERNATED: 7}
    stats = PoolStats(
        sessions=counts,
        max_sessions=10,
        max_busy=4,
        queue_length=5,
        queue_limit=8,
        tenants={"acme": TenantStats(5, 2, 1, 10)},
        evictions={"ttl": 1, "lru": 2},
        rehydrations=6,
    )
    measurement = Measurement(
        at=0.0,
        rss_bytes=1000,
        open_fds=12,
        threads=3,
        children={"mcp": 2, "shell": 0, "session": 0, "other": 1},
        children_rss_bytes={"mcp": 500},
        cpu_s=1.0,
        session_bytes={SessionKey("acme", str(n)): n * 10 for n in range(1, 6)},
    )
    alerts = (Alert(AlertRule("sessions", "", 5, 4), 5, since=1.0), Alert(AlertRule("memory", "", 5, 4), 1, since=None))
    budgets = (line("tenant", "acme", limit=1000, used=250), line("user", "acme/ann", limit=100, used=90))
    return Observed(pool=stats, measurement=measurement, rung=2, budgets=budgets, alerts=alerts, **fields)


def samples(metrics: Metrics) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    text = metrics.render().decode()
    return {
        (sample.name.removeprefix("agentao_gov_"), frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def value(found: dict[tuple[str, frozenset[tuple[str, str]]], float], name: str, **labels: str) -> float:
    return found[name, frozenset(labels.items())]


def busy_metrics() -> Metrics:
    metrics = Metrics(observed)
    call = ToolCall(name="glob", outcome="ok", duration_ms=3)
    metrics.on_event(TurnEnded(report(tool_calls=(call,), iterations=2)))
    lines = (line("user", "acme/ann", limit=100, used=100),)
    metrics.on_event(TurnEnded(report(Outcome.BUDGET_EXHAUSTED, answer=None, budget=lines)))
    metrics.on_event(TurnStarted(SessionKey("acme", "s"), "t1", 0.02))
    metrics.on_event(TurnRefused(SessionKey("acme", "s"), "t2", QueueFullError("full")))
    metrics.on_event(SessionClosed(SessionKey("acme", "s"), CloseReason.TTL, 0.2))
    return metrics


def test_every_metric_of_the_contract_is_there_with_its_labels() -> None:
    """Names are what dashboards and alerts of users rest on."""
    found = samples(busy_metrics())

    for name, labels in CONTRACT.items():
        series = [set(dict(key)) for (metric, key) in found if metric == name]
        assert series, name
        assert all(keys == labels for keys in series), name


def test_state_is_read_at_the_scrape() -> None:
    """Figures of the pool, of /proc and of the alerts."""
    found = samples(busy_metrics())

    assert value(found, "sessions", state="hibernated") == 7
    assert value(found, "sessions", state="stuck") == 0
    assert value(found, "tenant_sessions", tenant="acme") == 5
    assert value(found, "session_memory_bytes", quantile="0.5") == 30
    assert value(found, "session_memory_bytes", quantile="1") == 50
    assert value(found, "session_memory_bytes_sum") == 150
    assert value(found, "mcp_processes") == 2
    assert value(found, "budget_used_ratio", scope="user", tenant="acme") == 0.9
    assert value(found, "shutdown_rung") == 2
    assert value(found, "alert_active", alert="sessions") == 1
    assert value(found, "alert_active", alert="memory") == 0


def test_turns_are_counted_with_their_tokens_calls_and_tools() -> None:
    """Estimated tokens are a part of the whole, counted beside it."""
    found = samples(busy_metrics())

    assert value(found, "turns_total", profile="qa", outcome="answered") == 1
    assert value(found, "tokens_total", tenant="acme", kind="prompt") == 2 * 5230
    assert value(found, "tokens_total", tenant="acme", kind="estimated") == 14
    assert value(found, "llm_calls_total", profile="qa", outcome="ok") == 4
    assert value(found, "tool_calls_total", tool="glob", outcome="ok") == 1
    assert value(found, "budget_refusals_total", scope="user", reason="exhausted") == 1
    assert value(found, "rejections_total", reason="queue_full") == 1


def test_names_that_a_model_invents_do_not_grow_the_metrics_for_ever() -> None:
    """Past the limit tool names share one series."""
    metrics = Metrics(observed)

    for n in range(3 * TOOLS_MAX):
        call = ToolCall(name=f"invented_{n}", outcome="error", duration_ms=1)
        metrics.turn_ended(report(tool_calls=(call,)))
    found = samples(metrics)

    assert len([1 for name, _ in found if name == "tool_calls_total"]) == TOOLS_MAX + 1
    assert value(found, "tool_calls_total", tool="other", outcome="error") == 2 * TOOLS_MAX


def test_two_services_in_one_process_do_not_share_metrics() -> None:
    """Each has a registry of its own."""
    first, second = Metrics(observed), Metrics(observed)

    first.rejected("queue_full")

    assert ("rejections_total", frozenset({("reason", "queue_full")})) not in samples(second)
