"""The bytes of OpenAI's chat-completions protocol: JSON answers, streamed events, errors."""

from __future__ import annotations

import codecs
import json
import time
from collections.abc import Iterator, Sequence
from json.encoder import encode_basestring
from typing import Any

__all__ = ["Stream", "completion_body", "error_body", "text_chunks"]

_compact = json.JSONEncoder(separators=(",", ":"), ensure_ascii=False).encode


def text_chunks(tokens: Sequence[bytes], per_chunk: int) -> Iterator[tuple[str, int]]:
    """Groups tokens into (text, number of tokens); a character split over tokens stays whole."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    carried = 0
    for start in range(0, len(tokens), per_chunk):
        group = tokens[start : start + per_chunk]
        final = start + per_chunk >= len(tokens)
        text = decoder.decode(b"".join(group), final)
        carried += len(group)
        if text or final:
            yield text, carried
            carried = 0


class Stream:
    """Encodes one streamed answer; every method returns the bytes of one event."""

    def __init__(self, answer_id: str, model: str, *, crlf: bool = False) -> None:
        self._head = (
            f'data: {{"id":{_compact(answer_id)},"object":"chat.completion.chunk","created":{int(time.time())},'
            f'"model":{_compact(model)},"choices":['
        )
        self._end = "\r\n\r\n" if crlf else "\n\n"

    def delta(
        self, delta: dict[str, Any], finish_reason: str | None = None, usage: dict[str, Any] | None = None
    ) -> bytes:
        """One change of the message."""
        choice = _compact({"index": 0, "delta": delta, "finish_reason": finish_reason})
        return self._event(choice, usage)

    def text(self, text: str, usage: dict[str, Any] | None = None) -> bytes:
        """A piece of text; most events are one, so it is written without building a mapping."""
        choice = f'{{"index":0,"delta":{{"content":{encode_basestring(text)}}},"finish_reason":null}}'
        return self._event(choice, usage)

    def usage(self, usage: dict[str, Any]) -> bytes:
        """The last chunk before `[DONE]` when usage was asked for: no choices."""
        return self._event("", usage)

    def raw(self, data: str) -> bytes:
        """An event with any data."""
        return f"data: {data}{self._end}".encode()

    def comment(self) -> bytes:
        """A keep-alive comment, which a client must ignore."""
        return f": keep-alive{self._end}".encode()

    def done(self) -> bytes:
        return self.raw("[DONE]")

    def _event(self, choices: str, usage: dict[str, Any] | None) -> bytes:
        tail = f',"usage":{_compact(usage)}' if usage is not None else ""
        return f"{self._head}{choices}]{tail}}}{self._end}".encode()


def completion_body(
    answer_id: str,
    model: str,
    message: dict[str, Any],
    finish_reason: str,
    usage: dict[str, Any] | None,
) -> bytes:
    """The body of an answer that is not streamed."""
    body: dict[str, Any] = {
        "id": answer_id,
        "object": "chat.completion",
        "created": int(time.time()),
        "model": model,
        "choices": [{"index": 0, "message": message, "finish_reason": finish_reason}],
    }
    if usage is not None:
        body["usage"] = usage
    return _compact(body).encode()


def error_body(message: str, kind: str, code: str | None, param: str | None = None) -> bytes:
    """OpenAI's error object."""
    return _compact({"error": {"message": message, "type": kind, "param": param, "code": code}}).encode()
