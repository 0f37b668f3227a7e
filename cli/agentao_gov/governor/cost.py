"""What one request is charged: what its provider reported, or the most that it can have cost as far as it was seen."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from agentao_gov.governor.failures import status_of
from agentao_gov.governor.meter import CallUsage
from agentao_gov.governor.model_call import Attempt
from agentao_gov.governor.tokens import count_tokens, text_bound
from agentao_gov.governor.usage import reported_usage

__all__ = ["cost_of"]

#: A gateway that lost patience with the model: the model may have answered all the same. Cloudflare's is 524.
_GATEWAY_TIMEOUTS = frozenset({504, 524})


def cost_of(attempt: Attempt, model: str, *, thinks_unseen: bool) -> CallUsage | None:
    """What to charge for an attempt that ended; None where it cost nothing.

    `thinks_unseen`: whether the model produces tokens that it does not show, so that silence proves nothing.
    """
    status = status_of(attempt.failure)
    if not attempt.scope.sent or (status is not None and status not in _GATEWAY_TIMEOUTS):
        # It never left, or the provider answered that it will not serve it.
        return None
    reported = _reported(attempt)
    if reported is not None and _is_final(attempt, reported):
        return reported
    prompt, granted = attempt.spend.bound
    meter = attempt.meter
    completion = granted
    if attempt.call.stream and not meter.begun and not attempt.scope.answered and not thinks_unseen:
        completion = 0
    elif meter.cut:
        # It was told to stop at the grant and did not.
        completion = max(granted, count_tokens(meter.text))
    elif _ended_by_itself(attempt) and not thinks_unseen:
        text = meter.text if attempt.call.stream else response_text(attempt.response)
        completion = min(text_bound(text, model), max(granted, count_tokens(text)))
    # Otherwise it was cut on the way: the provider may have produced all it was granted before it noticed.
    if reported is None:
        return CallUsage(prompt, completion, estimated_tokens=prompt + completion)
    completion = max(completion, reported.completion_tokens)
    return replace(reported, completion_tokens=completion, estimated_tokens=completion)


def _reported(attempt: Attempt) -> CallUsage | None:
    if attempt.call.stream:
        return attempt.meter.reported
    return reported_usage(attempt.accumulator.usage_data)


def _is_final(attempt: Attempt, reported: CallUsage) -> bool:
    """Whether the report covers all of the answer: it came at its end, and does not say that text is nothing."""
    if attempt.call.stream:
        return attempt.meter.report_is_final and (reported.completion_tokens > 0 or not attempt.meter.text)
    return reported.completion_tokens > 0 or attempt.response is None or not response_text(attempt.response)


def _ended_by_itself(attempt: Attempt) -> bool:
    """Whether the whole answer came: a stream says why it ends, and one that does not was broken off on the way."""
    return attempt.whole and (attempt.meter.finished or not attempt.call.stream)


def response_text(response: Any) -> str:
    """All that a whole answer holds."""
    texts = []
    for choice in getattr(response, "choices", None) or ():
        message = choice.message
        texts += [getattr(message, "content", None), getattr(message, "reasoning_content", None)]
        for call in getattr(message, "tool_calls", None) or ():
            texts += [getattr(call.function, "name", None), getattr(call.function, "arguments", None)]
    return "".join(text for text in texts if isinstance(text, str))
