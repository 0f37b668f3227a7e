"""Item 4: an endless tool loop whose arguments change every time, so that only the cap can end it."""

from __future__ import annotations

from agentao_gov.checklist.probe import Context, directive
from agentao_gov.checklist.scaling import STUB_SERVER

__all__ = ["probe_max_iterations"]

#: The loop is walked in full up to here; a higher cap is scaled down to it.
ITERATIONS = 30
#: Where there is no cap worth the name the loop is left here.
LOOP_S_MAX = 60.0


def probe_max_iterations(context: Context) -> None:
    """Exactly N calls at the model, then the fallback that the profile names."""
    config = context.config()
    config.lift_budgets()
    config.lift_caps()
    config.roomy_pool(4)
    config.long_turns(LOOP_S_MAX)
    config.add_stub()
    if int(config.limit("limits.max_iterations")) > ITERATIONS:
        config.scale("limits.max_iterations", ITERATIONS, profile=True)
    cap, fallback = int(config.limit("limits.max_iterations")), str(config.limit("on_limit.max_iterations"))
    with context.stage(config) as stage:
        context.say(f"an endless tool loop against a cap of {cap}")
        tool = {"name": f"mcp_{STUB_SERVER}_ping", "args": {"n": "{round}"}, "vary": True, "rounds": "endless"}
        question = directive("Loop.", tool=tool)
        answer = stage.client().turn("loop", question, profile=config.profile_name, timeout_s=LOOP_S_MAX + 20)
        records = context.simulator.truth().requests
    looped = sum(1 for record in records if record.tool_calls)
    wrapped = [record for record in records if not record.tools and not record.is_summary]
    context.note(
        looped == cap,
        f"exactly {cap} calls at the model",
        f"{looped} calls in the loop, then got {answer}",
        [f"{len(records)} requests in all, iterations reported: {answer.report.get('iterations')}"],
    )
    said = answer.report.get("outcome")
    context.note(said == "max_iterations", "the turn says that the cap ended it", f"outcome {said}")
    if fallback == "wrap_up":
        text = f"{len(wrapped)} call(s) without tools, answer {'given' if answer.report.get('answer') else 'missing'}"
        good = len(wrapped) == 1 and bool(answer.report.get("answer"))
        context.note(good, "one last call without tools gives the best answer", text)
    else:
        context.note(not wrapped, "nothing is sent after the cap", f"{len(wrapped)} further call(s)")
