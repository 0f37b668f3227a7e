"""Item 1: opens one session too many, for a user and for a tenant, while another tenant goes on."""

from __future__ import annotations

from agentao_gov.checklist.client import Answer
from agentao_gov.checklist.holding import Holding
from agentao_gov.checklist.probe import Context
from agentao_gov.checklist.remedy import Remedy
from agentao_gov.checklist.scaling import ProbeConfig
from agentao_gov.checklist.stage import Stage, patiently

__all__ = ["probe_session_caps"]

USER_CAP, TENANT_CAP = 2, 4
#: Sessions tried against a cap that is absent.
WITHOUT_CAP = 6
FREED_S_MAX = 10.0


def probe_session_caps(context: Context) -> None:
    """The extra session gets 429 with Retry-After, the neighbour is served, and a closed session frees its place."""
    config = context.config()
    config.lift_budgets()
    config.lift_caps(but=config.tenant)
    config.drop_servers()
    config.long_turns()
    config.roomy_pool(4 * WITHOUT_CAP)
    for name, cap in (("max_sessions_per_user", USER_CAP), ("max_sessions", TENANT_CAP)):
        configured = config.tenant_limit(name)
        if configured is not None and configured > cap:
            config.scale_tenant(name, cap)
    with context.stage(config) as stage:
        holding = Holding(context.simulator, stage.client(), config.profile_name)
        _one_user_too_many(context, config, holding)
        last = _one_session_too_many(context, config, holding)
        _neighbour(context, stage)
        _freed(context, stage, holding, last)


def _one_user_too_many(context: Context, config: ProbeConfig, holding: Holding) -> None:
    cap = config.tenant_limit("max_sessions_per_user")
    tenant_cap = config.tenant_limit("max_sessions")
    if cap is not None and tenant_cap is not None and cap >= tenant_cap:
        # The tenant's cap is met first; nothing to see here.
        cap = max(0, tenant_cap - 1)
        for n in range(cap):
            holding.open(f"ann-{n}", "ann")
        return
    tries = WITHOUT_CAP if cap is None else cap + 1
    context.say(f"opening {tries} sessions for one user")
    answers = [holding.open(f"ann-{n}", "ann") for n in range(tries)]
    key = ("tenants", config.tenant, "max_sessions_per_user")
    _judge(context, "user", cap, answers, "user_session_limit", Remedy(((key, 5),)))


def _one_session_too_many(context: Context, config: ProbeConfig, holding: Holding) -> str:
    cap = config.tenant_limit("max_sessions")
    there = holding.held
    tries = WITHOUT_CAP if cap is None else cap - there + 1
    context.say("filling the tenant's sessions")
    answers = [holding.open(f"guest-{n}", f"guest-{n}") for n in range(max(1, tries))]
    key = ("tenants", config.tenant, "max_sessions")
    _judge(context, "tenant", cap, answers, "tenant_session_limit", Remedy(((key, 50),)), already=there)
    return f"guest-{max(1, tries) - 1}"


def _judge(
    context: Context,
    whose: str,
    cap: int | None,
    answers: list[Answer | None],
    code: str,
    remedy: Remedy,
    *,
    already: int = 0,
) -> None:
    served = already + sum(1 for answer in answers if answer is None)
    evidence = [f"session {already + n + 1}: {'served' if a is None else a}" for n, a in enumerate(answers)]
    if cap is None:
        text = f"{served} sessions at once were all served"
        context.note(False, f"a cap on the {whose}'s concurrent sessions refuses", text, evidence, remedy)
        return
    last = answers[-1]
    refused = last is not None and last.status == 429 and last.code == code
    good = refused and served == cap
    said = "was served" if last is None else f"got {last}"
    expected = f"session {cap + 1} of one {whose} gets 429 {code}"
    context.note(good, expected, f"{served} served, the next {said}", evidence, remedy)
    if last is not None and last.status == 429:
        wait = last.retry_after_s
        context.note(wait is not None and wait > 0, f"the {whose}'s refusal says when to come back", f"got {last}")


def _neighbour(context: Context, stage: Stage) -> None:
    context.say("asking as another tenant")
    client = stage.client(stage.config.neighbour)
    answer = client.turn("theirs", "Are you served?", profile=stage.config.profile_name)
    context.note(answer.answered, "another tenant is served meanwhile", f"got {answer}")


def _freed(context: Context, stage: Stage, holding: Holding, refused: str) -> None:
    context.say("closing a session and asking again")
    answers = holding.release()
    good = all(answer.answered for answer in answers.values())
    text = f"{sum(a.answered for a in answers.values())} of {len(answers)} answered"
    context.note(good, "the sessions that were served get their answers", text, list(answers.values()))
    client = stage.client()
    for session in list(answers)[:1]:
        client.delete(session)
    last = Answer(0)
    for _ in patiently(FREED_S_MAX):
        last = client.turn(refused, "Is there room now?", profile=stage.config.profile_name, user=refused)
        if last.status != 429:
            break
    context.note(last.answered, "the cap is free again after a close", f"got {last}")
