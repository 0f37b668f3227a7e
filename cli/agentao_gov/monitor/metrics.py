"""The Prometheus metrics of the contract, on a registry of their own.

Counters and histograms are fed by the pool's events; everything that can be measured is measured at the scrape.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from agentao_gov.budget.store import BudgetEvent, StoreFailureAllowed
from agentao_gov.endings import Outcome
from agentao_gov.governor.report import TurnReport
from agentao_gov.monitor.measure import quantile
from agentao_gov.monitor.monitor import Observed
from agentao_gov.pool.events import PoolEvent, SessionClosed, TurnEnded, TurnRefused, TurnStarted
from agentao_gov.process.tree import ORPHANS_KILLED

PREFIX = "agentao_gov_"

#: Seconds. Turns reach from a cached answer (0.1 s) to research (half an hour).
_TURN_BUCKETS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800)
_WAIT_BUCKETS = (0.001, 0.005, 0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_FIRST_BUCKETS = (0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_TOOL_BUCKETS = (0.005, 0.01, 0.05, 0.1, 0.5, 1, 2.5, 5, 15, 30, 60, 120)
_CLOSE_BUCKETS = (0.001, 0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)

#: Limits of label sets whose names come from outside; past them a name is counted under `other`.
TENANTS_MAX = 500
TOOLS_MAX = 100
PROFILES_MAX = 100

_BUDGET_REFUSALS = {Outcome.BUDGET_EXHAUSTED: "exhausted", Outcome.BUDGET_IMPOSSIBLE: "impossible"}
_EVICTION_REASONS = ("ttl", "lru", "memory", "drain")
_STATES = ("idle", "busy", "opening", "closing", "stuck", "hibernated")
#: What every name past the limit is counted under.
OTHER = "other"


class LabelSet:
    """Keeps the labels of names that come from outside finite: a model's tool names, tenants. Thread-safe."""

    def __init__(self, limit: int, known: Iterable[str] = ()) -> None:
        """The first `limit` names have series of their own, later ones share `other`; `known` ones are the first."""
        self._limit = limit
        self._lock = threading.Lock()
        #: Guarded by `_lock`; only grows, up to `limit`.
        self._names = set(known)

    def __call__(self, name: str) -> str:
        """The label to count `name` under."""
        with self._lock:
            if name in self._names:
                return name
            if len(self._names) >= self._limit or len(name) > 128:
                return OTHER
            self._names.add(name)
            return name


