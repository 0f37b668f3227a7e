"""The published scripts on which bare agentao overspends: cumulative usage 85/235/420/640/890/1190 on a budget of 600,
565/1435/2610/4145 on 1,500, and a provider that invents 5,200 prompt tokens.

Driven through the model client itself, because a real agent's first prompt is larger than any of these budgets.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest

from agentao_gov.budget.types import Scope, ScopeLimit
from agentao_gov.clock import Deadline
from agentao_gov.governor import SessionKey
from agentao_gov.governor.classify import StopCause
from agentao_gov.governor.http import HttpClient
from agentao_gov.governor.model_client import GovernedModel
from agentao_gov.governor.turn import CallLimits, Turn, TurnLabels
from tests.governor.harness import Harness

SMALL = (85, 235, 420, 640, 890, 1190)
LARGE = (565, 1435, 2610, 4145)


def spend(harness: Harness, http: HttpClient, limit: int, cumulative: tuple[int, ...]) -> tuple[Turn, int]:
    """Makes the script's calls under a budget; returns the turn and how many calls were made."""
    totals = [cumulative[0], *(later - sooner for sooner, later in pairwise(cumulative))]
    usage = [{"usage": {"prompt_tokens": total - 20, "completion_tokens": 20}, "text": "ok"} for total in totals]
    harness.simulator.configure({"rules": [{"respond": step, "times": 1} for step in usage]})
    turn = Turn(
        labels=TurnLabels(SessionKey("acme", "s"), "ann", "test", "in-process", "turn", "simulated"),
        deadline=Deadline.after(30),
        ledger=harness.ledger,
        scopes=(ScopeLimit(Scope("turn", "turn"), limit),),
        limits=CallLimits(output_tokens_max=64, output_tokens_min=32, retries_max=0),
    )
    client = GovernedModel(
        http=http,
        base_url=harness.simulator.base_url,
        api_key="sk-test-0123456789",
        model="simulated",
        context_tokens_max=100_000,
        max_output_tokens=64,
        turn=lambda: turn,
    )
    messages: list[dict[str, Any]] = [{"role": "user", "content": "start"}]
    for _ in totals:
        client.chat_stream(messages)
        if turn.stopped:
            break
        messages += [{"role": "assistant", "content": "ok"}, {"role": "user", "content": "go on"}]
    return turn, harness.simulator.truth(requests=False).total.calls


@pytest.mark.parametrize(("limit", "cumulative", "bare"), [(600, SMALL, 1190), (1_500, LARGE, 4145)])
def test_the_limit_is_held(
    harness: Harness, http: HttpClient, limit: int, cumulative: tuple[int, ...], bare: int
) -> None:
    """What the provider reports stays within the limit, and most of it is used."""
    turn, calls = spend(harness, http, limit, cumulative)

    assert turn.stop_cause[0] == StopCause.BUDGET_EXHAUSTED
    assert cumulative[-1] == bare
    assert turn.meter.tokens == cumulative[calls - 1] <= limit
    assert turn.meter.tokens >= limit / 2
    (balance,) = harness.ledger.balances(turn.scopes)
    assert (balance.used, balance.reserved) == (turn.meter.tokens, 0)


def test_a_provider_that_invents_a_prompt_is_stopped_at_the_first_call_that_can_know(
    harness: Harness, http: HttpClient
) -> None:
    """Nobody can bound an invention before it is reported; nobody need make a second call after it."""
    turn, calls = spend(harness, http, 5_000, (5_220, 10_440, 15_660))

    assert turn.stop_cause[0] in (StopCause.BUDGET_EXHAUSTED, StopCause.BUDGET_IMPOSSIBLE)
    assert calls == 1
    assert turn.meter.tokens == 5_220
