"""Item 7: compares /metrics with /proc under load, and crosses every line of the capacity plan, up and down."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import psutil

from agentao_gov.checklist.holding import Holding
from agentao_gov.checklist.probe import Context
from agentao_gov.checklist.probes.pool_limits import stubs_below
from agentao_gov.checklist.remedy import Remedy
from agentao_gov.checklist.scaling import ProbeConfig
from agentao_gov.checklist.stage import Stage, patiently

__all__ = ["probe_monitoring"]

MIB = 2**20
SESSIONS = 4
#: What each MCP server of the probe holds, so that memory follows sessions within the noise of a process.
SERVER_MIB = 40
#: Two looks at a process a second apart differ by this much even when nothing happens.
MEMORY_TOLERANCE, MEMORY_SLACK = 0.15, 12 * MIB
#: The service looks at itself once a second: at rest for longer than that, it has seen itself at rest.
REST_S, REST_SLACK = 1.5, 2 * MIB
PREFIX = "agentao_gov_"


def probe_monitoring(context: Context) -> None:
    """Sessions, MCP processes and memory are there and true; each alert fires and clears."""
    config = _config(context)
    plan = config.get("capacity") or {}
    for key in ("sessions", "mcp_processes"):
        if plan.get(key) is not None:
            config.scale(f"capacity.{key}", SESSIONS)
    # Memory is planned around what this service weighs, which is only known once it has run.
    memory = plan.get("memory")
    if memory is not None:
        config.deployment["capacity"].pop("memory")
    with context.stage(config) as stage:
        _true_figures(context, stage)
        _line(context, stage, "sessions", plan.get("sessions"))
        _line(context, stage, "mcp_processes", plan.get("mcp_processes"))
        _let_go(stage)
        _cleared(context, stage, [name for name in ("sessions", "mcp_processes") if plan.get(name) is not None])
        # Taken after the first sessions: opening one imports 40 MiB that stay.
        baseline = _settled_bytes(context, stage.pid)
    if memory is not None:
        _memory_line(context, str(memory), baseline, float(plan.get("alert_at", 0.85)))


def _config(context: Context) -> ProbeConfig:
    config = context.config()
    config.lift_budgets()
    config.lift_caps()
    config.roomy_pool(8)
    config.long_turns()
    config.lift("pool.session_ttl", "30m")
    config.add_stub(mib=SERVER_MIB)
    # A fresh agent is gone before anyone can count it.
    if config.get("pool.mode") == "fresh":
        config.lift("pool.mode", "in-process")
    return config


@dataclass
class _Pair:
    """A metric and the same figure from outside."""

    said: float
    true: float

    def agree(self, tolerance: float = 0.0, slack: float = 0.0) -> bool:
        return abs(self.said - self.true) <= max(slack, tolerance * self.true)


def _settled(
    context: Context, look: Callable[[], _Pair], *, tolerance: float = 0.0, slack: float = 0.0
) -> tuple[bool, _Pair]:
    """Looks until metric and truth agree, for as long as a metric may be old."""
    pair = look()
    for _ in patiently(context.settle_s):
        if pair.agree(tolerance, slack):
            return True, pair
        pair = look()
    return False, pair


def _true_figures(context: Context, stage: Stage) -> None:
    """Compares at one, at three and again at one session: a metric that reports a setting cannot follow."""
    client, profile, pid = stage.client(), stage.config.profile_name, stage.pid
    alone = _at_rest_bytes(context, pid)
    for names in (["a"], ["b", "c"]):
        for name in names:
            client.turn(name, "Hello.", profile=profile)
        context.say(f"comparing /metrics with /proc at {len(client.sessions())} session(s)")
        _compare(context, stage, pid)
    holding = Holding(context.simulator, client, profile)
    held = holding.open("a", "u") is None
    busy = client.metrics().get(f"{PREFIX}sessions", state="busy")
    context.note(held and busy == 1, "a running turn is counted as busy", f'sessions{{state="busy"}} is {busy}')
    holding.release()
    for name in ("b", "c"):
        client.delete(name)
    _compare(context, stage, pid)
    _memory_figures(context, stage, pid, alone)


def _at_rest_bytes(context: Context, pid: int) -> int:
    """What the service weighs before its first session, once it has stopped growing by itself.

    It loads its tokenizer in the background (40 MiB); a session that opens meanwhile would be blamed for it.
    """
    process = psutil.Process(pid)
    weight, since = process.memory_info().rss, time.monotonic()
    for _ in patiently(context.settle_s):
        now = process.memory_info().rss
        if abs(now - weight) > REST_SLACK:
            weight, since = now, time.monotonic()
        elif time.monotonic() - since >= REST_S:
            break
    return int(weight)


def _compare(context: Context, stage: Stage, pid: int) -> None:
    client = stage.client()

    def sessions() -> _Pair:
        metrics = client.metrics()
        states = [metrics.get(f"{PREFIX}sessions", state=s) for s in ("idle", "busy")]
        rows = [row for row in client.sessions().values() if row.get("state") in ("idle", "busy")]
        return _Pair(-1.0 if None in states else sum(s or 0 for s in states), len(rows))

    def servers() -> _Pair:
        said = client.metrics().get(f"{PREFIX}mcp_processes")
        return _Pair(-1.0 if said is None else said, len(stubs_below(pid)))

    count = len(client.sessions())
    for name, look in (("active sessions", sessions), ("MCP processes", servers)):
        good, pair = _settled(context, look)
        said = "no such metric" if pair.said < 0 else f"metric {pair.said:.0f}"
        context.note(good, f"{name} are true at {count} session(s)", f"{said}, counted {pair.true:.0f}")


def _memory_figures(context: Context, stage: Stage, pid: int, alone: int) -> None:
    client = stage.client()

    def process() -> _Pair:
        said = client.metrics().get(f"{PREFIX}process_memory_bytes")
        return _Pair(-1.0 if said is None else said, psutil.Process(pid).memory_info().rss)

    good, pair = _settled(context, process, tolerance=MEMORY_TOLERANCE, slack=MEMORY_SLACK)
    text = f"metric {pair.said / MIB:.0f} MiB, /proc {pair.true / MIB:.0f} MiB"
    context.note(good, "the process's memory is true", text)

    # One session is left: its MCP server is its own, and of all other processes below the service, and of what the
    # service grew by, nobody else can be the cause.
    said = client.metrics().get(f"{PREFIX}session_memory_bytes", quantile="1")
    least = _servers_bytes(pid)
    most = _tree_bytes(pid) - alone
    good = said is not None and 0.7 * least <= said <= most + MEMORY_SLACK
    shown = "no such metric" if said is None else f"metric {said / MIB:.0f} MiB"
    span = f"its MCP server holds {least / MIB:.0f} MiB, all that is there because of it {most / MIB:.0f} MiB"
    context.note(good, "memory per session is true", f"{shown}; {span}")


def _servers_bytes(pid: int) -> int:
    total = 0
    for server in stubs_below(pid):
        try:
            total += psutil.Process(server).memory_info().rss
        except psutil.Error:
            continue
    return total


def _settled_bytes(context: Context, pid: int) -> int:
    """What the service weighs once the servers of closed sessions are gone."""
    for _ in patiently(context.settle_s):
        if not stubs_below(pid):
            break
    return _tree_bytes(pid)


def _tree_bytes(pid: int) -> int:
    process = psutil.Process(pid)
    total = int(process.memory_info().rss)
    for child in process.children(recursive=True):
        try:
            total += child.memory_info().rss
        except psutil.NoSuchProcess:
            continue
    return total


def _alert(stage: Stage, name: str) -> float | None:
    return stage.client().metrics().get(f"{PREFIX}alert_active", alert=name)


def _becomes(context: Context, stage: Stage, name: str, wanted: float) -> tuple[bool, float | None]:
    value = _alert(stage, name)
    for _ in patiently(context.settle_s):
        if value == wanted:
            return True, value
        value = _alert(stage, name)
    return False, value


def _line(context: Context, stage: Stage, name: str, planned: object) -> None:
    """Crosses one line with sessions, each with an MCP server of its own."""
    if planned is None:
        value = _alert(stage, name)
        remedy = Remedy(((f"capacity.{name}", 500 if name == "sessions" else 30),))
        text = "nothing is planned, and nothing alerts" if value is None else f"alert_active is {value:.0f}"
        context.note(False, f"an alert on {name}", text, remedy=remedy)
        return
    context.say(f"crossing the line on {name}")
    quiet = _alert(stage, name) if name == "sessions" else 0.0
    for n in range(SESSIONS):
        stage.client().turn(f"line-{n}", "Hello.", profile=stage.config.profile_name)
    fired, value = _becomes(context, stage, name, 1.0)
    expected = f"the alert on {name} fires at the plan's line"
    context.note(fired and quiet == 0, expected, f"alert_active was {quiet}, is {value} at {SESSIONS} or more")


def _let_go(stage: Stage) -> None:
    client = stage.client()
    for name in list(client.sessions()):
        client.delete(name)


def _cleared(context: Context, stage: Stage, names: list[str]) -> None:
    context.say("going back below the lines")
    for name in names:
        cleared, value = _becomes(context, stage, name, 0.0)
        context.note(cleared, f"the alert on {name} clears", f"alert_active is {value} without sessions")


def _memory_line(context: Context, configured: str, baseline: int, alert_at: float) -> None:
    config = _config(context)
    # A third above what the service weighs alone: three servers of 40 MiB cross it, and without them it clears.
    planned = int(baseline * 1.35 / alert_at)
    servers = max(1, int(baseline * 0.5 / (SERVER_MIB * MIB)) + 1)
    config.scale("capacity.memory", f"{planned // MIB}MiB")
    config.lift("capacity.memory", f"{planned // MIB}MiB")
    _correct(config, configured)
    with context.stage(config) as stage:
        context.say("crossing the line on memory")
        client, profile = stage.client(), config.profile_name
        quiet = _alert(stage, "memory")
        for n in range(servers):
            client.turn(f"heavy-{n}", "Hello.", profile=profile)
        fired, value = _becomes(context, stage, "memory", 1.0)
        text = f"alert_active was {quiet}, is {value} with {servers} servers of {SERVER_MIB} MiB"
        context.note(fired and quiet == 0, "the alert on memory fires at the plan's line", text)
        _let_go(stage)
        cleared, value = _becomes(context, stage, "memory", 0.0)
        context.note(cleared, "the alert on memory clears", f"alert_active is {value} without sessions")


def _correct(config: ProbeConfig, configured: str) -> None:
    """Sizes are kept as bytes; the report shows them as the user wrote them."""
    config.scaled = [
        entry.model_copy(update={"configured": configured}) if entry.key == "capacity.memory" else entry
        for entry in config.scaled
    ]