class Metrics:
    """All metrics of one process. Thread-safe."""

    def __init__(self, observe: Callable[[], Observed], *, tenants: Iterable[str] = (), restarts: int = 0) -> None:
        """`observe` gives the state at a scrape, on the scraping thread; `tenants` have labels of their own.

        `restarts`: how often this process has been started again after it had crashed, hung or asked for it.
        """
        self.registry = CollectorRegistry()
        self._tenant = LabelSet(TENANTS_MAX, tenants)
        self._tool = LabelSet(TOOLS_MAX)
        self._profile = LabelSet(PROFILES_MAX)
        r = self.registry
        self._queue_wait = Histogram(
            PREFIX + "queue_wait_seconds", "Time a turn waited for its place.", buckets=_WAIT_BUCKETS, registry=r
        )
        self._turns = Counter(PREFIX + "turns", "Turns that ended.", ["profile", "outcome"], registry=r)
        self._duration = Histogram(
            PREFIX + "turn_duration_seconds", "Turns, waiting included.", ["profile"], buckets=_TURN_BUCKETS, registry=r
        )
        self._first_token = Histogram(
            PREFIX + "first_token_seconds", "To the first text.", ["profile"], buckets=_FIRST_BUCKETS, registry=r
        )
        self._llm_calls = Counter(PREFIX + "llm_calls", "Requests to the model.", ["profile", "outcome"], registry=r)
        self._tokens = Counter(
            PREFIX + "tokens",
            "prompt + completion is the whole, estimated a part of it.",
            ["tenant", "kind"],
            registry=r,
        )
        self._tool_calls = Counter(PREFIX + "tool_calls", "Tool calls that ended.", ["tool", "outcome"], registry=r)
        self._tool_duration = Histogram(
            PREFIX + "tool_duration_seconds", "Tool calls.", ["tool"], buckets=_TOOL_BUCKETS, registry=r
        )
        self._budget_refusals = Counter(
            PREFIX + "budget_refusals", "Turns a token budget refused.", ["scope", "reason"], registry=r
        )
        self._unrecorded = Counter(
            PREFIX + "ledger_unrecorded",
            'Steps let through without a record, by `on_store_failure = "allow"`.',
            ["operation"],
            registry=r,
        )
        self._rejections = Counter(PREFIX + "rejections", "Requests that were refused.", ["reason"], registry=r)
        self._close = Histogram(
            PREFIX + "close_duration_seconds", "Closing a session's agent.", buckets=_CLOSE_BUCKETS, registry=r
        )
        Counter(PREFIX + "restarts", "Times the service, or a worker of it, was started again.", registry=r).inc(
            restarts
        )
        self.orphans_killed = Counter(PREFIX + "orphans_killed", "Child processes that had to be killed.", registry=r)
        #: How many of the process's orphans the counter has; scrapes come one at a time or lose nothing but a moment.
        self._orphans_told = 0
        r.register(_StateCollector(observe, self._tenant))

    def on_event(self, event: PoolEvent) -> None:
        """A pool observer: counts what happened."""
        if isinstance(event, TurnEnded):
            self.turn_ended(event.report)
        elif isinstance(event, TurnStarted):
            self._queue_wait.observe(event.waited_s)
        elif isinstance(event, TurnRefused):
            self.rejected(event.code)
        elif isinstance(event, SessionClosed):
            self._close.observe(event.duration_s)

    def on_budget_event(self, event: BudgetEvent) -> None:
        """A budget observer: counts what went past the ledger."""
        if isinstance(event, StoreFailureAllowed):
            self._unrecorded.labels(event.operation).inc()

    def rejected(self, reason: str) -> None:
        """Counts a request that was refused; `reason` is an error code, a closed list."""
        self._rejections.labels(reason).inc()

    def turn_ended(self, report: TurnReport) -> None:
        """Counts one turn."""
        profile = self._profile(report.profile)
        self._turns.labels(profile, report.outcome.value).inc()
        self._duration.labels(profile).observe(report.timing_ms.total / 1000)
        if report.timing_ms.first_token is not None:
            self._first_token.labels(profile).observe(report.timing_ms.first_token / 1000)
        self._count_calls(report, profile)
        tenant = self._tenant(report.tenant)
        for kind, tokens in (
            ("prompt", report.usage.prompt_tokens),
            ("completion", report.usage.completion_tokens),
            ("estimated", report.usage.estimated_tokens),
        ):
            self._tokens.labels(tenant, kind).inc(tokens)
        reason = _BUDGET_REFUSALS.get(report.outcome)
        if reason:
            self._budget_refusals.labels(_tightest_scope(report), reason).inc()

    def _count_calls(self, report: TurnReport, profile: str) -> None:
        usage = report.usage
        # Every answered call ends a round of the tool loop, so of a failed turn's requests the rest failed.
        failed = usage.llm_calls - report.iterations if report.outcome is Outcome.MODEL_ERROR else 0
        failed = max(0, failed)
        self._llm_calls.labels(profile, "ok").inc(usage.llm_calls - failed)
        self._llm_calls.labels(profile, "error").inc(failed)
        for call in report.tool_calls:
            tool = self._tool(call.name)
            self._tool_calls.labels(tool, call.outcome).inc()
            self._tool_duration.labels(tool).observe(call.duration_ms / 1000)

    def render(self) -> bytes:
        """The exposition text. Reads /proc: call it on a worker thread."""
        killed = ORPHANS_KILLED.total
        self.orphans_killed.inc(killed - self._orphans_told)
        self._orphans_told = killed
        return generate_latest(self.registry)


def _tightest_scope(report: TurnReport) -> str:
    """The scope with the least left: the one that said no."""
    limited = [line for line in report.budget if line.limit is not None]
    if not limited:
        return "turn"
    return min(limited, key=lambda line: (line.limit or 0) - line.used - line.reserved).scope


