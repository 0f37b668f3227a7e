"""One turn under its limits: model client, tools, deadline, outcome."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from agentao_gov.endings import Outcome
from agentao_gov.governor import agentao_version, sdk_import
from agentao_gov.governor.report import BudgetLine, LimitLine, Mode, Timing, ToolCall, ToolOutcome, TurnReport, Usage
from agentao_gov.governor.types import (
    Conversation,
    EventSink,
    IterationEvent,
    SessionKey,
    SessionSpec,
    TextEvent,
    ToolEvent,
    TurnEvent,
    TurnRequest,
)

# Before any module of the governor imports agentao and the SDK.
agentao_version.check_before_import()
sdk_import.load_types_on_demand()

if TYPE_CHECKING:
    from agentao_gov.governor.governor import Governor
    from agentao_gov.governor.session import GovernedSession
    from agentao_gov.governor.turn import NullObserver, TurnObserver

__all__ = [
    "BudgetLine",
    "Conversation",
    "EventSink",
    "GovernedSession",
    "Governor",
    "IterationEvent",
    "LimitLine",
    "Mode",
    "NullObserver",
    "Outcome",
    "SessionKey",
    "SessionSpec",
    "TextEvent",
    "Timing",
    "ToolCall",
    "ToolEvent",
    "ToolOutcome",
    "TurnEvent",
    "TurnObserver",
    "TurnReport",
    "TurnRequest",
    "Usage",
]

#: Loaded at first use: they import agentao and the OpenAI SDK, which takes a second, and `--help` must not.
_LAZY = {
    "GovernedSession": "session",
    "Governor": "governor",
    "NullObserver": "turn",
    "TurnObserver": "turn",
}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        import importlib

        return getattr(importlib.import_module(f"agentao_gov.governor.{_LAZY[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
