"""A turn as its observers see it."""

from __future__ import annotations

from agentao_gov.endings import Outcome
from agentao_gov.governor.turn import LlmCallEnd, PermissionEnd, ToolCallEnd, TurnLabels, TurnObserver
from agentao_gov.governor.types import SessionKey
from tests.service.samples import report

__all__ = ["LABELS", "play"]

LABELS = TurnLabels(SessionKey("acme", "s1"), "ann", "qa", "in-process", "t1", "gpt-4.1")
CALL = LlmCallEnd("ok", 0.5, 0.1, 100, 20, 0, "loop")


def play(observer: TurnObserver, outcome: Outcome = Outcome.ANSWERED) -> None:
    """One turn with a model call, a permission and a failed tool call."""
    answered = outcome is Outcome.ANSWERED
    observer.turn_started(LABELS)
    observer.llm_call(LABELS, CALL)
    observer.permission(LABELS, PermissionEnd("run_shell_command", "deny", "read-only"))
    observer.tool_call(LABELS, ToolCallEnd("glob", "timeout", 0.25))
    observer.turn_ended(LABELS, report(outcome, answer="a secret" if answered else None))
