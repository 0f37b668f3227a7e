"""Every request is reserved before it is sent and paid after it: against the provider's own count."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from agentao_gov.budget import ReserveRequest
from agentao_gov.budget.types import Scope, ScopeLimit
from agentao_gov.governor import Outcome, TurnReport
from agentao_gov.governor.types import TurnRequest
from tests.governor.harness import HANG_S, Harness, say

pytestmark = pytest.mark.usefixtures("on_each_wire")

GLOB = {"name": "glob", "args": {"pattern": "*{round}"}, "vary": True, "rounds": "endless"}


def truth(harness: Harness) -> int:
    """Tokens that the provider produced, whatever it reported."""
    total = harness.simulator.truth(requests=False).total
    return total.prompt_tokens + total.completion_tokens


def limited(session: Any, tenant_tokens: int) -> None:
    """Gives the session's tenant a budget."""
    scopes = session._scopes

    def with_tenant(request: TurnRequest) -> tuple[ScopeLimit, ...]:
        return (ScopeLimit(Scope("tenant", "acme"), tenant_tokens), *scopes(request)[1:])

    session._scopes = with_tenant


@pytest.mark.parametrize("budget", [6_000, 9_000, 15_000, 33_333])
def test_a_turn_never_overruns_its_budget(harness: Harness, budget: int) -> None:
    """The loop goes on until nothing fits: the provider's count is within the limit, and ours is the provider's."""
    report = harness.run(say(tool=GLOB), limits={"turn_tokens": budget, "max_iterations": 100})

    assert report.outcome == Outcome.BUDGET_EXHAUSTED
    assert truth(harness) <= budget
    assert report.usage.total_tokens == truth(harness)
    assert harness.used(report) == (truth(harness), 0)


