"""Item 6: SIGTERM with a turn in flight, a hung turn and MCP children; then the same with a second SIGTERM."""

from __future__ import annotations

import signal
import threading
import time
from concurrent.futures import Future
from dataclasses import dataclass, field

import psutil

from agentao_gov.checklist.probe import Context, ProbedService, directive
from agentao_gov.checklist.probe_config import ProbeConfig
from agentao_gov.checklist.probes.pool_limits import stubs_below
from agentao_gov.checklist.probes.servers import offered_servers, warn_of_missing
from agentao_gov.checklist.remedy import Remedy
from agentao_gov.config.units import format_duration, parse_duration_s
from agentao_gov.testrig.client import HttpAnswer, ServiceClient, in_background
from agentao_gov.testrig.guarded import children_of
from agentao_gov.testrig.service import POLL_S, patiently

#: Scaled rungs: long enough to be seen, and for an MCP server to close (0.3 s when polite).
RUNGS_S = {"lame_duck": 0.5, "drain": 3.0, "cancel": 2.0, "close": 3.0, "kill": 1.0}
#: The gate at which turns in flight wait.
LATE = "late"
#: How long three sessions may take to open: the users' own MCP servers take part, and those that fail take longest.
UNDER_WAY_S_MAX = 60.0
#: The turns in flight answer this long after SIGTERM: past the lame duck, within the drain.
ANSWER_AFTER_S = 1.5
#: A rung that a second signal cuts short.
LONG_DRAIN_S = 20.0
#: From the last rung to the process's end: closing the ledger and the interpreter, on a loaded machine.
EXIT_SLACK_S = 4.0
RUNG_NAMES = ("serving", "lame_duck", "draining", "cancelling", "closing", "killing", "gone")


@dataclass
class _Watch:
    """Polls the service on its way down: the rungs that it shows, its readiness, and what a new turn gets."""

    client: ServiceClient
    profile: str
    rungs: list[str] = field(default_factory=list)
    readiness: list[int] = field(default_factory=list)
    refusals: list[HttpAnswer] = field(default_factory=list)
    over: threading.Event = field(default_factory=threading.Event)

    def run(self) -> None:
        """Polls until the listener is gone."""
        while not self.over.wait(POLL_S):
            ready = self.client.request("GET", "/readyz", timeout_s=2)
            if not ready.status:
                return
            self.readiness.append(ready.status)
            rung = _rung(self.client)
            if rung and (not self.rungs or self.rungs[-1] != rung):
                self.rungs.append(rung)
            if rung in ("draining", "cancelling") and len(self.refusals) < 3:
                self.refusals.append(self.client.turn("late", "Too late?", profile=self.profile, timeout_s=5))

    @property
    def in_order(self) -> bool:
        """Whether the rungs only went down."""
        numbers = [RUNG_NAMES.index(rung) for rung in self.rungs]
        return numbers == sorted(numbers)


def probe_graceful_shutdown(context: Context) -> None:
    """In-flight answers are delivered, the rest is cancelled, within the budget, without orphans; signals escalate."""
    _one_signal(context)
    _two_signals(context)


def _config(context: Context) -> ProbeConfig:
    config = context.config()
    config.lift_budgets()
    config.lift_caps()
    config.roomy_pool(8)
    config.long_turns()
    config.add_stub()
    # The users' own servers are part of this: closing them is what takes time.
    config.profile["mcp"]["servers"].update(offered_servers(context.facts))
    return config


def _one_signal(context: Context) -> None:
    config = _config(context)
    for rung, seconds in RUNGS_S.items():
        if parse_duration_s(config.get(f"shutdown.{rung}")) > seconds:
            config.scale(f"shutdown.{rung}", format_duration(seconds))
    budget_s = min(
        parse_duration_s(config.get("server.shutdown_budget")),
        sum(parse_duration_s(config.get(f"shutdown.{rung}")) for rung in RUNGS_S),
    )
    config.scale("server.shutdown_budget", format_duration(budget_s))
    with context.service(config) as service:
        turns = _turns_in_flight(context, service)
        context.simulator.wait_for(held=2, in_flight=3, timeout_s=UNDER_WAY_S_MAX)
        pids = {child.pid for child in children_of(service.pid)}
        stubs = stubs_below(service.pid)
        context.say("SIGTERM with turns in flight")
        watch, seconds, code = _terminate(context, service, budget_s)
        _judge_turns(context, turns, watch)
        context.note(
            code == 143 and seconds <= budget_s + EXIT_SLACK_S,
            f"the process ends within its shutdown_budget ({budget_s:g} s) with 143",
            f"exit code {code} after {seconds:.1f} s",
            () if code is not None else service.log_tail(),
        )
        _no_orphans(context, pids, stubs)


@dataclass(frozen=True, slots=True)
class _Turns:
    """The turns that run when SIGTERM comes."""

    flying: Future[HttpAnswer]
    streaming: Future[HttpAnswer]
    hung: Future[HttpAnswer]


