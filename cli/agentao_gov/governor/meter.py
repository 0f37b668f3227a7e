"""What a turn used so far: tokens, calls, time, tools. Thread-safe, because sub-agents and tools run beside it."""

from __future__ import annotations

import threading
from dataclasses import dataclass, replace

from agentao_gov.governor.outcome import ToolOutcome
from agentao_gov.governor.report import ToolCall, Usage

__all__ = ["CallUsage", "TurnMeter"]


@dataclass(frozen=True, slots=True)
class CallUsage:
    """Tokens of one model call, as charged."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0
    reasoning_tokens: int = 0
    #: The part that no provider reported.
    estimated_tokens: int = 0

    @property
    def total_tokens(self) -> int:
        """Prompt and completion."""
        return self.prompt_tokens + self.completion_tokens


class TurnMeter:
    """Counters of one turn."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        # All below under `_lock`.
        self._sum = CallUsage(0, 0)
        self._subtree_tokens = 0
        self._llm_calls = 0
        self._iterations = 0
        self._model_s = 0.0
        self._tools_s = 0.0
        self._first_token_s: float | None = None
        self._tools: list[ToolCall] = []

    def sent(self) -> None:
        """A request went out."""
        with self._lock:
            self._llm_calls += 1

    def iterate(self) -> int:
        """A round of the tool loop begins; returns its number, from 1."""
        with self._lock:
            self._iterations += 1
            return self._iterations

    def charge(self, usage: CallUsage, *, subtree: bool) -> None:
        """Adds what one call used."""
        with self._lock:
            old = self._sum
            self._sum = replace(
                old,
                prompt_tokens=old.prompt_tokens + usage.prompt_tokens,
                completion_tokens=old.completion_tokens + usage.completion_tokens,
                cached_tokens=old.cached_tokens + usage.cached_tokens,
                reasoning_tokens=old.reasoning_tokens + usage.reasoning_tokens,
                estimated_tokens=old.estimated_tokens + usage.estimated_tokens,
            )
            if subtree:
                self._subtree_tokens += usage.total_tokens

    def model_time(self, seconds: float) -> None:
        """Adds time spent waiting for the model."""
        with self._lock:
            self._model_s += seconds

    def first_token(self, seconds: float) -> None:
        """Notes the first text of the turn; later ones change nothing."""
        with self._lock:
            if self._first_token_s is None:
                self._first_token_s = seconds

    def tool(self, name: str, outcome: ToolOutcome, seconds: float) -> None:
        """Records a tool call that ended."""
        with self._lock:
            self._tools_s += seconds
            self._tools.append(ToolCall(name=name, outcome=outcome, duration_ms=round(seconds * 1000)))

    @property
    def tokens(self) -> int:
        """Tokens used so far."""
        with self._lock:
            return self._sum.total_tokens

    @property
    def iterations(self) -> int:
        """Rounds so far."""
        with self._lock:
            return self._iterations

    def usage(self) -> Usage:
        """The usage block of the report."""
        with self._lock:
            total = self._sum
            return Usage(
                prompt_tokens=total.prompt_tokens,
                completion_tokens=total.completion_tokens,
                cached_tokens=total.cached_tokens,
                reasoning_tokens=total.reasoning_tokens,
                total_tokens=total.total_tokens,
                llm_calls=self._llm_calls,
                subtree_tokens=self._subtree_tokens,
                estimated_tokens=total.estimated_tokens,
            )

    def times_s(self) -> tuple[float | None, float, float]:
        """First token, model, tools."""
        with self._lock:
            return self._first_token_s, self._model_s, self._tools_s

    def tool_calls(self) -> tuple[ToolCall, ...]:
        """In the order of their end."""
        with self._lock:
            return tuple(self._tools)