def test_parallel_turns_share_a_tenants_budget_exactly(harness: Harness) -> None:
    """Eight sessions at once: a check and a later increment would let them all through."""
    sessions = [harness.open(f"s{n}", limits={"max_output_tokens": 64}) for n in range(8)]
    for session in sessions:
        limited(session, 40_000)
    reports: list[TurnReport] = []

    def work(session: Any) -> None:
        reports.append(harness.ask(session, say(tool=GLOB)))

    threads = [threading.Thread(target=work, args=(session,), daemon=True) for session in sessions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(HANG_S)

    assert len(reports) == 8
    assert {report.outcome for report in reports} == {Outcome.BUDGET_EXHAUSTED}
    used, reserved = harness.used(reports[0])
    assert (used, reserved) == (truth(harness), 0)
    assert 40_000 * 0.85 <= used <= 40_000


def test_the_summariser_is_paid_like_any_other_call(harness: Harness) -> None:
    """agentao compacts past its context cap with calls that appear in none of its events."""
    session = harness.open(limits={"max_context_tokens": 6_000, "turn_tokens": 500_000})
    for n in range(6):
        last = harness.ask(session, say(f"{n} " + "many words of context " * 200, text="noted " * 100))

    requests = harness.simulator.truth().requests
    assert any(request.is_summary for request in requests)
    assert harness.used(last) == (truth(harness), 0)


def test_a_summary_that_does_not_fit_is_not_made(harness: Harness) -> None:
    """The limit holds for it too."""
    session = harness.open(limits={"max_context_tokens": 6_000, "turn_tokens": 500_000})
    for n in range(2):
        harness.ask(session, say(f"{n} " + "many words of context " * 200, text="noted"))
    used = harness.used(harness.ask(session, say(text="x")))[0]
    limited(session, used + 100)

    report = harness.ask(session, say("many words of context " * 400, text="noted"))

    assert report.outcome in (Outcome.BUDGET_EXHAUSTED, Outcome.BUDGET_IMPOSSIBLE)
    assert harness.used(report)[0] <= used + 100


@pytest.mark.parametrize("kind", ["hang", "drip", "stall"])
def test_a_call_cut_off_is_charged_its_bound(harness: Harness, on_each_wire: str, kind: str) -> None:
    """Before the first byte the prompt, after it all that was granted; flagged, never refunded in silence."""
    session = harness.open(limits={"max_output_tokens": 300})
    message = say(text="word " * 50, fault={"kind": kind, "after": 20})

    report = harness.ask_and_cancel(session, message, after_text=kind == "stall")

    assert report.outcome == Outcome.CANCELLED
    # Messages states the prompt when the answer begins: then the answer alone is estimated.
    known = report.usage.prompt_tokens if (on_each_wire, kind) == ("anthropic-messages", "stall") else 0
    assert report.usage.estimated_tokens == report.usage.total_tokens - known > 0
    assert report.usage.completion_tokens == (300 if kind == "stall" else 0)
    harness.simulator.wait_for(idle=True)
    used, reserved = harness.used(report)
    assert truth(harness) <= used
    assert reserved == 0


def test_a_cancelled_call_is_charged(harness: Harness) -> None:
    """Ctrl-C in mid-stream: elsewhere 254,347 tokens were delivered and none billed."""
    message = say(answer_tokens=2_000, per_token=0.005, first_token=0.0)

    report = harness.ask_and_cancel(harness.open(), message)

    harness.simulator.wait_for(idle=True)
    assert report.outcome == Outcome.CANCELLED
    assert truth(harness) <= harness.used(report)[0]


@pytest.mark.parametrize("usage", ["missing", "zero"])
def test_an_answer_without_usage_is_counted(harness: Harness, usage: str) -> None:
    """Not below what it was, and close to it."""
    report = harness.run(say(text="A sentence of an answer. " * 40, usage=usage))

    assert report.outcome == Outcome.ANSWERED
    assert report.usage.estimated_tokens == report.usage.total_tokens
    assert truth(harness) <= report.usage.total_tokens <= truth(harness) * 1.5


def test_a_provider_that_reports_more_is_believed(harness: Harness) -> None:
    """It bills what it reports; and the next call that can know is not made."""
    session = harness.open(limits={"turn_tokens": 20_000})

    report = harness.ask(session, say(tool=GLOB, usage={"prompt_tokens": 5_200, "completion_tokens": 100}))

    assert report.outcome == Outcome.BUDGET_EXHAUSTED
    reported = harness.simulator.truth(requests=False).total.reported_tokens
    assert report.usage.total_tokens == reported <= 20_000
    assert report.usage.llm_calls == 3


@pytest.mark.parametrize("limit", [600, 1_500])
def test_a_budget_below_the_first_prompt_sends_nothing(harness: Harness, limit: int) -> None:
    """agentao's system prompt and tools alone are larger: bare agentao spends all the same."""
    report = harness.run(say(tool=GLOB), limits={"turn_tokens": limit})

    assert report.outcome == Outcome.BUDGET_IMPOSSIBLE
    assert truth(harness) == 0


def test_max_tokens_sent_is_the_grant(harness: Harness) -> None:
    """agentao's default is 65,536 a call, which blocks any small budget."""
    harness.run(say(text="ok"), limits={"max_output_tokens": 321})

    assert [request.max_tokens for request in harness.simulator.truth().requests] == [321]


def test_a_call_waits_for_tokens_that_others_hold(harness: Harness) -> None:
    """Not a refusal: the holder gives back, and the turn goes on."""
    tenant = ScopeLimit(Scope("tenant", "acme"), 20_000)
    request = ReserveRequest("held", (tenant,), 18_000, 1, 1, "acme", "bob")
    from agentao_gov.clock import Deadline

    harness.ledger.reserve(request, deadline=Deadline.after(5))
    session = harness.open()
    limited(session, 20_000)
    reports: list[TurnReport] = []
    thread = threading.Thread(target=lambda: reports.append(harness.ask(session, say(text="ok"))), daemon=True)
    thread.start()

    harness.ledger.release("held")

    thread.join(HANG_S)
    assert reports[0].outcome == Outcome.ANSWERED


def test_each_retry_is_reserved_and_none_leaks(harness: Harness) -> None:
    """Faults in the middle of a stream are charged, refusals are not."""
    report = harness.run(say(text="ok then", fault={"kind": "drop", "after": 0, "times": 1}))

    assert report.usage.llm_calls == 2
    used, reserved = harness.used(report)
    assert used == report.usage.total_tokens >= truth(harness)
    assert reserved == 0
