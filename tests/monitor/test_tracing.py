"""What OpenTelemetry is told of a turn."""

from __future__ import annotations

from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from agentao_gov.endings import Outcome
from agentao_gov.monitor.tracing import Tracing
from tests.monitor.played import LABELS, play


def test_a_turn_is_a_span_with_its_calls_below_it() -> None:
    """GenAI names; a failed tool is an error; times are the calls' own."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))

    play(Tracing(tracer_provider=provider))
    spans = {span.name: span for span in exporter.get_finished_spans()}
    turn, chat, tool = spans["invoke_agent qa"], spans["chat gpt-4.1"], spans["execute_tool glob"]

    assert chat.parent is not None
    assert chat.parent.span_id == turn.context.span_id
    assert chat.attributes is not None
    assert chat.attributes["gen_ai.usage.input_tokens"] == 100
    assert chat.end_time is not None
    assert chat.start_time is not None
    assert 0.5 <= (chat.end_time - chat.start_time) / 1e9 < 5
    assert tool.status.status_code.name == "ERROR"
    assert turn.attributes is not None
    assert turn.attributes["agentao_gov.outcome"] == "answered"
    assert "secret" not in repr([dict(span.attributes or {}) for span in spans.values()])


def test_tokens_and_durations_are_metrics() -> None:
    """The two histograms of the conventions."""
    reader = InMemoryMetricReader()

    play(Tracing(meter_provider=MeterProvider(metric_readers=[reader])), Outcome.TURN_TIMEOUT)
    data = reader.get_metrics_data()
    assert data is not None
    found = {m.name: m for r in data.resource_metrics for s in r.scope_metrics for m in s.metrics}

    assert set(found) == {"gen_ai.client.token.usage", "gen_ai.client.operation.duration"}


def test_without_an_sdk_nothing_is_kept() -> None:
    """The API's no-op must not pile up open spans."""
    tracing = Tracing()

    for _ in range(10):
        tracing.turn_started(LABELS)

    assert tracing._open == {}
