"""What the owner saw of a turn in another process: enough for its report when that process cannot write one."""

from __future__ import annotations

import threading

from agentao_gov.budget.types import Ledger, ScopeLimit
from agentao_gov.clock import Clock
from agentao_gov.governor.classify import Verdict
from agentao_gov.governor.report import Outcome, Reason, Timing, ToolCall, TurnReport, Usage
from agentao_gov.governor.reporting import budget_lines, compose_report, limit_lines
from agentao_gov.governor.turn import TurnLabels
from agentao_gov.governor.types import (
    EventSink,
    IterationEvent,
    SessionSpec,
    TextEvent,
    ToolEvent,
    TurnEvent,
    TurnRequest,
)

__all__ = ["TurnWitness"]


class TurnWitness:
    """Follows one turn by its events. Events come from the wire's reader thread, the rest from the turn's."""

    def __init__(
        self, spec: SessionSpec, request: TurnRequest, scopes: tuple[ScopeLimit, ...], sink: EventSink, clock: Clock
    ) -> None:
        self._spec = spec
        self._request = request
        self._scopes = scopes
        self._sink = sink
        self._clock = clock
        self._began, self._began_wall = clock.monotonic(), clock.time()
        self.labels = TurnLabels(
            spec.key, request.user, spec.profile.profile.name, spec.mode, request.turn_id, spec.model.name
        )
        #: Set when there is something to look at: an answer, or a cancel.
        self.wake = threading.Event()
        # Written by the reader's thread only; read once the turn is over.
        self._first_token_s: float | None = None
        self._tools: list[ToolCall] = []
        self._iterations = 0

    def elapsed_s(self) -> float:
        """Since the turn began."""
        return self._clock.monotonic() - self._began

    def event(self, event: TurnEvent) -> None:
        """Notes an event and passes it on."""
        match event:
            case TextEvent():
                if self._first_token_s is None:
                    self._first_token_s = self.elapsed_s()
            case ToolEvent():
                self._tools.append(ToolCall(name=event.name, outcome=event.outcome, duration_ms=event.duration_ms))
            case IterationEvent():
                self._iterations = event.iteration
        self._sink(event)

    def sign(self, report: TurnReport, booked: Usage) -> TurnReport:
        """The process's own report, whose identity and totals are the owner's to state."""
        spec, request = self._spec, self._request
        truth: dict[str, object] = {
            "turn_id": request.turn_id,
            "id": request.id,
            "tenant": spec.key.tenant,
            "user": request.user,
            "session": spec.key.session,
            "profile": self.labels.profile,
            "mode": spec.mode,
            "model": self.labels.model,
            "exit_code": report.outcome.exit_code,
        }
        said = report.usage
        truth["usage"] = said.model_copy(
            update={
                "prompt_tokens": booked.prompt_tokens,
                "completion_tokens": booked.completion_tokens,
                "total_tokens": booked.total_tokens,
                "estimated_tokens": booked.estimated_tokens,
            }
        )
        if said.total_tokens != booked.total_tokens:
            text = (
                f"The session process reported {said.total_tokens:,} tokens, the ledger booked {booked.total_tokens:,}."
            )
            report = report.with_warning(Reason(text))
        return report.model_copy(update=truth)

    def report(self, outcome: Outcome, detail: Reason, usage: Usage, ledger: Ledger) -> TurnReport:
        """The report, from what was seen."""
        request = self._request
        budget, warnings = budget_lines(ledger, self._scopes)
        timing = Timing(
            total=request.queued_ms + round(self.elapsed_s() * 1000),
            queued=request.queued_ms,
            first_token=None if self._first_token_s is None else round(self._first_token_s * 1000),
            tools=sum(call.duration_ms for call in self._tools),
        )
        return compose_report(
            self.labels,
            Verdict(outcome, detail=detail),
            id=request.id,
            started_at=self._began_wall,
            timing=timing,
            limits=limit_lines(self._spec.profile),
            usage=usage,
            iterations=self._iterations,
            tool_calls=tuple(self._tools),
            budget=budget,
            warnings=warnings,
            secret=self._spec.model.api_key.get_secret_value(),
        )
