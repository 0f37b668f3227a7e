"""Writes server-sent events: OpenAI's chunks and the native `text`, `tool`, `report`."""

from __future__ import annotations

import json
from typing import Any, Literal

from agentao_gov.endings import Outcome
from agentao_gov.governor.report import TurnReport, Usage
from agentao_gov.governor.types import TextEvent, ToolEvent, TurnEvent
from agentao_gov.service.answers import ChatCompletion
from agentao_gov.service.errors import Failure

#: A comment line: proxies see life, clients skip it.
KEEP_ALIVE = b": keep-alive\n\n"


def _data(value: object, event: str | None = None) -> bytes:
    head = f"event: {event}\n" if event else ""
    return f"{head}data: {json.dumps(value, ensure_ascii=False, separators=(',', ':'))}\n\n".encode()


def openai_usage(usage: Usage) -> dict[str, Any]:
    """OpenAI's usage object."""
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.total_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
        "completion_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
    }


def _finish_reason(report: TurnReport) -> Literal["stop", "length"]:
    """`length` for every answer that a limit cut short: clients know what to do with it."""
    return "stop" if report.outcome is Outcome.ANSWERED else "length"


def _dump(report: TurnReport) -> dict[str, Any]:
    dumped: dict[str, Any] = report.model_dump(mode="json", by_alias=True)
    return dumped


def completion(report: TurnReport, *, created: int) -> ChatCompletion:
    """The body of a completion that is not streamed."""
    return {
        "id": f"chatcmpl-{report.turn_id}",
        "object": "chat.completion",
        "created": created,
        "model": report.profile,
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": report.answer or "", "refusal": None},
                "logprobs": None,
                "finish_reason": _finish_reason(report),
            }
        ],
        "usage": openai_usage(report.usage),
        "agentao_gov": _dump(report),
    }


class ChatWriter:
    """One stream of `chat.completion.chunk`; the last chunk carries usage and the TurnReport."""

    def __init__(self, turn_id: str, profile: str, *, created: int, usage_chunk: bool) -> None:
        self._head = {
            "id": f"chatcmpl-{turn_id}",
            "object": "chat.completion.chunk",
            "created": created,
            "model": profile,
        }
        self._usage_chunk = usage_chunk
        self._role_sent = False
        self._text_sent = False

    def _chunk(self, delta: dict[str, Any], finish_reason: str | None = None, **more: Any) -> bytes:
        if not self._role_sent:
            delta = {"role": "assistant", **delta}
            self._role_sent = True
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
        return _data({**self._head, "choices": [choice], **more})

    def event(self, event: TurnEvent) -> bytes:
        """Text becomes a chunk; tool calls are the service's own business and are told in the report."""
        if isinstance(event, TextEvent) and event.delta:
            self._text_sent = True
            return self._chunk({"content": event.delta})
        return b""

    def report(self, report: TurnReport) -> bytes:
        """Finish reason, usage, report, `[DONE]`."""
        out = b""
        if not self._text_sent and report.answer:
            out += self._chunk({"content": report.answer})
        tail = {"usage": openai_usage(report.usage), "agentao_gov": _dump(report)}
        if self._usage_chunk:
            out += self._chunk({}, _finish_reason(report), usage=None)
            out += _data({**self._head, "choices": [], **tail})
        else:
            out += self._chunk({}, _finish_reason(report), **tail)
        return out + b"data: [DONE]\n\n"

    def failure(self, failure: Failure) -> bytes:
        """An error after the stream began: OpenAI's clients raise on a chunk with `error`."""
        return _data(failure.body()) + b"data: [DONE]\n\n"


class NativeWriter:
    """One stream of `text`, `tool` and a last `report` (or `error`, when no turn ran)."""

    def event(self, event: TurnEvent) -> bytes:
        if isinstance(event, TextEvent) and event.delta:
            return _data({"delta": event.delta}, "text")
        if isinstance(event, ToolEvent):
            return _data({"name": event.name, "outcome": event.outcome, "duration_ms": event.duration_ms}, "tool")
        return b""

    def report(self, report: TurnReport) -> bytes:
        return _data(_dump(report), "report")

    def failure(self, failure: Failure) -> bytes:
        if failure.report is not None:
            return self.report(failure.report)
        return _data(failure.body(), "error")
