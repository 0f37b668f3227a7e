"""Item 7: compares /metrics with /proc under load, and makes each alert fire and clear."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import psutil

from agentao_gov.checklist.probe import Context, HeldTurns, ProbedService
from agentao_gov.checklist.probe_config import ProbeConfig
from agentao_gov.checklist.probes.alerts import Weights, probe_alerts
from agentao_gov.checklist.probes.pool_limits import stubs_below
from agentao_gov.testrig.guarded import tree_bytes
from agentao_gov.testrig.service import patiently

MIB = 2**20
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
    config.add_stub(mib=SERVER_MIB)
    with context.service(config) as service:
        weights = _true_figures(context, service)
    probe_alerts(context, _config(context), weights)


def _config(context: Context) -> ProbeConfig:
    config = context.config()
    config.lift_budgets()
    config.lift_caps()
    config.roomy_pool(8)
    config.long_turns()
    config.lift("pool.session_ttl", "30m")
    # A fresh agent is gone before anyone can count it.
    if config.get("pool.mode") == "fresh":
        config.lift("pool.mode", "in-process")
    return config


@dataclass
class _Pair:
    """What a metric says, and the same figure counted from outside."""

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


def _true_figures(context: Context, service: ProbedService) -> Weights:
    """Compares at one, at three and again at one session: a metric that reports a setting cannot follow."""
    client, profile, pid = service.client(), service.config.profile_name, service.pid
    alone = _at_rest_bytes(context, pid)
    for names in (["a"], ["b", "c"]):
        for name in names:
            client.turn(name, "Hello.", profile=profile)
        context.say(f"comparing /metrics with /proc at {len(client.sessions())} session(s)")
        _compare(context, service, pid)
    holding = HeldTurns(context.simulator, client, profile)
    held = holding.open("a", "u") is None
    busy = client.metrics().get(f"{PREFIX}sessions", state="busy")
    context.note(held and busy == 1, "a running turn is counted as busy", f'sessions{{state="busy"}} is {busy}')
    holding.release()
    heavy = tree_bytes(pid)
    for name in ("b", "c"):
        client.delete(name)
    _compare(context, service, pid)
    _memory_figures(context, service, pid, alone)
    light = tree_bytes(pid)
    # Of what two sessions weigh, their servers' ballast is the probe's own.
    each = max(0, heavy - light) // 2 - SERVER_MIB * MIB
    return Weights(alone=light - SERVER_MIB * MIB - each, session=each)


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


def _compare(context: Context, service: ProbedService, pid: int) -> None:
    client = service.client()

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


def _memory_figures(context: Context, service: ProbedService, pid: int, alone: int) -> None:
    client = service.client()

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
    most = tree_bytes(pid) - alone
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
