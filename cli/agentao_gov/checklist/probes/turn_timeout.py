"""Item 3: a model that never sends a byte, one that drips, and a tool that sleeps; each turn must really end.

All of them at once: a limit that holds for one turn at a time is none, and a minute is short.
"""

from __future__ import annotations

from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

import psutil

from agentao_gov.checklist.probe import Context, ProbedService, directive
from agentao_gov.checklist.probe_config import STUB_SERVER, ProbeConfig
from agentao_gov.config.units import format_duration, parse_duration_s
from agentao_gov.testrig.client import Door, HttpAnswer, in_background
from agentao_gov.testrig.service import patiently

#: Scaled: far below the tiers, far above a loaded machine's hiccups.
TURN_S, TOOL_S, GRACE_S = 2.0, 1.0, 2.0
#: What HTTP and a loaded machine may add to deadline + grace.
SLACK_S = 3.0
#: Each fault hangs so many turns.
EACH = 2
#: Threads of the service's own (its pools grow and shrink) beside those of the turns; the faults hang six.
THREADS_SLACK = 4
#: To the first token, so that turns that begin together also run together.
OVERLAP = "500ms"


@dataclass(frozen=True, slots=True)
class _Fault:
    """One way for a model not to answer, and the door its turn comes in by."""

    name: str
    what: str
    behaviour: dict[str, Any]
    door: Door

    @property
    def sessions(self) -> list[str]:
        """The sessions whose turns it hangs."""
        return [f"{self.name}-{n}" for n in range(EACH)]


_FAULTS = (
    _Fault("mute", "a model that never sends a byte", {"fault": "hang"}, "turns"),
    _Fault("mute-streamed", "a model that never sends a byte, streamed", {"fault": "hang"}, "chat stream"),
    _Fault("drip", "a model that drips a byte at a time", {"fault": {"kind": "drip", "interval": "100ms"}}, "chat"),
)


_HUNG = [session for fault in _FAULTS for session in fault.sessions]


def probe_turn_timeout(context: Context) -> None:
    """Each turn ends within deadline + grace, the model's connection and the thread are back, the next turn works."""
    config = context.config()
    config.lift_budgets()
    config.lift_caps()
    config.roomy_pool(4 * EACH)
    config.add_stub(request_timeout=format_duration(TOOL_S))
    configured_s = parse_duration_s(config.limit("limits.turn_timeout"))
    if configured_s > TURN_S:
        config.scale("limits.turn_timeout", format_duration(TURN_S), profile=True)
    if parse_duration_s(config.limit("limits.cancel_grace")) > GRACE_S:
        config.scale("limits.cancel_grace", format_duration(GRACE_S), profile=True)
    _scale_tools(config, min(TOOL_S, configured_s / 2))
    with context.service(config) as service:
        # A process's first session imports the MCP SDK, which takes a second or more and is nobody's turn; every
        # other session opens here, so that the threads counted later are the turns' own.
        _ask_all(service, "Hello.", "warm")
        _ask_all(service, "Hello.", "sleeper", *_HUNG)
        # The pool keeps a thread for each turn at a time, for a while after: these are as many as will hang.
        _ask_all(service, directive("Hello.", first_token=OVERLAP, text="Hello."), "sleeper", *_HUNG)
        threads = _threads(service.pid)
        context.say("a model that never sends a byte, one that drips, and a tool that sleeps")
        futures = [_begin(service, fault) for fault in _FAULTS]
        asleep = _begin_tool(service)
        for fault, future in zip(_FAULTS, futures, strict=True):
            _judge(context, service, fault, future)
        _tool(context, service, asleep)
        context.say("asking the same sessions again")
        _connections(context)
        _next_turns(context, service)
        _threads_back(context, service, threads)


def _scale_tools(config: ProbeConfig, seconds: float) -> None:
    if parse_duration_s(config.limit("limits.tool_timeout")) > seconds:
        config.scale("limits.tool_timeout", format_duration(seconds), profile=True)
    for name, limit in (config.limit("limits.tool_timeouts") or {}).items():
        if parse_duration_s(limit) > seconds:
            config.scale(f"limits.tool_timeouts.{name}", format_duration(seconds), profile=True)


def _ask_all(service: ProbedService, question: str, *sessions: str) -> list[HttpAnswer]:
    client, profile = service.client(), service.config.profile_name
    futures = [in_background(client.turn, name, question, profile=profile) for name in sessions]
    return [future.result() for future in futures]


