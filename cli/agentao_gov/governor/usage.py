"""What a provider says that a request used, read from whatever its gateway made of it."""

from __future__ import annotations

from typing import Any

from agentao.llm._usage import cache_token_counts, reasoning_token_count

from agentao_gov.budget.types import CALL_TOKENS_MAX
from agentao_gov.governor.meter import CallUsage

__all__ = ["larger", "reported_usage"]


def reported_usage(usage: Any) -> CallUsage | None:
    """What the provider reports, or None where it reports nothing that can be true: no prompt has zero tokens.

    What was thought and what was cached are parts of completion and prompt. xAI and Gemini leave the thoughts out of
    `completion_tokens` and count them in `total_tokens` alone, gateways before Anthropic leave out what was cached:
    a part that is larger than its whole, and what the total has beyond both, were billed on top.
    """
    prompt, completion = _count(usage, "prompt_tokens"), _count(usage, "completion_tokens")
    if not prompt or completion is None:
        return None
    read, written = cache_token_counts(usage)
    if read + written > prompt:
        prompt += read + written
    reasoning = reasoning_token_count(usage)
    if reasoning > completion:
        completion += reasoning
    completion = max(completion, (_count(usage, "total_tokens") or 0) - prompt)
    return CallUsage(
        min(prompt, CALL_TOKENS_MAX),
        min(completion, CALL_TOKENS_MAX),
        cached_tokens=min(read, CALL_TOKENS_MAX),
        reasoning_tokens=min(reasoning, CALL_TOKENS_MAX),
    )


def larger(one: CallUsage | None, other: CallUsage) -> CallUsage:
    """Of two reports of one request: a count that goes on never shrinks, so each figure is the larger one."""
    if one is None:
        return other
    return CallUsage(
        max(one.prompt_tokens, other.prompt_tokens),
        max(one.completion_tokens, other.completion_tokens),
        cached_tokens=max(one.cached_tokens, other.cached_tokens),
        reasoning_tokens=max(one.reasoning_tokens, other.reasoning_tokens),
    )


def _count(usage: Any, name: str) -> int | None:
    """A count of tokens; None for anything else. `12.0` is what some gateways make of 12."""
    value = getattr(usage, name, None)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        return None
    return value
