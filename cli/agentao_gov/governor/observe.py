"""What the governor tells whoever watches: metrics, tracing, audit. Values in, nothing back.

An observer runs on the turn's threads; what it raises is logged and goes no further, so that a broken exporter
cannot end a turn.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from agentao_gov.governor.outcome import Mode, ToolOutcome
from agentao_gov.governor.report import TurnReport
from agentao_gov.governor.requests import SessionKey

__all__ = ["LlmCallEnd", "LlmCallOutcome", "Observers", "PermissionEnd", "ToolCallEnd", "TurnLabels", "TurnObserver"]

_log = logging.getLogger(__name__)

#: `refused` was never sent (budget, store); `error` was answered with one or failed; `cut` was stopped on the way.
LlmCallOutcome = Literal["ok", "error", "cut", "refused"]


@dataclass(frozen=True, slots=True)
class TurnLabels:
    """Whose turn an event belongs to."""

    key: SessionKey
    user: str
    profile: str
    mode: Mode
    turn_id: str
    model: str


@dataclass(frozen=True, slots=True)
class LlmCallEnd:
    """One request to the model that ended. Tokens as charged."""

    outcome: LlmCallOutcome
    duration_s: float
    first_token_s: float | None
    prompt_tokens: int
    completion_tokens: int
    estimated_tokens: int
    #: loop, summary, wrap_up, sub_agent
    purpose: str
    status: int | None = None
    error_type: str | None = None
    retries: int = 0


@dataclass(frozen=True, slots=True)
class ToolCallEnd:
    """One tool call that ended."""

    name: str
    outcome: ToolOutcome
    duration_s: float


@dataclass(frozen=True, slots=True)
class PermissionEnd:
    """One permission decision: `allow`, `deny`, `prompt` as agentao's engine decides."""

    tool: str
    decision: str
    mode: str


class TurnObserver(Protocol):
    """Implement what you need; see `NullObserver` for a base."""

    def turn_started(self, labels: TurnLabels) -> None:
        """A turn begins."""
        ...

    def llm_call(self, labels: TurnLabels, call: LlmCallEnd) -> None:
        """A model call ended."""
        ...

    def tool_call(self, labels: TurnLabels, call: ToolCallEnd) -> None:
        """A tool call ended."""
        ...

    def permission(self, labels: TurnLabels, decision: PermissionEnd) -> None:
        """A permission was decided."""
        ...

    def turn_ended(self, labels: TurnLabels, report: TurnReport) -> None:
        """The turn's one report."""
        ...


class NullObserver:
    """Watches nothing; a base for those who want only some events."""

    def turn_started(self, labels: TurnLabels) -> None:
        """Nothing."""

    def llm_call(self, labels: TurnLabels, call: LlmCallEnd) -> None:
        """Nothing."""

    def tool_call(self, labels: TurnLabels, call: ToolCallEnd) -> None:
        """Nothing."""

    def permission(self, labels: TurnLabels, decision: PermissionEnd) -> None:
        """Nothing."""

    def turn_ended(self, labels: TurnLabels, report: TurnReport) -> None:
        """Nothing."""


class Observers:
    """All observers of a governor. Replaced, never changed, so that it is read without a lock."""

    def __init__(self, observers: Sequence[TurnObserver] = ()) -> None:
        self._all: tuple[TurnObserver, ...] = tuple(observers)

    def add(self, observer: TurnObserver) -> None:
        """Adds one; it sees turns from now on."""
        self._all = (*self._all, observer)

    def tell(self, event: Callable[[TurnObserver], None]) -> None:
        """Hands an event to each, safely."""
        for observer in self._all:
            try:
                event(observer)
            except Exception:
                _log.exception("An observer of turns failed")