def _limits_s(config: ProbeConfig) -> tuple[float, float]:
    return parse_duration_s(config.limit("limits.turn_timeout")), parse_duration_s(config.limit("limits.cancel_grace"))


def _bound_s(config: ProbeConfig) -> float:
    return sum(_limits_s(config)) + SLACK_S


def _begin(service: ProbedService, fault: _Fault) -> list[Future[HttpAnswer]]:
    client, profile = service.client(), service.config.profile_name
    question, patience_s = directive("Answer.", **fault.behaviour), _bound_s(service.config) + 10
    return [
        in_background(client.turn, session, question, profile=profile, timeout_s=patience_s, door=fault.door)
        for session in fault.sessions
    ]


def _judge(context: Context, service: ProbedService, fault: _Fault, futures: list[Future[HttpAnswer]]) -> None:
    turn_s, grace_s = _limits_s(service.config)
    answers = [future.result() for future in futures]
    if not _in_time(service, answers):
        # Once more: a machine that stood still is late once, a limit that does not hold is late again.
        answers = [future.result() for future in _begin(service, fault)]
    slowest = max(answers, key=lambda answer: answer.elapsed_s)
    reported = ", ".join(f"{_total_s(answer):.2f} s" for answer in answers)
    context.note(
        _in_time(service, answers),
        f"{fault.what}: 504 turn_timeout within turn_timeout + cancel_grace ({turn_s + grace_s:g} s)",
        f"got {slowest}",
        [*answers, f"the reports say {reported}"],
    )


def _total_s(answer: HttpAnswer) -> float:
    return float((answer.report.get("timing_ms") or {}).get("total", 0)) / 1000


def _in_time(service: ProbedService, answers: list[HttpAnswer]) -> bool:
    limit_s = sum(_limits_s(service.config))
    return all(
        answer.status in (504, 200)
        and answer.code == "turn_timeout"
        and _total_s(answer) <= limit_s
        and answer.elapsed_s <= _bound_s(service.config)
        for answer in answers
    )


def _connections(context: Context) -> None:
    count = 0
    for _ in patiently(context.settle_s):
        count = context.simulator.truth(requests=False).total.in_flight
        if count == 0:
            break
    context.note(count == 0, "the connections to the model are closed", f"{count} calls still open at the model")


def _next_turns(context: Context, service: ProbedService) -> None:
    answers = _ask_all(service, "Are you back?", *_HUNG)
    good = sum(answer.answered for answer in answers)
    lines = [f"{session}: {answer}" for session, answer in zip(_HUNG, answers, strict=True)]
    context.note(good == len(answers), "each session's next turn works", f"{good} of {len(answers)} answered", lines)


def _begin_tool(service: ProbedService) -> Future[HttpAnswer]:
    call = {"name": f"mcp_{STUB_SERVER}_sleep", "args": {"seconds": 600}, "rounds": 1}
    question = directive("Sleep.", tool=call, text="The tool was stopped.")
    return in_background(service.client().turn, "sleeper", question, profile=service.config.profile_name, timeout_s=60)


def _tool(context: Context, service: ProbedService, future: Future[HttpAnswer]) -> None:
    """A tool that sleeps past its time-out; the model is told and the turn goes on."""
    answer = future.result()
    calls = answer.report.get("tool_calls") or []
    outcomes = [f"{c.get('name')}: {c.get('outcome')} after {c.get('duration_ms')} ms" for c in calls]
    timed_out = bool(calls) and all(c.get("outcome") == "timeout" for c in calls)
    in_time = answer.status in (200, 504) and answer.elapsed_s <= _bound_s(service.config)
    context.note(
        in_time and timed_out,
        "a tool that sleeps is stopped at its time-out",
        f"got {answer}; {', '.join(outcomes) or 'no tool was called'}",
    )


def _threads(pid: int) -> int:
    """Threads of the service itself: those of a session's own process end with it."""
    return int(psutil.Process(pid).num_threads())


def _threads_back(context: Context, service: ProbedService, before: int) -> None:
    abandoned: float | None = None
    after = before
    for _ in patiently(context.settle_s):
        abandoned = service.client().metrics().get("agentao_gov_threads_abandoned")
        after = _threads(service.pid)
        if not abandoned and after <= before + THREADS_SLACK:
            break
    busy = service.client().status().get("busy")
    context.note(
        abandoned == 0 and busy == 0 and after <= before + THREADS_SLACK,
        "every turn's thread is back",
        f"{before} threads before, {after} after; threads_abandoned {abandoned}, busy {busy}",
    )
