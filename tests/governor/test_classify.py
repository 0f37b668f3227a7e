"""Why a turn ended, decided from facts alone."""

from __future__ import annotations

import pytest

from agentao_gov.endings import Outcome
from agentao_gov.governor.classify import StopCause, TurnFacts, classify
from agentao_gov.governor.report import Reason


@pytest.mark.parametrize(
    ("cause", "outcome"),
    [
        (StopCause.DEADLINE, Outcome.TURN_TIMEOUT),
        (StopCause.CANCELLED, Outcome.CANCELLED),
        (StopCause.CLIENT_GONE, Outcome.CANCELLED),
        (StopCause.SHUTDOWN, Outcome.SHUTDOWN),
        (StopCause.BUDGET_EXHAUSTED, Outcome.BUDGET_EXHAUSTED),
        (StopCause.BUDGET_IMPOSSIBLE, Outcome.BUDGET_IMPOSSIBLE),
        (StopCause.STORE, Outcome.STORE_UNAVAILABLE),
    ],
)
def test_a_stopped_turn_is_reported_as_what_stopped_it(cause: StopCause, outcome: Outcome) -> None:
    """agentao says `cancelled` for all of them; only our side knows why."""
    result = classify(TurnFacts(status="cancelled", stop=cause, stop_detail=Reason("because")))

    assert (result.outcome, result.answer, result.detail) == (outcome, None, Reason("because"))


@pytest.mark.parametrize(
    ("reason", "outcome"),
    [
        (None, Outcome.ANSWERED),
        ("no_output", Outcome.INCOMPLETE),
        ("reasoning_only", Outcome.INCOMPLETE),
        ("length_truncated", Outcome.INCOMPLETE),
        ("doom_loop", Outcome.REPEAT_GUARD),
        ("max_iterations", Outcome.MAX_ITERATIONS),
        ("llm_error", Outcome.MODEL_ERROR),
        ("hook_stop", Outcome.INCOMPLETE),
        ("a reason of a later agentao", Outcome.INCOMPLETE),
    ],
)
def test_a_turn_that_ended_by_itself_is_reported_by_its_incomplete_reason(reason: str | None, outcome: Outcome) -> None:
    """The reasons are a closed list; an unknown one is not an answer."""
    assert classify(TurnFacts(status="ok", incomplete_reason=reason, text="text")).outcome == outcome


def test_a_whole_answer_survives_a_deadline_that_fires_while_it_is_written_down() -> None:
    """The model had finished: nothing is gained by calling it a time-out."""
    facts = TurnFacts(status="cancelled", stop=StopCause.DEADLINE, final_answer="42", text="42")

    assert classify(facts).outcome == Outcome.ANSWERED
    assert classify(facts).answer == "42"


def test_a_wrapped_up_answer_is_max_iterations_with_its_text() -> None:
    """The text is worth showing, but the cap is why the turn ended."""
    result = classify(TurnFacts(status="ok", cap_reached=True, final_answer="so far"))

    assert (result.outcome, result.answer) == (Outcome.MAX_ITERATIONS, "so far")


def test_a_wrap_up_without_budget_is_still_max_iterations_and_says_why() -> None:
    """The cap came first; that the last call could not be paid is a detail."""
    why = Reason("nothing is left", "nothing is left in ledger.db")
    facts = TurnFacts(status="cancelled", cap_reached=True, stop=StopCause.BUDGET_EXHAUSTED, stop_detail=why)

    result = classify(facts)

    assert (result.outcome, result.answer) == (Outcome.MAX_ITERATIONS, None)
    assert result.detail is not None
    assert result.detail.public.endswith("nothing is left")
    assert result.detail.operator.endswith("nothing is left in ledger.db")


def test_a_cancel_during_the_wrap_up_is_a_cancel() -> None:
    """Someone asked for it to end; the cap is no longer the reason."""
    facts = TurnFacts(status="cancelled", cap_reached=True, stop=StopCause.CANCELLED)

    assert classify(facts).outcome == Outcome.CANCELLED


def test_an_abandoned_turn_is_stuck_whatever_stopped_it() -> None:
    """A thread is still out there: the session must not be reused."""
    facts = TurnFacts(status=None, stop=StopCause.DEADLINE, abandoned=True, final_answer="42")

    assert classify(facts).outcome == Outcome.STUCK


def test_an_answer_cut_by_the_budget_is_a_matter_of_the_budget() -> None:
    """agentao sees a length limit; the grant was the limit."""
    facts = TurnFacts(status="ok", incomplete_reason="length_truncated", text="half", output_cut_by_budget=True)

    assert classify(facts).outcome == Outcome.BUDGET_EXHAUSTED


def test_an_exception_is_an_internal_error_unless_the_turn_was_stopped() -> None:
    """What breaks while a turn is being torn down is not why it ended."""
    crash = TurnFacts(status=None, crash=Reason("KeyError: 'x'"))
    torn = TurnFacts(status=None, crash=Reason("KeyError: 'x'"), stop=StopCause.SHUTDOWN)

    assert classify(crash).outcome == Outcome.INTERNAL_ERROR
    assert classify(torn).outcome == Outcome.SHUTDOWN


def test_every_outcome_but_refused_can_come_out_of_a_turn() -> None:
    """`refused` is the pool's word: a refused turn never starts."""
    produced = {classify(TurnFacts(status="ok")).outcome, classify(TurnFacts(status="error")).outcome}
    produced |= {classify(TurnFacts(stop=cause)).outcome for cause in StopCause}
    reasons = ("doom_loop", "max_iterations", "llm_error", "no_output")
    produced |= {classify(TurnFacts(status="ok", incomplete_reason=reason)).outcome for reason in reasons}
    produced.add(classify(TurnFacts(stop=StopCause.DEADLINE, abandoned=True)).outcome)

    assert produced == set(Outcome) - {Outcome.REFUSED}
