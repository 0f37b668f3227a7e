"""Item 2: spends a session's, a user's and a tenant's daily budget in parallel turns, counted at the model itself."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future
from datetime import datetime, time, timedelta
from itertools import cycle
from zoneinfo import ZoneInfo

from agentao_gov.budget import tenant_timezone
from agentao_gov.checklist.probe import Context, ProbedService, directive
from agentao_gov.checklist.probe_config import PLENTY_TOKENS, ProbeConfig
from agentao_gov.checklist.remedy import Remedy
from agentao_gov.simulator import CallTally
from agentao_gov.testrig.client import DOORS, HttpAnswer, in_background

#: Scaled limits: an upper bound of 13,000 to 25,000 tokens is reserved for a session's first call, so each budget
#: admits a few of them at once; a turn then costs 4,500 tokens and more as its history grows.
SESSION_TOKENS, USER_TOKENS, TENANT_TOKENS = 50_000, 90_000, 200_000
#: Rounds of parallel turns against one budget; one that is not held is seen long before.
ROUNDS_MAX, ROUNDS_UNLIMITED = 15, 2
AT_ONCE = 6
ANSWER_TOKENS = 2_000
#: The model answers late enough for turns to overlap: a budget that is checked and not reserved lets them all pass.
FIRST_TOKEN = "150ms"  # noqa: S105 - a duration
#: A turn's answer may come after midnight of the window it was refused in.
WINDOW_END_SLACK_S = 120.0
TURN_S_MAX = 60.0
WORKERS = 2


def probe_daily_token_budget(context: Context) -> None:
    """Used never exceeds the limit, refusals carry the window's end, and nothing reaches the model afterwards."""
    config = context.config()
    config.lift_caps()
    config.drop_servers()
    config.roomy_pool(4 * AT_ONCE)
    config.lift("limits.turn_tokens", PLENTY_TOKENS, profile=True)
    config.lift("limits.max_output_tokens", ANSWER_TOKENS + 100, profile=True)
    config.long_turns()
    if context.facts.deployment.budget.store != "memory":
        # One budget for all processes: a ledger of each worker's own would admit everything twice.
        config.workers = WORKERS
    limits = _scale(config)
    with context.service(config) as service:
        _spend(context, service, "session", limits["session"], [("one", "ann")] * AT_ONCE)
        _spend(context, service, "user", limits["user"], [(f"ben-{n}", "ben") for n in range(AT_ONCE)])
        _spend(context, service, "tenant", limits["tenant"], [(f"crowd-{n}", f"crowd-{n}") for n in range(AT_ONCE)])


def _scale(config: ProbeConfig) -> dict[str, int | None]:
    limits: dict[str, int | None] = {}
    session, user = config.get("budget.session_daily_tokens"), config.get("budget.user_daily_tokens")
    tenant = config.tenant_limit("daily_tokens") or config.get("budget.tenant_daily_tokens")
    limits["session"] = _scale_one(config, "budget.session_daily_tokens", session, SESSION_TOKENS)
    limits["user"] = _scale_one(config, "budget.user_daily_tokens", user, USER_TOKENS)
    limits["tenant"] = None if tenant is None else min(int(tenant), TENANT_TOKENS)
    if limits["tenant"] is not None and limits["tenant"] != tenant:
        if config.tenant_limit("daily_tokens") is None:
            config.scale("budget.tenant_daily_tokens", limits["tenant"])
        else:
            config.scale_tenant("daily_tokens", limits["tenant"])
    return limits


def _scale_one(config: ProbeConfig, key: str, configured: int | None, most: int) -> int | None:
    if configured is not None and configured > most:
        config.scale(key, most)
        return most
    return configured


