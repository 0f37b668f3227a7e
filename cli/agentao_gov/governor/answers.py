"""A provider's answer as it comes off the wire: events, JSON, and what stands for an error in them.

The SDK's own reader gives up at the first record that is not a chunk. Gateways send empty records, pings, errors in
their own words, and JSON where events were asked for; each is read as far as it goes.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

import httpx2
import openai

from agentao_gov.governor.classify import NotAModelError, provider_words
from agentao_gov.governor.report import replace_surrogates

__all__ = ["Event", "error_in", "mend_arguments", "read_chunks", "read_events", "read_whole", "without_surrogates"]

#: A character's half as JSON writes it.
_HALF = re.compile(r"\\u[dD][89a-fA-F]")


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


def without_surrogates(value: Any) -> Any:
    """JSON with every text fit to be written."""
    if isinstance(value, str):
        return replace_surrogates(value)
    if isinstance(value, list):
        return [without_surrogates(inner) for inner in value]
    if isinstance(value, dict):
        return {without_surrogates(key): without_surrogates(inner) for key, inner in value.items()}
    return value


def mend_arguments(text: str) -> str:
    """A tool call's arguments without halves of characters, which its JSON may spell: tools would write them on."""
    if _HALF.search(text) is None:
        return text
    try:
        return json.dumps(without_surrogates(json.loads(text)), ensure_ascii=False)
    except ValueError:
        return text


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
        yield _as_chunk(read_whole(b"".join((begin, *whole)), request))
        return
    mended = _Surrogates()
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
            yield mended.mend(chunk, event.data)


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


class _Surrogates:
    """Takes the halves of characters out of one answer: joined where they come in two chunks, else replaced."""

    def __init__(self) -> None:
        # First halves that may find their second in the next chunk, by where they stood.
        self._held: dict[tuple[str | int, ...], str] = {}

    def mend(self, chunk: dict[str, Any], source: str) -> dict[str, Any]:
        """The chunk without halves. `source`, its JSON, tells fast that there are none."""
        if not self._held and _HALF.search(source) is None:
            return chunk
        mended: dict[str, Any] = self._walk(chunk, ())
        ended = [choice for choice in mended.get("choices") or () if choice.get("finish_reason")]
        if ended and self._held:
            delta = ended[0]["delta"] = ended[0].get("delta") or {}
            if any(place[-1] == "content" for place in self._held):
                delta["content"] = f"{delta.get('content') or ''}\N{REPLACEMENT CHARACTER}"
            self._held.clear()
        return mended

    def _walk(self, value: Any, place: tuple[str | int, ...]) -> Any:
        if isinstance(value, dict):
            return {key: self._walk(inner, (*place, key)) for key, inner in value.items()}
        if isinstance(value, list):
            return [self._walk(inner, (*place, number)) for number, inner in enumerate(value)]
        if not isinstance(value, str):
            return value
        text = self._held.pop(place, "") + value
        if text and "\ud800" <= text[-1] <= "\udbff":
            self._held[place], text = text[-1], text[:-1]
        return replace_surrogates(text)


def read_whole(data: bytes, request: httpx2.Request) -> dict[str, Any]:
    """An answer in one piece: JSON with `choices`. Raises as `read_chunks` does."""
    body = json.loads(data)
    error = error_in(body)
    if error is not None:
        failure = openai.APIError(error["message"], request, body=error)
        # A refusal under the status of an answer: it cost nothing.
        vars(failure)["status_code"] = HTTPStatus.OK
        raise failure
    choices = body.get("choices") if isinstance(body, dict) else None
    if not isinstance(choices, list) or not all(isinstance(choice, dict) for choice in choices):
        raise NotAModelError(f"{str(body)[:200]!r}", HTTPStatus.OK)
    whole: dict[str, Any] = without_surrogates(body)
    return whole


def _as_chunk(body: dict[str, Any]) -> dict[str, Any]:
    """A whole answer as the one chunk of a stream."""
    for choice in body["choices"]:
        choice["delta"] = choice.pop("message", None) or {}
        for number, call in enumerate(choice["delta"].get("tool_calls") or ()):
            call.setdefault("index", number)
    return body
