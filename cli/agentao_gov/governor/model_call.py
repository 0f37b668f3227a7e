"""One call that agentao asks for, the attempts it takes, and what can be read off their ends."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from agentao.llm._usage import cache_token_counts, reasoning_token_count

from agentao_gov.governor.adapter import StreamMeter
from agentao_gov.governor.http import AbortScope
from agentao_gov.governor.meter import CallUsage
from agentao_gov.governor.spend import Spend
from agentao_gov.governor.turn import Turn

__all__ = ["Attempt", "Call", "Purpose", "pause", "reported_usage", "response_text"]

Purpose = Literal["loop", "summary", "wrap_up", "sub_agent"]


@dataclass(slots=True)
class Call:
    """What agentao asked for; it may take several attempts."""

    turn: Turn
    token: Any
    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]] | None
    kwargs: dict[str, Any]
    purpose: Purpose
    on_retry: Callable[[dict[str, Any]], None] | None
    send: Callable[[Attempt], Any]

    @property
    def stream(self) -> bool:
        return bool(self.kwargs.get("stream"))


class Attempt:
    """One request on its way, and what became of it."""

    def __init__(self, call: Call, spend: Spend, meter: StreamMeter, accumulator: Any) -> None:
        self.call = call
        self.spend = spend
        self.meter = meter
        self.accumulator = accumulator
        self.scope = AbortScope()
        self.started = time.monotonic()
        self.first_token_s: float | None = None
        self.response: Any = None
        self.failure: BaseException | None = None

    @property
    def whole(self) -> bool:
        """Whether the answer came to its end by itself."""
        return self.failure is None and not self.meter.cut and not self.scope.aborted.is_set()


def pause(delay_s: float, token: Any) -> bool:
    """Waits; False if the token was cancelled meanwhile."""
    woken = threading.Event()
    forget = token.add_done_callback(woken.set)
    try:
        return not woken.wait(delay_s)
    finally:
        forget()


def reported_usage(usage: Any) -> CallUsage | None:
    """What the provider reports, or None where it reports nothing that can be true: no prompt has zero tokens."""
    prompt, completion = getattr(usage, "prompt_tokens", None), getattr(usage, "completion_tokens", None)
    if not isinstance(prompt, int) or not isinstance(completion, int) or prompt <= 0 or completion < 0:
        return None
    cached, _ = cache_token_counts(usage)
    return CallUsage(prompt, completion, cached_tokens=cached, reasoning_tokens=reasoning_token_count(usage))


def response_text(response: Any) -> str:
    """All that a whole answer holds."""
    message = response.choices[0].message
    calls = "".join((call.function.name or "") + (call.function.arguments or "") for call in message.tool_calls or ())
    return (message.content or "") + (getattr(message, "reasoning_content", None) or "") + calls