def _turns_in_flight(context: Context, service: ProbedService) -> _Turns:
    client, profile = service.client(), service.config.profile_name
    resting = client.turn("resting", "Rest.", profile=profile)
    warn_of_missing(context, resting)
    # Held until some time after SIGTERM, however long the others took to get to the model.
    late = directive("Answer soon.", hold=LATE, text="delivered")
    flying = in_background(client.turn, "flying", late, profile=profile)
    streaming = in_background(client.turn, "streaming", late, profile=profile, door="chat stream")
    hung = in_background(client.turn, "hung", directive("Hang.", fault="hang"), profile=profile)
    return _Turns(flying, streaming, hung)


def _terminate(context: Context, service: ProbedService, budget_s: float) -> tuple[_Watch, float, int | None]:
    watch = _Watch(service.client(), service.config.profile_name)
    thread = threading.Thread(target=watch.run, name="probe-watch", daemon=True)
    answer = threading.Timer(ANSWER_AFTER_S, context.simulator.release, (LATE,))
    began = time.monotonic()
    service.signal(signal.SIGTERM)
    thread.start()
    answer.start()
    code = service.wait(budget_s + EXIT_SLACK_S + 10)
    seconds = time.monotonic() - began
    watch.over.set()
    thread.join(10)
    answer.join(10)
    return watch, seconds, code


def _judge_turns(context: Context, turns: _Turns, watch: _Watch) -> None:
    order = " → ".join(watch.rungs) or "none was seen"
    seen = {"draining"} <= set(watch.rungs)
    context.note(watch.in_order and seen, "the rungs come in order", order)
    context.note(503 in watch.readiness, "readiness goes first", f"/readyz answered {sorted(set(watch.readiness))}")
    refused = bool(watch.refusals) and all(
        a.status == 503 and a.code == "draining" and a.retry_after_s for a in watch.refusals
    )
    text = ", ".join(map(str, watch.refusals)) or "none could be asked"
    context.note(refused, "new turns get 503 draining with Retry-After", text)
    delivered, streamed, cancelled = turns.flying.result(10), turns.streaming.result(10), turns.hung.result(10)
    good = all(answer.answered and answer.report.get("answer") == "delivered" for answer in (delivered, streamed))
    context.note(
        good,
        "the turns in flight are answered, whole and streamed",
        f"got {delivered}; streamed {streamed}",
        remedy=Remedy((("shutdown.drain", "12s"),)),
    )
    ended = cancelled.status == 503 and cancelled.code in ("draining", "shutdown")
    waited = cancelled.elapsed_s >= min(delivered.elapsed_s, ANSWER_AFTER_S)
    context.note(ended and waited, "the hung turn is cancelled after them and told so", f"got {cancelled}")


def _no_orphans(context: Context, pids: set[int], stubs: set[int]) -> None:
    left: set[int] = pids
    for _ in patiently(5.0):
        left = {pid for pid in pids if psutil.pid_exists(pid)}
        if not left:
            break
    text = f"{len(pids)} children, {len(stubs)} of them MCP servers; {len(left)} left"
    evidence = [f"before: {', '.join(map(str, sorted(pids)))}", f"left: {', '.join(map(str, sorted(left))) or 'none'}"]
    context.note(not left and bool(stubs), "no child process is left", text, evidence)


def _two_signals(context: Context) -> None:
    config = _config(context)
    # Alone: the users' servers have shown themselves with one signal, and may take seconds to start.
    config.add_stub()
    # The present rung must be long for its end to be the signal's doing.
    config.lift("shutdown", {"lame_duck": "100ms", "drain": f"{LONG_DRAIN_S:g}s", "cancel": "2s", "close": "3s"})
    config.lift("server.shutdown_budget", f"{LONG_DRAIN_S + 10:g}s")
    with context.service(config) as service:
        client = service.client()
        hung = in_background(client.turn, "hung", directive("Hang.", fault="hang"), profile=config.profile_name)
        context.simulator.wait_for(in_flight=1, timeout_s=20)
        context.say("a second SIGTERM")
        began = time.monotonic()
        service.signal(signal.SIGTERM)
        reached = _await_rung(client, "draining")
        service.signal(signal.SIGTERM)
        code = service.wait(LONG_DRAIN_S)
        seconds = time.monotonic() - began
        hung.result(10)
        context.note(
            reached and code == 143 and seconds < LONG_DRAIN_S,
            f"a second signal ends the drain of {LONG_DRAIN_S:g} s at once",
            f"exit code {code} after {seconds:.1f} s" if reached else "draining was never seen",
        )


def _await_rung(client: ServiceClient, wanted: str) -> bool:
    return any(_rung(client) == wanted for _ in patiently(10.0))


def _rung(client: ServiceClient) -> str:
    """The rung by the contract's metric: a foreign service has no status document of ours."""
    number = client.metrics().get("agentao_gov_shutdown_rung")
    return RUNG_NAMES[int(number)] if number is not None and 0 <= number < len(RUNG_NAMES) else ""