class _StateCollector(Collector):
    """Everything that is read at the scrape."""

    def __init__(self, observe: Callable[[], Observed], tenant: LabelSet) -> None:
        self._observe = observe
        self._tenant = tenant

    def describe(self) -> Iterable[Metric]:
        """Nothing: registering must not measure."""
        return ()

    def collect(self) -> Iterable[Metric]:
        seen = self._observe()
        yield from self._pool(seen)
        yield from self._processes(seen)
        yield from self._budgets(seen)
        yield _gauge("shutdown_rung", "0 serving .. 6 gone: the rung of the shutdown ladder.", seen.rung)
        alerts = GaugeMetricFamily(PREFIX + "alert_active", "1 while an alert stands.", labels=["alert"])
        for alert in seen.alerts:
            alerts.add_metric([alert.rule.name], float(alert.active))
        yield alerts

    def _pool(self, seen: Observed) -> Iterable[Metric]:
        stats = seen.pool
        sessions = GaugeMetricFamily(PREFIX + "sessions", "Sessions by state.", labels=["state"])
        counts = {str(state): count for state, count in stats.sessions.items()}
        for state in _STATES:
            sessions.add_metric([state], counts.get(state, 0))
        yield sessions
        tenants: dict[str, int] = {}
        for name, tenant in stats.tenants.items():
            label = self._tenant(name)
            tenants[label] = tenants.get(label, 0) + tenant.resident
        family = GaugeMetricFamily(PREFIX + "tenant_sessions", "Resident sessions of a tenant.", labels=["tenant"])
        for name, resident in tenants.items():
            family.add_metric([name], resident)
        yield family
        yield _gauge("queue_length", "Turns waiting.", stats.queue_length)
        yield _gauge("sessions_unsaved", "Idle sessions whose last turn could not be written.", stats.unsaved)
        yield _gauge("threads_abandoned", "Turns that never came back and hold a thread.", seen.threads_abandoned)
        evictions = CounterMetricFamily(PREFIX + "evictions", "Sessions taken out of memory.", labels=["reason"])
        for reason in _EVICTION_REASONS:
            evictions.add_metric([reason], stats.evictions.get(reason, 0))
        yield evictions
        yield CounterMetricFamily(
            PREFIX + "rehydrations", "Sessions that came back from disk.", value=stats.rehydrations
        )

    def _processes(self, seen: Observed) -> Iterable[Metric]:
        m = seen.measurement
        sizes = list(m.session_bytes.values())
        memory = GaugeMetricFamily(
            PREFIX + "session_memory_bytes",
            "Memory of resident sessions: their process trees, and an even share of what this process grew by.",
            labels=["quantile"],
        )
        for label, q in (("0.5", 0.5), ("0.95", 0.95), ("1", 1.0)):
            memory.add_metric([label], quantile(sizes, q))
        yield memory
        yield _gauge("session_memory_bytes_sum", "Memory of all resident sessions.", sum(sizes))
        held = [sum(kinds.values()) for kinds in m.session_processes.values()]
        processes = GaugeMetricFamily(
            PREFIX + "session_processes", "Processes of resident sessions.", labels=["quantile"]
        )
        for label, q in (("0.5", 0.5), ("0.95", 0.95), ("1", 1.0)):
            processes.add_metric([label], quantile(held, q))
        yield processes
        yield _gauge("process_memory_bytes", "Resident memory of this process.", m.rss_bytes)
        yield _gauge("mcp_processes", "MCP server processes.", m.mcp_processes)
        children = GaugeMetricFamily(PREFIX + "child_processes", "Child processes by kind.", labels=["kind"])
        for kind, count in m.children.items():
            children.add_metric([kind], count)
        yield children
        yield _gauge("open_fds", "Open descriptors of this process.", m.open_fds)

    def _budgets(self, seen: Observed) -> Iterable[Metric]:
        family = GaugeMetricFamily(
            PREFIX + "budget_used_ratio",
            "Used and reserved against the limit of today's window; of users and sessions the fullest one.",
            labels=["scope", "tenant"],
        )
        fullest: dict[tuple[str, str], float] = {}
        for line in seen.budgets:
            if line.limit:
                key = (line.scope, self._tenant(line.key.partition("/")[0]))
                fullest[key] = max(fullest.get(key, 0.0), (line.used + line.reserved) / line.limit)
        for (scope, tenant), ratio in fullest.items():
            family.add_metric([scope, tenant], ratio)
        yield family


def _gauge(name: str, text: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(PREFIX + name, text, value=value)
