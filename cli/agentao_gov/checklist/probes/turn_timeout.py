"""Item 3: a model that never sends a byte, one that drips, and a tool that sleeps; each turn must really end."""

from __future__ import annotations

from typing import Any

from agentao_gov.checklist.client import Answer
from agentao_gov.checklist.probe import Context, directive
from agentao_gov.checklist.scaling import STUB_SERVER, ProbeConfig
from agentao_gov.checklist.stage import Stage, patiently
from agentao_gov.config.units import format_duration, parse_duration_s

__all__ = ["probe_turn_timeout"]

#: Scaled: far below the tiers, far above a loaded machine's hiccups.
TURN_S, TOOL_S, GRACE_S = 2.0, 1.0, 2.0
#: What HTTP and a loaded machine may add to deadline + grace.
SLACK_S = 3.0


def probe_turn_timeout(context: Context) -> None:
    """Each turn ends within deadline + grace, the model's connection and the thread are back, the next turn works."""
    config = context.config()
    config.lift_budgets()
    config.lift_caps()
    config.roomy_pool(8)
    config.add_stub(request_timeout=format_duration(TOOL_S))
    configured_s = parse_duration_s(config.limit("limits.turn_timeout"))
    if configured_s > TURN_S:
        config.scale("limits.turn_timeout", format_duration(TURN_S), profile=True)
    if parse_duration_s(config.limit("limits.cancel_grace")) > GRACE_S:
        config.scale("limits.cancel_grace", format_duration(GRACE_S), profile=True)
    _scale_tools(config, min(TOOL_S, configured_s / 2))
    with context.stage(config) as stage:
        # The first session imports the MCP SDK, which takes a second or more and is nobody's turn.
        stage.client().turn("warm", "Hello.", profile=config.profile_name)
        _model(context, stage, "never sends a byte", {"fault": "hang"})
        _model(context, stage, "drips a byte at a time", {"fault": {"kind": "drip", "interval": "100ms"}})
        _tool(context, stage)
        _threads(context, stage)


def _scale_tools(config: ProbeConfig, seconds: float) -> None:
    if parse_duration_s(config.limit("limits.tool_timeout")) > seconds:
        config.scale("limits.tool_timeout", format_duration(seconds), profile=True)
    for name, limit in (config.limit("limits.tool_timeouts") or {}).items():
        if parse_duration_s(limit) > seconds:
            config.scale(f"limits.tool_timeouts.{name}", format_duration(seconds), profile=True)


def _limits_s(config: ProbeConfig) -> tuple[float, float]:
    return parse_duration_s(config.limit("limits.turn_timeout")), parse_duration_s(config.limit("limits.cancel_grace"))


def _model(context: Context, stage: Stage, what: str, behaviour: dict[str, Any]) -> None:
    """One fault of the model."""
    context.say(f"a model that {what}")
    turn_s, grace_s = _limits_s(stage.config)
    bound_s = turn_s + grace_s + SLACK_S
    client, profile, session = stage.client(), stage.config.profile_name, f"slow-{what.split()[0]}"
    answer = client.turn(session, directive("Answer.", **behaviour), profile=profile, timeout_s=bound_s + 10)
    total_s = float((answer.report.get("timing_ms") or {}).get("total", 0)) / 1000
    ended = answer.status == 504 and answer.code == "turn_timeout"
    in_time = ended and total_s <= turn_s + grace_s and answer.elapsed_s <= bound_s
    context.note(
        in_time,
        f"a model that {what}: 504 within turn_timeout + cancel_grace ({turn_s + grace_s:g} s)",
        f"got {answer}",
        [f"the report says {total_s:.2f} s"] if total_s else [],
    )
    open_calls = _open_calls(context)
    context.note(open_calls == 0, f"a model that {what}: its connection is closed", f"{open_calls} calls still open")
    again = client.turn(session, "Are you back?", profile=profile)
    context.note(again.answered, f"a model that {what}: the session's next turn works", f"got {again}")


def _open_calls(context: Context) -> int:
    count = 0
    for _ in patiently(context.settle_s):
        count = context.simulator.truth(requests=False).total.in_flight
        if count == 0:
            break
    return count


def _tool(context: Context, stage: Stage) -> None:
    """A tool that sleeps past its time-out; the model is told and the turn goes on."""
    context.say("a tool that sleeps")
    turn_s, grace_s = _limits_s(stage.config)
    call = {"name": f"mcp_{STUB_SERVER}_sleep", "args": {"seconds": 600}, "rounds": 1}
    question = directive("Sleep.", tool=call, text="The tool was stopped.")
    answer = stage.client().turn("sleeper", question, profile=stage.config.profile_name, timeout_s=60)
    calls = answer.report.get("tool_calls") or []
    outcomes = [f"{c.get('name')}: {c.get('outcome')} after {c.get('duration_ms')} ms" for c in calls]
    timed_out = bool(calls) and all(c.get("outcome") == "timeout" for c in calls)
    context.note(
        _tool_ended(answer, turn_s + grace_s + SLACK_S) and timed_out,
        "a tool that sleeps is stopped at its time-out",
        f"got {answer}; {', '.join(outcomes) or 'no tool was called'}",
    )


def _tool_ended(answer: Answer, bound_s: float) -> bool:
    return answer.status in (200, 504) and answer.elapsed_s <= bound_s


def _threads(context: Context, stage: Stage) -> None:
    abandoned: float | None = None
    for _ in patiently(context.settle_s):
        abandoned = stage.client().metrics().get("agentao_gov_threads_abandoned")
        if not abandoned:
            break
    busy = stage.client().status().get("busy")
    good = abandoned == 0 and busy == 0
    context.note(good, "every turn's thread is back", f"threads_abandoned {abandoned}, busy {busy}")
