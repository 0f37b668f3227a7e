"""Why a turn ended, and why a model call failed: pure functions from facts to an outcome and to a sentence.

`classify` reads agentao's closed vocabularies (`last_turn.status`, `last_turn.incomplete_reason`), never its texts.
`describe_failure` says in a sentence what went wrong with a model: what happened, with the figures, and what to look
at.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from enum import StrEnum
from http import HTTPStatus
from typing import Any

import httpx2
import openai

from agentao_gov.endings import Outcome
from agentao_gov.governor.report import Reason, redact

#: Longest sentence; a provider's own words may be a page.
_TEXT_CHARS_MAX = 400
#: Where the operator looks first, by HTTP status.
_LOOK_AT = {
    400: "the request: the model may not know a parameter or a tool",
    401: "the API key",
    403: "what the API key may do",
    404: "the model's name and the base URL",
    413: "max_context_tokens: the request is larger than the endpoint takes",
    429: "the account's rate limits and quota",
}
#: What its words say more exactly than the status.
_LOOK_AT_BY_WORDS = [
    (re.compile(r"(?i)max_(completion_|output_)?tokens"), "limits.max_output_tokens and [model] context_window"),
    (re.compile(r"(?i)context|too long|max length|too many tokens"), "max_context_tokens and [model] context_window"),
    (re.compile(r"(?i)content.?(filter|management|policy)|safety"), "the request: the provider's filter refuses it"),
]
_SERVER_ERRORS = 500
#: Where the words stand in an error's body, the likeliest first.
_WORDS = ("message", "error", "detail", "msg", "status_msg", "error_description", "base_resp", "errors", "title")
#: How answers end that are whole (or met a limit of length, which agentao knows), that broke, and that were filtered.
_WHOLE = re.compile(r"(?i)stop|^end|eos|complete|finish|done|tool|function|length|max_tokens")
_BROKEN = re.compile(r"(?i)abort|error|fail|malformed|insufficient|cancel|unexpected")
_FILTERED = re.compile(r"(?i)filter|safety|sensitive|recitation|blocklist|prohibited|spii|refusal")
#: A thought to the end, closed or not; and the form in which Qwen, Hermes and Mistral's models call tools.
_ONLY_THOUGHT = re.compile(r"(?s)\s*<think>(?:(?!</think>).)*(</think>\s*)?")
_CALL_AS_TEXT = re.compile(r"\s*(<tool_call>|\[TOOL_CALLS\]|<function=)")
#: What a tenant may know of a refusal.
_KINDS = {
    401: "rejected the service's key",
    403: "rejected the service's key",
    404: "does not know the model",
    413: "found the request too large",
    429: "limits the rate of requests",
}


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
class TurnResult:
    """How a turn ended: the outcome, the text worth showing, and a sentence for people."""

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
#: Stops that nothing in the turn itself caused.
_OUTSIDE = (StopCause.CANCELLED, StopCause.CLIENT_GONE, StopCause.SHUTDOWN)


def classify(facts: TurnFacts) -> TurnResult:
    """What a turn ended with, decided from its facts alone. Total: every combination of facts has a result."""
    if facts.final_answer and not facts.abandoned and not facts.cap_reached and facts.crash is None:
        # A deadline that fires while a whole answer is being written down takes nothing away from it.
        return TurnResult(Outcome.ANSWERED, facts.final_answer)
    if facts.cap_reached and not _ended_from_outside(facts):
        return _capped(facts)
    if facts.stop is not None:
        outcome = Outcome.STUCK if facts.abandoned else _STOPPED[facts.stop]
        return TurnResult(outcome, detail=facts.stop_detail)
    if facts.crash is not None or facts.status in (None, "error"):
        return TurnResult(Outcome.INTERNAL_ERROR, detail=facts.crash or Reason("The turn ended with an error."))
    if facts.status == "cancelled":
        return TurnResult(Outcome.CANCELLED, detail=Reason("The turn was cancelled."))
    return _ended_by_itself(facts)


def _ended_from_outside(facts: TurnFacts) -> bool:
    return facts.abandoned or facts.crash is not None or facts.stop in _OUTSIDE


def _capped(facts: TurnFacts) -> TurnResult:
    if facts.final_answer:
        return TurnResult(Outcome.MAX_ITERATIONS, facts.final_answer, Reason("Wrapped up after the last iteration."))
    why = facts.stop_detail or facts.model_failure
    detail = why.after("The wrap-up call gave no answer: ") if why else Reason("The tool loop used all its iterations.")
    return TurnResult(Outcome.MAX_ITERATIONS, None, detail)


def _ended_by_itself(facts: TurnFacts) -> TurnResult:
    match facts.incomplete_reason:
        case None if facts.unfinished is not None:
            return TurnResult(Outcome.INCOMPLETE, facts.text, facts.unfinished)
        case None:
            return TurnResult(Outcome.ANSWERED, facts.text)
        case "max_iterations":
            return _capped(facts)
        case "doom_loop":
            repeated = Reason("The model repeated a tool call, or its arguments could never be read.")
            return TurnResult(Outcome.REPEAT_GUARD, detail=repeated)
        case "llm_error":
            return TurnResult(Outcome.MODEL_ERROR, detail=facts.model_failure or Reason("The model call failed."))
        case "length_truncated" if facts.output_cut_by_budget:
            return TurnResult(Outcome.BUDGET_EXHAUSTED, detail=Reason("The budget ended in the middle of the answer."))
        case "length_truncated":
            return TurnResult(Outcome.INCOMPLETE, facts.text or None, _INCOMPLETE_DETAIL["length_truncated"])
        case reason:
            return TurnResult(
                Outcome.INCOMPLETE, detail=_INCOMPLETE_DETAIL.get(reason, Reason(f"No answer: {reason}."))
            )


def cut_reason(finish_reason: str) -> Reason | None:
    """Why an answer that its provider ended with `finish_reason` is not whole; None where it is, or met a length limit.

    Every provider has words of its own for both. One that nobody knows is told as it is: half an answer must not pass
    for a whole one.
    """
    if _FILTERED.search(finish_reason):
        return Reason("The provider's content filter cut the answer off.")
    if not finish_reason or (_WHOLE.search(finish_reason) and not _BROKEN.search(finish_reason)):
        return None
    named = finish_reason[:40] if finish_reason.isascii() and finish_reason.isprintable() else "a reason of its own"
    return Reason(f"The provider ended the answer early: {named}.")


def no_answer_in(text: str) -> Reason | None:
    """Why a whole text is no answer: its server left a thought, or the call of a tool, in it. None where it is one."""
    if _ONLY_THOUGHT.fullmatch(text):
        return Reason("The model reasoned but gave no answer.")
    if _CALL_AS_TEXT.match(text):
        return Reason("The model wrote a tool call as text: its server does not know the model's form of calls.")
    return None


# ── a failed model call ───────────────────────────────────────────────────────────────────────────


class NotAModelError(Exception):
    """The endpoint answered, but not as a model does. With a `status_code` it is a refusal, which cost nothing."""

    def __init__(self, what: str, status_code: int | None = None) -> None:
        super().__init__(f"it answered with {what} instead of a model's answer")
        self.status_code = status_code


def status_of(error: BaseException | None) -> int | None:
    """The HTTP status that a provider sent instead of an answer; None where there was none."""
    if error is not None and _redirects(error):
        return int(HTTPStatus.TEMPORARY_REDIRECT)
    status = getattr(error, "status_code", None)
    return status if isinstance(status, int) and not isinstance(status, bool) else None


def _redirects(error: BaseException) -> bool:
    return isinstance(error.__cause__, httpx2.TooManyRedirects)


def describe_failure(error: BaseException, *, base_url: str, sent: bool, secret: str) -> Reason:
    """The failure of a model call in two tellings.

    A tenant learns of what kind it is; the operator also that it happened at `base_url`, and what was said there.
    `sent` tells whether a request had left; `secret`, the API key, is masked, and so is whatever looks like one.
    """
    notes = "; ".join(getattr(error, "__notes__", ()))
    text = redact(_sentence(error, base_url, sent), secret)[:_TEXT_CHARS_MAX]
    after = f" ({notes})" if notes else ""
    return Reason(_kind(error, sent) + after, text + after)


def _kind(error: BaseException, sent: bool) -> str:
    """What a tenant may know: nothing that the provider said, nor where it is."""
    status = status_of(error)
    if isinstance(error, NotAModelError | json.JSONDecodeError):
        return "The model's endpoint did not answer as an OpenAI-compatible model does."
    if isinstance(error, openai.APITimeoutError):
        return f"The model did not {'answer' if sent else 'accept a connection'} in time."
    if _redirects(error):
        return "The model's endpoint only redirects."
    if isinstance(error.__cause__, httpx2.ProxyError):
        return "The model cannot be reached: a proxy before it refuses."
    if isinstance(error, openai.APIConnectionError):
        return "The connection to the model broke." if sent else "The model cannot be reached."
    if status is None:
        return "The model's answer ended with an error."
    if status in _KINDS:
        return f"The model's provider {_KINDS[status]} ({status})."
    words = "had a server error" if status >= _SERVER_ERRORS else "rejected the request"
    return f"The model's provider {words} ({status})."


def _sentence(error: BaseException, base_url: str, sent: bool) -> str:
    if isinstance(error, NotAModelError):
        return f"The endpoint {base_url} is no model: {error}. Check the base URL."
    if isinstance(error, openai.APITimeoutError):
        return f"The model at {base_url} did not {'answer' if sent else 'accept a connection'} in time."
    if _redirects(error):
        return f"The endpoint {base_url} only redirects to other addresses. Check the base URL."
    if isinstance(error.__cause__, httpx2.ProxyError):
        return f"A proxy refuses the way to the model at {base_url}: {error.__cause__}. Check HTTPS_PROXY and NO_PROXY."
    if isinstance(error, openai.APIConnectionError):
        cause = str(error.__cause__ or error).strip() or type(error.__cause__).__name__
        if sent:
            return f"The connection to the model at {base_url} broke: {cause}"
        return f"The model at {base_url} cannot be reached: {cause}. Check the base URL and that it runs."
    status = status_of(error)
    if status is not None:
        words = _message(error)
        hints = [hint for pattern, hint in _LOOK_AT_BY_WORDS if status in (400, 413, 422) and pattern.search(words)]
        look_at = hints[0] if hints else _LOOK_AT.get(status)
        look = f" Check {look_at}." if look_at else ""
        return f"The model at {base_url} answered {status}: {words.rstrip('.')}.{look}"
    if isinstance(error, json.JSONDecodeError):
        return f"The answer of the model at {base_url} is not readable: {error}"
    return f"The model at {base_url} failed: {_message(error)}"


def provider_words(body: Any) -> str:
    """What a provider says in an error's body, whatever its shape; empty where it says nothing."""
    if isinstance(body, str):
        text = body.strip()
        return "" if text.startswith("<") else text
    if isinstance(body, list):
        return next((words for part in body if (words := provider_words(part))), "")
    if isinstance(body, dict):
        return next((words for key in _WORDS if (words := provider_words(body.get(key)))), "")
    return ""


def spell_out(error: BaseException) -> None:
    """Puts the provider's words into the text of the SDK's error, which leaves them out.

    agentao's repairs and its recovery from a context that is too long read that text.
    """
    words = provider_words(error.body) if isinstance(error, openai.APIError) else ""
    if words and words not in str(error):
        error.args = (f"{error}: {words}",)


def _message(error: BaseException) -> str:
    """The provider's own words, without the SDK's around them."""
    words = provider_words(error.body) if isinstance(error, openai.APIError) else ""
    return (words or str(error)).strip() or type(error).__name__
