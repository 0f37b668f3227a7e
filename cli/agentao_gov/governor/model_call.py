"""One call that agentao asks for, and the attempts it takes."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from agentao_gov.governor.adapter import StreamMeter
from agentao_gov.governor.http import AbortScope
from agentao_gov.governor.spend import Spend
from agentao_gov.governor.turn import Turn

__all__ = ["Attempt", "Call", "Purpose", "pause"]

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
