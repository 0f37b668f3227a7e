"""What the audit file and the traces keep of a turn."""

from __future__ import annotations

import json
import stat
import threading
from pathlib import Path

import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from agentao_gov.governor.report import Outcome
from agentao_gov.governor.turn import LlmCallEnd, PermissionEnd, ToolCallEnd, TurnLabels, TurnObserver
from agentao_gov.governor.types import SessionKey
from agentao_gov.monitor.audit import AuditFile
from agentao_gov.monitor.tracing import Tracing
from tests.service.samples import report
from tests.support.clock import FakeClock

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


def test_the_audit_file_has_a_line_for_each_event_and_no_content(tmp_path: Path, clock: FakeClock) -> None:
    """Private, one JSON object a line, who and what."""
    audit = AuditFile(tmp_path / "audit", clock)

    play(audit)
    audit.close()
    (file,) = (tmp_path / "audit").iterdir()
    lines = [json.loads(line) for line in file.read_text().splitlines()]

    assert [line["event"] for line in lines] == ["permission", "tool", "turn"]
    assert lines[0]["decision"] == "deny"
    assert lines[1] | {"time": ""} == lines[1] | {"time": "", "tool": "glob", "outcome": "timeout", "duration_ms": 250}
    assert all((line["tenant"], line["user"], line["turn_id"]) == ("acme", "ann", "t1") for line in lines)
    assert "secret" not in file.read_text()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700


def test_a_new_day_is_a_new_file_and_very_old_ones_go(tmp_path: Path, clock: FakeClock) -> None:
    """The file is bounded in time."""
    audit = AuditFile(tmp_path, clock)

    play(audit)
    clock.advance(86_400)
    play(audit)
    kept = len(list(tmp_path.iterdir()))
    clock.advance(100 * 86_400)
    play(audit)
    audit.close()

    assert kept == 2
    assert len(list(tmp_path.iterdir())) == 1


def test_many_threads_do_not_tear_lines(tmp_path: Path, clock: FakeClock) -> None:
    """Also two files on one directory, as two workers have."""
    audits = [AuditFile(tmp_path, clock) for _ in range(2)]

    def play_often(audit: AuditFile) -> None:
        for _ in range(50):
            play(audit)

    threads = [threading.Thread(target=play_often, args=(audit,)) for audit in audits * 4]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for audit in audits:
        audit.close()
    (file,) = tmp_path.iterdir()

    assert sum(1 for line in file.read_text().splitlines() if json.loads(line)) == 8 * 50 * 3


def test_a_disk_that_refuses_ends_no_turn(tmp_path: Path, clock: FakeClock, caplog: pytest.LogCaptureFixture) -> None:
    """It is told once, not at every event."""
    blocked = tmp_path / "file"
    blocked.write_text("")

    play(AuditFile(blocked / "audit", clock))

    assert [record.message for record in caplog.records] == ["audit file cannot be written"]


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
