"""A provider's answer as it comes off the wire: events, JSON, and what stands for an error in them.

The SDK's own reader gives up at the first record that is not a chunk. Gateways send empty records, pings, errors in
their own words, and JSON where events were asked for; each is read as far as it goes.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

import httpx2
import openai

from agentao_gov.governor.classify import NotAModelError, provider_words

__all__ = ["Event", "error_in", "read_chunks", "read_events"]


@dataclass(frozen=True, slots=True)
class Event:
    """One record of an event stream that holds data."""

    name: str
    data: str


def read_events(parts: Iterable[bytes]) -> Iterator[Event]:
    """The records of an event stream (WHATWG HTML, 9.2.6). A last one without its blank line counts, too.

    `parts` are bytes, cut anywhere; their source bounds them. Comments and records without data are left out.
    """
    name = ""
    data: list[str] = []
    pending: list[bytes] = []
    for part in itertools.chain(parts, [b"\n\n"]):
        pending.append(part)
        if b"\n" not in part and b"\r" not in part:
            continue
        lines = b"".join(pending).splitlines(keepends=True)
        # A carriage return at the end may be half of a line's end.
        pending = [] if lines[-1].endswith(b"\n") else [lines.pop()]
        for raw in lines:
            line = raw.rstrip(b"\r\n").decode("utf-8", "replace")
            field, _, value = line.partition(":")
            value = value.removeprefix(" ")
            if field == "event":
                name = value
            elif field == "data":
                data.append(value)
            elif not line:
                if text := "\n".join(data).strip():
                    yield Event(name, text)
                name, data = "", []


def read_chunks(parts: Iterable[bytes], request: httpx2.Request) -> Iterator[dict[str, Any]]:
    """The chunks of an answer that was asked for as events: JSON objects, from events or from a body of plain JSON.

    Data that is no JSON, such as a ping, is left out. Raises openai.APIError, which names `request`, for an error in
    whatever words, json.JSONDecodeError for JSON that is broken, and NotAModelError for a body that holds no answer.
    """
    whole = iter(parts)
    begin = b""
    for part in whole:
        begin += part
        if begin.strip():
            break
    if begin.lstrip().startswith((b"{", b"[")):
        yield _as_chunk(json.loads(b"".join((begin, *whole))), request)
        return
    for event in read_events(itertools.chain([begin], whole)):
        if event.data.startswith("[DONE]"):
            return
        if not event.data.startswith(("{", "[")):
            continue
        chunk = json.loads(event.data)
        error = error_in(chunk, event.name)
        if error is not None:
            raise openai.APIError(error["message"], request, body=error)
        if isinstance(chunk, dict):
            yield chunk


def error_in(body: Any, event: str = "") -> dict[str, Any] | None:
    """The error that a body or a chunk stands for, with a `message`; None for an answer. `event`: the event's name.

    OpenAI has an object, Ollama and LM Studio a text, vLLM `{"object": "error"}`, MiniMax a status beside the answer,
    Google a list, FastAPI its `detail`, others an event called `error`.
    """
    if isinstance(body, list):
        return next((found for part in body if (found := error_in(part, event)) is not None), None)
    if not isinstance(body, dict):
        return None
    status = body.get("base_resp")
    if isinstance(status, dict) and status.get("status_code"):
        return {"message": provider_words(status), "code": status["status_code"]}
    said = body.get("error")
    names_one = event == "error" or "error" in (body.get("object"), body.get("type"))
    if not said and not names_one and (body.get("choices") or "detail" not in body):
        return None
    fields = said if isinstance(said, dict) else body
    words = provider_words(said or body) or "an error without words"
    return {**{key: fields[key] for key in ("code", "type", "param") if key in fields}, "message": words}


def _as_chunk(body: Any, request: httpx2.Request) -> dict[str, Any]:
    """A whole answer as the one chunk of a stream."""
    error = error_in(body)
    if error is not None:
        failure = openai.APIError(error["message"], request, body=error)
        # A refusal under the status of an answer: it cost nothing.
        vars(failure)["status_code"] = HTTPStatus.OK
        raise failure
    choices = body.get("choices") if isinstance(body, dict) else None
    if not isinstance(choices, list) or not all(isinstance(choice, dict) for choice in choices):
        raise NotAModelError(f"{str(body)[:200]!r}", HTTPStatus.OK)
    for choice in choices:
        choice["delta"] = choice.pop("message", None) or {}
        for number, call in enumerate(choice["delta"].get("tool_calls") or ()):
            call.setdefault("index", number)
    assert isinstance(body, dict)
    return body
