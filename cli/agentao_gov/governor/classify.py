"""Why a turn ended: one pure function from the facts of a turn to its outcome.

It reads agentao's closed vocabularies (`last_turn.status`, `last_turn.incomplete_reason`), never its texts.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from agentao_gov.governor.outcome import Outcome
from agentao_gov.governor.reason import Reason

__all__ = ["StopCause", "TurnFacts", "Verdict", "classify"]


class StopCause(StrEnum):
    """What stopped a turn from our side. The first cause wins."""

    DEADLINE = "deadline"
    CANCELLED = "cancelled"
    CLIENT_GONE = "client_gone"
    SHUTDOWN = "shutdown"
    BUDGET_EXHAUSTED = "budget_exhausted"
    BUDGET_IMPOSSIBLE = "budget_impossible"
    STORE = "store_unavailable"


@dataclass(frozen=True, slots=True)
class TurnFacts:
    """All that decides the outcome."""

    #: agentao's `last_turn.status`; None: it never returned.
    status: str | None = None
    #: agentao's `last_turn.incomplete_reason`.
    incomplete_reason: str | None = None
    #: What our side stopped it for, with a sentence.
    stop: StopCause | None = None
    stop_detail: Reason | None = None
    #: Text of the last model call if it was a whole final answer (ended by itself, no tool calls) before any stop.
    final_answer: str | None = None
    #: Text agentao returned; the answer only where the status says so.
    text: str = ""
    #: The tool loop reached `max_iterations`.
    cap_reached: bool = False
    #: The last failure of the model, in words.
    model_failure: Reason | None = None
    #: The last output was cut because the budget granted less than `max_output_tokens`.
    output_cut_by_budget: bool = False
    #: Why the last answer is not whole, although text came: a broken stream, a filter.
    unfinished: Reason | None = None
    #: The turn's thread, or one of its tools, did not come back within the grace.
    abandoned: bool = False
    #: An exception that should not happen.
    crash: Reason | None = None


@dataclass(frozen=True, slots=True)
class Verdict:
    """The outcome, the text worth showing, and a sentence for people."""

    outcome: Outcome
    answer: str | None = None
    detail: Reason | None = None


_STOPPED = {
    StopCause.DEADLINE: Outcome.TURN_TIMEOUT,
    StopCause.CANCELLED: Outcome.CANCELLED,
    StopCause.CLIENT_GONE: Outcome.CANCELLED,
    StopCause.SHUTDOWN: Outcome.SHUTDOWN,
    StopCause.BUDGET_EXHAUSTED: Outcome.BUDGET_EXHAUSTED,
    StopCause.BUDGET_IMPOSSIBLE: Outcome.BUDGET_IMPOSSIBLE,
    StopCause.STORE: Outcome.STORE_UNAVAILABLE,
}

_INCOMPLETE_DETAIL = {
    "no_output": Reason("The model returned an empty answer."),
    "reasoning_only": Reason("The model reasoned but gave no answer."),
    "length_truncated": Reason("The answer was cut at max_output_tokens."),
    "hook_stop": Reason("A hook of the agent ended the turn."),
}


def classify(facts: TurnFacts) -> Verdict:
    """The outcome of a turn."""
    if facts.final_answer and not facts.abandoned and not facts.cap_reached and facts.crash is None:
        # A deadline that fires while a whole answer is being written down takes nothing away from it.
        return Verdict(Outcome.ANSWERED, facts.final_answer)
    if facts.cap_reached and not _ended_from_outside(facts):
        return _capped(facts)
    if facts.stop is not None:
        outcome = Outcome.STUCK if facts.abandoned else _STOPPED[facts.stop]
        return Verdict(outcome, detail=facts.stop_detail)
    if facts.crash is not None or facts.status in (None, "error"):
        return Verdict(Outcome.INTERNAL_ERROR, detail=facts.crash or Reason("The turn ended with an error."))
    if facts.status == "cancelled":
        return Verdict(Outcome.CANCELLED, detail=Reason("The turn was cancelled."))
    return _ended_by_itself(facts)


def _ended_from_outside(facts: TurnFacts) -> bool:
    return facts.abandoned or facts.crash is not None or facts.stop in _OUTSIDE


_OUTSIDE = (StopCause.CANCELLED, StopCause.CLIENT_GONE, StopCause.SHUTDOWN)


def _capped(facts: TurnFacts) -> Verdict:
    if facts.final_answer:
        return Verdict(Outcome.MAX_ITERATIONS, facts.final_answer, Reason("Wrapped up after the last iteration."))
    why = facts.stop_detail or facts.model_failure
    detail = why.after("The wrap-up call gave no answer: ") if why else Reason("The tool loop used all its iterations.")
    return Verdict(Outcome.MAX_ITERATIONS, None, detail)


def _ended_by_itself(facts: TurnFacts) -> Verdict:
    match facts.incomplete_reason:
        case None if facts.unfinished is not None:
            return Verdict(Outcome.INCOMPLETE, facts.text, facts.unfinished)
        case None:
            return Verdict(Outcome.ANSWERED, facts.text)
        case "max_iterations":
            return _capped(facts)
        case "doom_loop":
            repeated = Reason("The model repeated a tool call, or its arguments could never be read.")
            return Verdict(Outcome.REPEAT_GUARD, detail=repeated)
        case "llm_error":
            return Verdict(Outcome.MODEL_ERROR, detail=facts.model_failure or Reason("The model call failed."))
        case "length_truncated" if facts.output_cut_by_budget:
            return Verdict(Outcome.BUDGET_EXHAUSTED, detail=Reason("The budget ended in the middle of the answer."))
        case "length_truncated":
            return Verdict(Outcome.INCOMPLETE, facts.text or None, _INCOMPLETE_DETAIL["length_truncated"])
        case reason:
            return Verdict(Outcome.INCOMPLETE, detail=_INCOMPLETE_DETAIL.get(reason, Reason(f"No answer: {reason}.")))
