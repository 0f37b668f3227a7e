"""Makes every alert fire and clear: each line is crossed by what it is meant to catch, and crossed back.

A part of the capacity plan that is absent has no alert; that fails here, with the line that plans it.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path

import psutil

from agentao_gov.checklist.probe import Context, ProbedService, directive
from agentao_gov.checklist.probe_config import STUB_SERVER, ProbeConfig
from agentao_gov.checklist.remedy import Remedy
from agentao_gov.testrig.client import HttpAnswer, in_background
from agentao_gov.testrig.guarded import tree_bytes
from agentao_gov.testrig.service import patiently

MIB = 2**20
#: The service says nothing about memory a session below ten of them.
SESSIONS = 11
#: Scaled: idle sessions are evicted from nine tenths of the planned memory on, so the alert's line must be well below.
ALERT_AT = 0.5
#: The memory line above what all sessions weigh, and how far one session's MCP server carries the whole past it.
LINE_FACTOR, PAST_LINE = 1.2, 1.12
HELD_BYTES_MIN, HELD_BYTES_MAX = 32 * MIB, 2048 * MIB
#: A pool is too small where a tenth of the evicted sessions come back within a minute, counted from the twentieth on.
EVICTIONS, RETURNS, EVICTIONS_AFTER = 22, 3, 16
#: What a session process weighs of its own at least, its MCP server included.
FORK_BYTES = 40 * MIB
LIGHT, STICKY = "checklist-light", "checklist-sticky"
#: SQLite waits 5 s for a lock, so a turn is abandoned from the second to the fifth; a loaded machine may miss that.
STICKY_TURN_S, STICKY_TOOL_S, STICKY_GRACE_S = "1s", "500ms", "500ms"
STICKY_TRIES, STICKY_S_MAX = 3, 6.0
PLANNED = {"sessions": 500, "mcp_processes": 30, "memory": "5GiB"}


@dataclass(frozen=True, slots=True)
class Weights:
    """Bytes of the service without sessions, and of one session with an MCP server that holds nothing."""

    alone: int
    session: int

    @property
    def full(self) -> int:
        """Bytes of the service with all the sessions of this probe."""
        return self.alone + SESSIONS * max(0, self.session)


def probe_alerts(context: Context, config: ProbeConfig, weights: Weights) -> None:
    """Crosses every line of the capacity plan in one service, and crosses it back.

    Args:
        context: takes the checks.
        config: the service's; no limit of another item is in the way.
        weights: what the service and its sessions weigh without load.
    """
    plan = dict(config.get("capacity") or {})
    for name, value in PLANNED.items():
        if plan.get(name) is None:
            remedy = Remedy(((f"capacity.{name}", value),))
            context.note(False, f"an alert on {name}", "nothing is planned, and nothing alerts", remedy=remedy)
    planned = [name for name in PLANNED if plan.get(name) is not None]
    forks = config.get("pool.mode") == "subprocess"
    if forks:
        # Forks share most of what they seem to weigh, and their stock comes and goes: only the least is sure.
        weights = Weights(weights.alone, min(weights.session, FORK_BYTES))
    _scale(config, planned, weights)
    with context.service(config) as service:
        alerts = _Alerts(context, service)
        alerts.quiet()
        _open(service, [f"line-{n}" for n in range(SESSIONS)])
        lines = [name for name in ("sessions", "mcp_processes") if name in planned]
        alerts.fire(lines, f"at {SESSIONS} sessions with an MCP server each")
        if "memory" in planned:
            names = ["memory", "session_memory"] if _shares_memory(config, planned) else ["memory"]
            _memory(context, service, alerts, names, int(weights.full * LINE_FACTOR), clears=not forks)
        for session in service.client().sessions():
            service.client().delete(session)
        alerts.clear([*lines, *(["memory"] if forks and "memory" in planned else [])], "without sessions")
        _pool_too_small(context, service, alerts)
        _ledger(context, service, alerts)
        _abandoned(context, service, alerts)


def _scale(config: ProbeConfig, planned: Iterable[str], weights: Weights) -> None:
    config.scale("capacity.alert_at", ALERT_AT)
    for name in planned:
        if name == "memory":
            planned_mib = int(weights.full * LINE_FACTOR / ALERT_AT) // MIB
            config.scale("capacity.memory", f"{planned_mib}MiB")
        else:
            config.scale(f"capacity.{name}", SESSIONS)
    config.lift("pool.max_sessions", SESSIONS)
    config.lift("pool.max_busy", SESSIONS)
    config.lift("pool.max_opening", SESSIONS)
    config.drop_servers()
    config.add_profile(LIGHT)
    sticky = config.add_profile(STICKY)
    sticky["tools"] = {"allow": ["save_memory"], "permission_mode": "full-access"}
    sticky["limits"] = {
        **sticky["limits"],
        "turn_timeout": STICKY_TURN_S,
        "tool_timeout": STICKY_TOOL_S,
        "tool_timeouts": {},
        "cancel_grace": STICKY_GRACE_S,
    }
    config.add_stub()


def _shares_memory(config: ProbeConfig, planned: Iterable[str]) -> bool:
    """Whether planned sessions at the present memory a session make the same sum as `memory`: not for forks."""
    return "sessions" in planned and config.get("pool.mode") == "in-process"


class _Alerts:
    """Reads the service's `alert_active` and records what that proves."""

    def __init__(self, context: Context, service: ProbedService) -> None:
        self._context = context
        self._service = service

    def read(self) -> dict[str, float]:
        """Every alert's value by its name, as `/metrics` has it now."""
        samples = self._service.client().metrics().samples
        found = ((dict(labels), value) for (name, labels), value in samples.items() if name.endswith("_alert_active"))
        return {labels["alert"]: value for labels, value in found if "alert" in labels}

    def quiet(self) -> None:
        """Records whether no alert is active before anything was done."""
        standing = self.read()
        for _ in patiently(self._context.settle_s):
            if standing and not any(standing.values()):
                break
            standing = self.read()
        text = ", ".join(f"{name} {value:.0f}" for name, value in standing.items()) or "no alert_active at all"
        self._context.note(bool(standing) and not any(standing.values()), "no alert stands at rest", text)

    def fire(self, names: Iterable[str], when: str) -> None:
        """Records for each of the alerts whether it becomes active soon; `when` says under which load."""
        for name in names:
            good, value = self.becomes(name, 1.0, self._context.settle_s)
            self._context.note(good, f"the alert on {name} fires", f"alert_active is {value} {when}")

    def clear(self, names: Iterable[str], when: str) -> None:
        """Records for each of the alerts whether it becomes inactive soon; `when` says what had changed."""
        for name in names:
            good, value = self.becomes(name, 0.0, self._context.settle_s)
            self._context.note(good, f"the alert on {name} clears", f"alert_active is {value} {when}")

    def becomes(self, name: str, wanted: float, seconds: float) -> tuple[bool, float | None]:
        """Whether the alert takes the wanted value within so many seconds, and the value it has then."""
        value = self.read().get(name)
        for _ in patiently(seconds):
            if value == wanted:
                return True, value
            value = self.read().get(name)
        return False, value


