"""Item 4: an endless tool loop whose arguments change every time, so that only the cap can end it."""

from __future__ import annotations

from agentao_gov.checklist.probe import Context, directive
from agentao_gov.checklist.probe_config import STUB_SERVER
from agentao_gov.simulator import RequestRecord
from agentao_gov.testrig.client import Door, HttpAnswer, in_background

#: The loop is walked in full up to here; a higher cap is scaled down to it.
ITERATIONS = 30
#: Where there is no cap worth the name the loop is left here.
LOOP_S_MAX = 60.0
_LOOPS: tuple[Door, ...] = ("turns", "chat stream")


def probe_max_iterations(context: Context) -> None:
    """Exactly N calls at the model, then the fallback that the profile names; whole and streamed."""
    config = context.config()
    config.lift_budgets()
    config.lift_caps()
    config.roomy_pool(4)
    config.long_turns(LOOP_S_MAX)
    config.add_stub()
    if int(config.limit("limits.max_iterations")) > ITERATIONS:
        config.scale("limits.max_iterations", ITERATIONS, profile=True)
    cap, fallback = int(config.limit("limits.max_iterations")), str(config.limit("on_limit.max_iterations"))
    with context.service(config) as service:
        context.say(f"endless tool loops against a cap of {cap}")
        client, profile, futures = service.client(), config.profile_name, []
        for door in _LOOPS:
            tool = {"name": f"mcp_{STUB_SERVER}_ping", "args": {"n": "{round}"}, "vary": True, "rounds": "endless"}
            question, session = directive("Loop.", tool=tool, tag=door), door.replace(" ", "-")
            patience_s = LOOP_S_MAX + 20
            turn = in_background(client.turn, session, question, profile=profile, timeout_s=patience_s, door=door)
            futures.append(turn)
        answers = [future.result() for future in futures]
        records = context.simulator.truth().requests
    for door, answer in zip(_LOOPS, answers, strict=True):
        _judge(context, door, answer, [record for record in records if record.tag == door], cap)
    # The call after the cap asks another question, without the loop's tag.
    _fallback(context, answers, [record for record in records if not record.tools and not record.is_summary], fallback)


def _judge(context: Context, door: Door, answer: HttpAnswer, records: list[RequestRecord], cap: int) -> None:
    looped = sum(1 for record in records if record.tool_calls)
    context.note(
        looped == cap,
        f"exactly {cap} calls at the model (by {door})",
        f"{looped} calls in the loop, then got {answer}",
        [f"{len(records)} requests in all, iterations reported: {answer.report.get('iterations')}"],
    )
    said = answer.report.get("outcome")
    context.note(said == "max_iterations", f"the turn says that the cap ended it (by {door})", f"outcome {said}")


def _fallback(context: Context, answers: list[HttpAnswer], wrapped: list[RequestRecord], fallback: str) -> None:
    given = sum(bool(answer.report.get("answer")) for answer in answers)
    if fallback == "wrap_up":
        text = f"{len(wrapped)} calls without tools after {len(answers)} loops, {given} answers given"
        good = len(wrapped) == given == len(answers)
        context.note(good, "one last call without tools gives the best answer", text)
    else:
        context.note(not wrapped, "nothing is sent after the cap", f"{len(wrapped)} further calls")
