"""Item 1: opens one session too many, for a user and for a tenant, by every door, while another tenant goes on."""

from __future__ import annotations

from itertools import cycle

from agentao_gov.checklist.probe import Context, HeldTurns, ProbedService
from agentao_gov.checklist.probe_config import ProbeConfig
from agentao_gov.checklist.remedy import Remedy
from agentao_gov.testrig.client import DOORS, HttpAnswer
from agentao_gov.testrig.service import patiently

USER_CAP, TENANT_CAP = 2, 4
#: Sessions tried against a cap that is absent.
WITHOUT_CAP = 6
FREED_S_MAX = 10.0
#: The gate of the one session that is closed while the others go on.
FIRST = "first"
WORKERS = 2


def probe_session_caps(context: Context) -> None:
    """The extra session gets 429 with Retry-After, the neighbour is served, and a closed session frees its place."""
    config = _config(context)
    with context.service(config) as service:
        holding = HeldTurns(context.simulator, service.client(), config.profile_name)
        # Held apart from the rest, so that it can be closed while everybody else is busy.
        held_first = holding.open("first", "ann", gate=FIRST) is None
        _one_user_too_many(context, config, holding)
        _one_session_too_many(context, config, holding)
        _neighbour(context, service)
        if held_first:
            _freed(context, service, holding)
        _answered(context, holding)
    cap = config.tenant_limit("max_sessions")
    if cap is not None and cap >= WORKERS:
        _workers(context, cap)


def _config(context: Context) -> ProbeConfig:
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
    return config


def _one_user_too_many(context: Context, config: ProbeConfig, holding: HeldTurns) -> None:
    """`ann` has one session already."""
    cap, tenant_cap = config.tenant_limit("max_sessions_per_user"), config.tenant_limit("max_sessions")
    if cap is not None and tenant_cap is not None and cap >= tenant_cap:
        # The tenant's cap is met first; nothing to see here.
        return
    context.say("opening sessions for one user")
    room = WITHOUT_CAP if cap is None else cap - 1
    inside = [holding.open(f"ann-{n}", "ann", door=door) for n, door in zip(range(room), cycle(DOORS), strict=False)]
    extra = [holding.open(f"ann-extra-{n}", "ann", door=door) for n, door in enumerate(DOORS)] if cap else []
    key = ("tenants", config.tenant, "max_sessions_per_user")
    _judge(context, "user", cap, (1, inside, extra), "user_session_limit", Remedy(((key, 5),)))


def _one_session_too_many(context: Context, config: ProbeConfig, holding: HeldTurns) -> None:
    cap = config.tenant_limit("max_sessions")
    context.say("filling the tenant's sessions")
    there = holding.held
    room = WITHOUT_CAP if cap is None else max(0, cap - there)
    doors = zip(range(room), cycle(DOORS), strict=False)
    inside = [holding.open(f"guest-{n}", f"guest-{n}", door=door) for n, door in doors]
    extra = [holding.open(f"late-{n}", f"late-{n}", door=door) for n, door in enumerate(DOORS)] if cap else []
    key = ("tenants", config.tenant, "max_sessions")
    _judge(context, "tenant", cap, (there, inside, extra), "tenant_session_limit", Remedy(((key, 50),)))


def _judge(
    context: Context,
    whose: str,
    cap: int | None,
    tried: tuple[int, list[HttpAnswer | None], list[HttpAnswer | None]],
    code: str,
    remedy: Remedy,
) -> None:
    """`tried`: sessions there were, answers of those within the cap, answers of those above it by door."""
    there, inside, extra = tried
    served = there + sum(answer is None for answer in (*inside, *extra))
    evidence = [f"session {there + n + 1}: {answer or 'served'}" for n, answer in enumerate(inside)]
    evidence += [f"one more, by {door}: {answer or 'served'}" for door, answer in zip(DOORS, extra, strict=False)]
    if cap is None:
        text = f"{served} sessions at once were all served"
        context.note(False, f"a cap on the {whose}'s concurrent sessions refuses", text, evidence, remedy)
        return
    refused = [answer for answer in extra if answer is not None and answer.status == 429 and answer.code == code]
    expected = f"session {cap + 1} of one {whose} gets 429 {code}, by whichever door"
    text = f"{served} served, then {len(refused)} of {len(extra)} refused; the last {extra[-1] or 'was served'}"
    context.note(len(refused) == len(extra) and served == cap, expected, text, evidence, remedy)
    if refused:
        mute = [answer for answer in refused if not answer.retry_after_s or answer.retry_after_s <= 0]
        context.note(not mute, f"the {whose}'s refusals say when to come back", f"got {(mute or refused)[0]}")


def _neighbour(context: Context, service: ProbedService) -> None:
    context.say("asking as another tenant")
    client, profile = service.client(service.config.neighbour), service.config.profile_name
    answers = [client.turn(f"theirs-{n}", "Are you served?", profile=profile) for n in range(2)]
    good = all(answer.answered for answer in answers)
    context.note(good, "another tenant is served meanwhile", f"got {answers[-1]}", answers)


def _freed(context: Context, service: ProbedService, holding: HeldTurns) -> None:
    """One session is closed while all others are busy, so that only its own place can have become free."""
    context.say("closing a session and asking again")
    holding.release(FIRST)
    closed = service.client().delete("first")
    last: HttpAnswer | None = HttpAnswer(0)
    for n, _ in enumerate(patiently(FREED_S_MAX)):
        last = holding.open(f"next-{n}", "next")
        if last is None or last.status != 429:
            break
    text = f"DELETE got {closed.status}, the next session {f'got {last}' if last else 'was served'}"
    context.note(last is None, "the cap is free again after a close", text)


def _answered(context: Context, holding: HeldTurns) -> None:
    answers = holding.release()
    text = f"{sum(a.answered for a in answers.values())} of {len(answers)} answered"
    good = all(answer.answered for answer in answers.values())
    context.note(good, "the sessions that were served get their answers", text, list(answers.values()))


def _workers(context: Context, cap: int) -> None:
    """Several processes share a cap; which of them a session reaches is chance, so the sum is what counts."""
    config = _config(context)
    config.workers = WORKERS
    with context.service(config) as service:
        context.say(f"the same with {WORKERS} workers")
        holding = HeldTurns(context.simulator, service.client(), config.profile_name)
        answers = [holding.open(f"w-{n}", f"w-{n}") for n in range(2 * cap + 1)]
        served = sum(answer is None for answer in answers)
        context.note(
            0 < served <= cap,
            f"at most {cap} sessions of one tenant with `serve --workers {WORKERS}`",
            f"{served} served, {len(answers) - served} refused",
            [f"session {n + 1}: {answer or 'served'}" for n, answer in enumerate(answers)],
        )
        holding.release()