def _open(service: ProbedService, sessions: Iterable[str], profile: str | None = None) -> list[HttpAnswer]:
    """Runs one turn in each of the sessions, all at once."""
    client, name = service.client(), profile or service.config.profile_name
    futures: list[Future[HttpAnswer]] = [
        in_background(client.turn, session, "Hello.", profile=name) for session in sessions
    ]
    return [future.result() for future in futures]


def _memory(
    context: Context, service: ProbedService, alerts: _Alerts, names: list[str], line: int, *, clears: bool
) -> None:
    """Takes what is missing to `line` bytes through one session's MCP server, so that the alert must fire."""
    held = max(HELD_BYTES_MIN, int(line * PAST_LINE) - tree_bytes(service.pid))
    room = min(HELD_BYTES_MAX, psutil.virtual_memory().available // 2)
    if held > room:
        text = f"not tried: it takes {held // MIB:,} MiB of the {room // MIB:,} MiB that may be used"
        context.warn("the alert on memory fires", text, Remedy(note="Run the checklist where more memory is free"))
        return
    context.say("crossing the line on memory")
    _hold(service, held // MIB)
    alerts.fire(names, f"with {held // MIB:,} MiB held by one session's MCP server")
    _hold(service, 0)
    if clears:
        alerts.clear(names, "once they were given back")


def _hold(service: ProbedService, mib: int) -> None:
    call = {"name": f"mcp_{STUB_SERVER}_hold", "args": {"mib": mib}, "rounds": 1}
    service.client().turn("line-0", directive("Hold.", tool=call), profile=service.config.profile_name)


def _pool_too_small(context: Context, service: ProbedService, alerts: _Alerts) -> None:
    """Some of those evicted come back at once; afterwards so many others are evicted that they no longer matter."""
    context.say("opening more sessions than the pool holds, and coming back")
    client = service.client()

    def ask(names: Iterable[str]) -> None:
        for name in names:
            client.turn(name, "Hello.", profile=LIGHT)

    first = [f"many-{n}" for n in range(SESSIONS + EVICTIONS - RETURNS)]
    ask(first)
    ask(first[:RETURNS])
    text = f"with {RETURNS} of {EVICTIONS} evicted sessions back within a minute"
    alerts.fire(["pool_too_small"], text)
    ask(f"more-{n}" for n in range(EVICTIONS_AFTER))
    alerts.clear(["pool_too_small"], f"with {RETURNS} of {EVICTIONS + EVICTIONS_AFTER}")


def _ledger(context: Context, service: ProbedService, alerts: _Alerts) -> None:
    """Takes the ledger's file away, as a disk that is gone does, and brings it back."""
    ledger = service.state_dir / str(service.config.get("budget.path"))
    if not ledger.exists():
        # In memory: there is nothing that could fail to answer.
        return
    context.say("taking the ledger away")
    aside = ledger.with_name(f"{ledger.name}.aside")
    ledger.rename(aside)
    try:
        alerts.fire(["ledger"], "while its file is away")
    finally:
        aside.rename(ledger)
    alerts.clear(["ledger"], "once its file is back")


def _abandoned(context: Context, service: ProbedService, alerts: _Alerts) -> None:
    """A tool that waits for a lock of ours cannot be cancelled; it comes back when we let go of the lock."""
    if service.config.get("pool.mode") == "subprocess":
        # There the session's process is killed: no thread can be abandoned.
        return
    context.say("holding on to a tool")
    client = service.client()
    question = directive("Remember.", tool={"name": "save_memory", "args": {"key": "k", "value": "v"}, "rounds": 1})
    fired = False
    for session in (f"sticky-{n}" for n in range(STICKY_TRIES)):
        client.turn(session, "Hello.", profile=STICKY)
        databases = (path for path in service.state_dir.rglob("memory.db") if f"s-{session}" in path.parts)
        if (database := next(databases, None)) is not None:
            with _locked(database):
                future = in_background(client.turn, session, question, profile=STICKY)
                fired, _ = alerts.becomes("threads_abandoned", 1.0, STICKY_S_MAX)
            future.result()
        if fired:
            break
    text = "while a tool cannot be stopped"
    context.note(fired, "the alert on threads_abandoned fires", f"alert_active is {float(fired)} {text}")
    alerts.clear(["threads_abandoned"], "once it has come back")


@contextlib.contextmanager
def _locked(database: Path) -> Iterator[None]:
    with contextlib.closing(sqlite3.connect(database, isolation_level=None)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        try:
            yield
        finally:
            connection.execute("ROLLBACK")
