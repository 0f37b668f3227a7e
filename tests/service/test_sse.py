"""What streams look like on the wire."""

from __future__ import annotations

import json
from typing import Any

import pytest

from agentao_gov.endings import Outcome
from agentao_gov.errors import QueueFullError
from agentao_gov.governor.types import IterationEvent, TextEvent, ToolEvent
from agentao_gov.service.errors import failure_of_error, failure_of_report
from agentao_gov.service.sse import ChatWriter, NativeWriter, completion
from tests.service.samples import report


def events(raw: bytes) -> list[tuple[str | None, Any]]:
    """Parses a stream as a client would."""
    out: list[tuple[str | None, Any]] = []
    for block in raw.decode().split("\n\n"):
        name, data = None, []
        for row in block.splitlines():
            if row.startswith("event: "):
                name = row[7:]
            elif row.startswith("data: "):
                data.append(row[6:])
        if data:
            text = "\n".join(data)
            out.append((name, text if text == "[DONE]" else json.loads(text)))
    return out


@pytest.mark.parametrize("asked", [True, False])
def test_the_last_chunk_carries_usage_and_report(asked: bool) -> None:
    """Whether the client asked for a usage chunk of its own or not."""
    writer = ChatWriter("t1", "qa", created=1, usage_chunk=asked)

    raw = writer.event(TextEvent("fo")) + writer.event(ToolEvent("x", "ok", 1)) + writer.event(TextEvent("ur"))
    raw += writer.report(report())
    seen = [data for _, data in events(raw)]

    assert seen[-1] == "[DONE]"
    assert seen[-2]["usage"]["total_tokens"] == 5348
    assert seen[-2]["agentao_gov"]["schema"] == "agentao-gov/turn-report/1"
    assert (seen[-2]["choices"] == []) == asked
    deltas = [chunk["choices"][0]["delta"] for chunk in seen[:-1] if chunk["choices"]]
    assert deltas[0]["role"] == "assistant"
    assert "".join(delta.get("content", "") for delta in deltas) == "four"
    assert {chunk["id"] for chunk in seen[:-1]} == {"chatcmpl-t1"}
    reasons = [chunk["choices"][0]["finish_reason"] for chunk in seen[:-1] if chunk["choices"]]
    assert reasons[-1] == "stop"


def test_an_answer_that_was_not_streamed_is_sent_before_the_end() -> None:
    """A wrapped-up answer must reach a streaming client too."""
    writer = ChatWriter("t1", "qa", created=1, usage_chunk=False)

    seen = [data for _, data in events(writer.report(report(Outcome.MAX_ITERATIONS, answer="best guess")))]

    assert seen[0]["choices"][0]["delta"]["content"] == "best guess"
    assert seen[1]["choices"][0]["finish_reason"] == "length"


def test_an_error_in_mid_stream_is_told_in_the_stream() -> None:
    """OpenAI's clients raise on a chunk with `error`."""
    writer = ChatWriter("t1", "qa", created=1, usage_chunk=False)

    seen = events(writer.failure(failure_of_report(report(Outcome.TURN_TIMEOUT, answer=None))))

    assert seen[0][1]["error"]["code"] == "turn_timeout"
    assert seen[1][1] == "[DONE]"


def test_the_native_stream_is_text_tool_and_a_last_report() -> None:
    """Names and fields of the contract; line breaks inside a text stay inside its event."""
    writer = NativeWriter()

    raw = writer.event(TextEvent("a\n\nb")) + writer.event(ToolEvent("glob", "ok", 3))
    raw += writer.event(IterationEvent(1, 10)) + writer.report(report())
    seen = events(raw)

    assert seen[0] == ("text", {"delta": "a\n\nb"})
    assert seen[1] == ("tool", {"name": "glob", "outcome": "ok", "duration_ms": 3})
    assert seen[2][0] == "report"
    assert seen[2][1]["turn_id"] == "t1"
    assert len(seen) == 3


def test_the_native_stream_ends_with_the_report_also_when_the_turn_failed() -> None:
    """Only a refusal, which has no report, is an `error` event."""
    failed = events(NativeWriter().failure(failure_of_report(report(Outcome.TURN_TIMEOUT, answer=None))))
    refused = events(NativeWriter().failure(failure_of_error(QueueFullError("full"))))

    assert failed[0][0] == "report"
    assert refused[0][0] == "error"
    assert refused[0][1]["error"]["code"] == "queue_full"


def test_a_completion_has_openais_fields() -> None:
    """Choice, usage, report."""
    body = completion(report(), created=7)

    assert body["choices"][0]["message"]["content"] == "four"
    assert body["usage"]["prompt_tokens"] == 5230
    assert body["agentao_gov"]["outcome"] == "answered"
