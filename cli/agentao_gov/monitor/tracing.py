"""OpenTelemetry spans and metrics in the GenAI conventions. Without an SDK configured the API does nothing, cheaply.

A turn is an `invoke_agent` span, with a `chat` span for each model call and an `execute_tool` span for each tool call.
Prompts, answers and tool arguments are never recorded.
"""

from __future__ import annotations

import threading
import time

from opentelemetry import metrics, trace
from opentelemetry.trace import SpanKind, Status, StatusCode

from agentao_gov.governor.report import TurnReport
from agentao_gov.governor.turn import LlmCallEnd, NullObserver, ToolCallEnd, TurnLabels

#: Turns whose end never came (a process that died in subprocess mode) must not keep their spans for ever.
OPEN_SPANS_MAX = 10_000


class Tracing(NullObserver):
    """A turn observer that records. Thread-safe."""

    def __init__(
        self,
        tracer_provider: trace.TracerProvider | None = None,
        meter_provider: metrics.MeterProvider | None = None,
    ) -> None:
        """Without providers the global ones are used, as an SDK or `opentelemetry-instrument` sets them."""
        self._tracer = trace.get_tracer("agentao_gov", tracer_provider=tracer_provider)
        meter = metrics.get_meter("agentao_gov", meter_provider=meter_provider)
        self._tokens = meter.create_histogram(
            "gen_ai.client.token.usage", unit="{token}", description="Tokens of a model call."
        )
        self._durations = meter.create_histogram(
            "gen_ai.client.operation.duration", unit="s", description="Model calls and turns."
        )
        self._lock = threading.Lock()
        #: Spans of turns that have not ended, by turn id; guarded by `_lock`.
        self._open: dict[str, trace.Span] = {}

    def turn_started(self, labels: TurnLabels) -> None:
        """Begins the turn's span."""
        span = self._tracer.start_span(
            f"invoke_agent {labels.profile}",
            kind=SpanKind.INTERNAL,
            attributes={
                "gen_ai.operation.name": "invoke_agent",
                "gen_ai.agent.name": labels.profile,
                "gen_ai.conversation.id": labels.key.session,
                "gen_ai.request.model": labels.model,
                "agentao_gov.tenant": labels.key.tenant,
                "agentao_gov.turn_id": labels.turn_id,
                "agentao_gov.mode": labels.mode,
            },
        )
        if not span.is_recording():
            return
        with self._lock:
            if len(self._open) < OPEN_SPANS_MAX:
                self._open[labels.turn_id] = span

    def llm_call(self, labels: TurnLabels, call: LlmCallEnd) -> None:
        """One model call, told at its end."""
        common = {"gen_ai.operation.name": "chat", "gen_ai.request.model": labels.model}
        for kind, tokens in (("input", call.prompt_tokens), ("output", call.completion_tokens)):
            self._tokens.record(tokens, {**common, "gen_ai.token.type": kind})
        self._durations.record(call.duration_s, common | ({"error.type": call.error_type} if call.error_type else {}))
        span = self._child(labels, f"chat {labels.model}", call.duration_s, SpanKind.CLIENT)
        if span is None:
            return
        span.set_attributes(
            {
                **common,
                "gen_ai.usage.input_tokens": call.prompt_tokens,
                "gen_ai.usage.output_tokens": call.completion_tokens,
                "agentao_gov.purpose": call.purpose,
                "agentao_gov.outcome": call.outcome,
            }
        )
        if call.outcome != "ok":
            span.set_attribute("error.type", call.error_type or call.outcome)
            span.set_status(Status(StatusCode.ERROR))
        span.end()

    def tool_call(self, labels: TurnLabels, call: ToolCallEnd) -> None:
        """One tool call, told at its end."""
        span = self._child(labels, f"execute_tool {call.name}", call.duration_s, SpanKind.INTERNAL)
        if span is None:
            return
        span.set_attributes(
            {
                "gen_ai.operation.name": "execute_tool",
                "gen_ai.tool.name": call.name,
                "agentao_gov.outcome": call.outcome,
            }
        )
        if call.outcome != "ok":
            span.set_attribute("error.type", call.outcome)
            span.set_status(Status(StatusCode.ERROR))
        span.end()

    def turn_ended(self, labels: TurnLabels, report: TurnReport) -> None:
        """Ends the turn's span with what the turn used."""
        with self._lock:
            span = self._open.pop(labels.turn_id, None)
        common = {"gen_ai.operation.name": "invoke_agent", "gen_ai.request.model": labels.model}
        self._durations.record(report.timing_ms.total / 1000, common)
        if span is None:
            return
        span.set_attributes(
            {
                "gen_ai.usage.input_tokens": report.usage.prompt_tokens,
                "gen_ai.usage.output_tokens": report.usage.completion_tokens,
                "agentao_gov.outcome": report.outcome.value,
                "agentao_gov.iterations": report.iterations,
            }
        )
        if not report.has_answer:
            span.set_attribute("error.type", report.outcome.value)
            span.set_status(Status(StatusCode.ERROR))
        span.end()

    def _child(self, labels: TurnLabels, name: str, duration_s: float, kind: SpanKind) -> trace.Span | None:
        with self._lock:
            parent = self._open.get(labels.turn_id)
        if parent is None:
            return None
        began_ns = time.time_ns() - int(duration_s * 1e9)
        context = trace.set_span_in_context(parent)
        span = self._tracer.start_span(name, context=context, kind=kind, start_time=began_ns)
        span.set_attribute("gen_ai.conversation.id", labels.key.session)
        return span