def _spend(
    context: Context, service: ProbedService, scope: str, limit: int | None, turns: Sequence[tuple[str, str]]
) -> None:
    """Asks in parallel until refused; `turns` are (session, user). The tag names the scope at the model."""
    context.say(f"spending the {scope}'s budget in {len(turns)} parallel turns")
    client, profile = service.client(), service.config.profile_name
    question = directive("Spend.", tag=scope, answer_tokens=ANSWER_TOKENS, first_token=FIRST_TOKEN)
    answers: list[HttpAnswer] = []
    for _ in range(ROUNDS_UNLIMITED if limit is None else ROUNDS_MAX):
        futures: list[Future[HttpAnswer]] = [
            in_background(client.turn, session, question, profile=profile, user=user, timeout_s=TURN_S_MAX, door=door)
            for (session, user), door in zip(turns, cycle(DOORS), strict=False)
        ]
        answers = [future.result(TURN_S_MAX + 5) for future in futures]
        if all(answer.status in (400, 429) for answer in answers):
            break
    remedy = Remedy(((_KEYS[scope], _SUGGESTED[scope]),))
    refusals = [answer for answer in answers if answer.status in (400, 429)]
    truth = context.simulator.truth(requests=False)
    # All phases are one tenant's: its tally is everything.
    tally = truth.total if scope == "tenant" else truth.by_tag.get(scope, CallTally())
    if limit is None:
        text = f"unlimited: {tally.total_tokens:,} tokens in {tally.calls} calls, {len(refusals)} refusals"
        context.note(False, f"the {scope}'s daily budget refuses", text, (), remedy)
        return
    context.note(
        tally.total_tokens <= limit and tally.calls > 0,
        f"tokens at the model at most the {scope}'s limit of {limit:,}",
        f"{tally.total_tokens:,} in {tally.calls} calls",
        [f"prompt {tally.prompt_tokens:,}, completion {tally.completion_tokens:,}"],
        remedy,
    )
    if limit >= SESSION_TOKENS:
        # What is left is less than the next call may need; half of it or more means that refusals come too early.
        text = f"{tally.total_tokens:,} of {limit:,}"
        context.note(tally.total_tokens >= limit / 2, f"the {scope}'s budget can be used", text)
    _refusals(context, service, scope, answers, turns)


def _refusals(
    context: Context,
    service: ProbedService,
    scope: str,
    answers: Sequence[HttpAnswer],
    turns: Sequence[tuple[str, str]],
) -> None:
    codes = sorted({f"{answer.status} {answer.code}" for answer in answers})
    exhausted = [answer for answer in answers if answer.status == 429 and answer.code == "budget_exhausted"]
    good = len(exhausted) == len(answers)
    context.note(good, f"the spent {scope} gets 429 budget_exhausted", ", ".join(codes), answers[:3])
    if exhausted:
        end_s = _window_end_s(context, service)
        waits = [answer.retry_after_s or 0.0 for answer in exhausted]
        close = all(abs(wait - end_s) <= WINDOW_END_SLACK_S for wait in waits)
        expected = f"the {scope}'s refusal carries the window's end"
        context.note(close, expected, f"Retry-After {waits[0]:,.0f} s, the day ends in {end_s:,.0f} s")
    before = context.simulator.truth(requests=False).total.calls
    session, user = turns[0]
    again = service.client().turn(session, "Once more?", profile=service.config.profile_name, user=user)
    calls = context.simulator.truth(requests=False).total.calls - before
    text = f"{calls} calls reached the model, the turn got {again}"
    context.note(calls == 0 and not again.answered, f"no model call once the {scope}'s budget is spent", text)


def _window_end_s(context: Context, service: ProbedService) -> float:
    zone = ZoneInfo(tenant_timezone(context.facts.deployment, service.config.tenant))
    now = datetime.now(zone)
    midnight = datetime.combine(now.date() + timedelta(days=1), time.min, zone)
    return midnight.timestamp() - now.timestamp()


_KEYS = {
    "session": "budget.session_daily_tokens",
    "user": "budget.user_daily_tokens",
    "tenant": "budget.tenant_daily_tokens",
}
_SUGGESTED = {"session": 300_000, "user": 1_000_000, "tenant": 5_000_000}
