"""Reads an event stream line by line and notes when text came: the first token, the gaps, and how it ended.

Lines, not chunks: a reader that waits for 1,024 bytes reports a first token of 100 ms as 293 (locust 2.47's helper).
Role-only deltas, comments, empty deltas and `\\r\\n` are no tokens. Pure: the caller brings lines and times.
"""

from __future__ import annotations

import json
from typing import Any, Literal

__all__ = ["StreamReader"]


class StreamReader:
    """One stream. Times are microseconds since the send."""

    def __init__(self, api: Literal["native", "openai"]) -> None:
        self._native = api == "native"
        self._event = ""
        self.first_text_us: int | None = None
        self._last_text_us = 0
        self._gap_sum_us = 0
        self._gaps = 0
        self.gap_max_us: int | None = None
        #: The TurnReport, where the service sent one.
        self.report: dict[str, Any] | None = None
        self.usage: dict[str, Any] | None = None
        self.finish_reason: str | None = None
        #: The `code` of an error event.
        self.error: str | None = None

    @property
    def gap_mean_us(self) -> int | None:
        """Mean microseconds between texts; None with fewer than two."""
        return self._gap_sum_us // self._gaps if self._gaps else None

    @property
    def seen_text(self) -> bool:
        """Whether any text came."""
        return self.first_text_us is not None

    def line(self, raw: bytes, at_us: int) -> None:
        """Takes one line, with or without its end."""
        line = raw.rstrip(b"\r\n")
        if not line:
            self._event = ""
        elif line.startswith(b"data:"):
            self._data(line[5:].lstrip(b" "), at_us)
        elif line.startswith(b"event:"):
            self._event = line[6:].strip().decode(errors="replace")
        # Comments, ids and retries say nothing about the turn.

    def _data(self, data: bytes, at_us: int) -> None:
        if self._native:
            self._native_data(data, at_us)
        elif data != b"[DONE]":
            self._openai_data(data, at_us)

    def _native_data(self, data: bytes, at_us: int) -> None:
        if self._event == "text":
            # Parsed only until the first one: a long answer has hundreds.
            if self.seen_text or (_object(data) or {}).get("delta"):
                self._text(at_us)
        elif self._event == "report":
            self.report = _object(data)
        elif self._event == "error":
            self.error = _error_code(_object(data))

    def _openai_data(self, data: bytes, at_us: int) -> None:
        chunk = _object(data)
        if chunk is None:
            self.error = "malformed_event"
            return
        if chunk.get("error"):
            self.error = _error_code(chunk)
        self.usage = chunk.get("usage") or self.usage
        self.report = chunk.get("agentao_gov") or self.report
        for choice in chunk.get("choices") or ():
            if (choice.get("delta") or {}).get("content"):
                self._text(at_us)
            self.finish_reason = choice.get("finish_reason") or self.finish_reason

    def _text(self, at_us: int) -> None:
        if self.first_text_us is None:
            self.first_text_us = at_us
        else:
            gap = at_us - self._last_text_us
            self._gaps += 1
            self._gap_sum_us += gap
            self.gap_max_us = max(self.gap_max_us or 0, gap)
        self._last_text_us = at_us

    @property
    def outcome(self) -> str:
        """How the turn ended, once the stream has."""
        if self.report is not None:
            return str(self.report.get("outcome", "internal_error"))
        if self.error is not None:
            return self.error
        # A stream without its last word was cut, whatever came before.
        return "answered" if self.finish_reason is not None and not self._native else "incomplete"


def _object(data: bytes) -> dict[str, Any] | None:
    try:
        value = json.loads(data)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def _error_code(body: dict[str, Any] | None) -> str:
    error = (body or {}).get("error")
    code = error.get("code") if isinstance(error, dict) else None
    return str(code or "error")
