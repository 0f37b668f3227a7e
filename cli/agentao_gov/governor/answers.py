"""A provider's answer as it comes off the wire: events, JSON, and what stands for an error in them.

The SDK's own reader gives up at the first record that is not a chunk. Gateways send empty records, pings, errors in
their own words, and JSON where events were asked for; each is read as far as it goes, and put into OpenAI's form.
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

#: Indexes of tool calls from here on are ours.
_OWN_INDEX = 1_000
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
    halves, dialect = _Surrogates(), _Dialect()
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
            yield dialect.translate(halves.mend(chunk, event.data))


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


class _Dialect:
    """Makes OpenAI's form of one answer's chunks, or of a whole answer, from what its provider made of it."""

    def __init__(self) -> None:
        # By the index that the provider gives: the id of the call under way, and the index it has here.
        self._calls: dict[Any, tuple[Any, int]] = {}

    def translate(self, chunk: dict[str, Any]) -> dict[str, Any]:
        """The chunk, changed in place."""
        choices = [choice for choice in chunk.get("choices") or () if isinstance(choice, dict)]
        _translate_usage(chunk, choices)
        for choice in choices:
            for name in ("delta", "message"):
                if isinstance(message := choice.get(name), dict):
                    _translate_message(message)
                    if name == "delta":
                        self._tell_calls_apart(message.get("tool_calls") or ())
        return chunk

    def _tell_calls_apart(self, calls: Iterable[dict[str, Any]]) -> None:
        """Ollama, SGLang and others give every parallel call the index 0; another id with a name is another call.

        A piece of a call has no name of its own, though some gateways invent an id for each.
        """
        for call in calls:
            index, number, name = call.get("index"), call.get("id"), (call.get("function") or {}).get("name")
            if index is None:
                continue
            known, here = self._calls.get(index, (None, index))
            if number and known and number != known and name:
                here = _OWN_INDEX + len(self._calls)
                self._calls[here] = (None, here)
            self._calls[index] = (number or known, here)
            call["index"] = here


def _translate_usage(chunk: dict[str, Any], choices: list[dict[str, Any]]) -> None:
    """Moonshot reports in the choice, Groq in a field of its own, mlx-vlm by Anthropic's names."""
    used = chunk.get("usage") or (choices[0].get("usage") if choices else None)
    used = used or (chunk.get("x_groq") or {}).get("usage")
    if isinstance(used, dict):
        for ours, theirs in (("prompt_tokens", "input_tokens"), ("completion_tokens", "output_tokens")):
            if used.get(ours) is None and theirs in used:
                used[ours] = used[theirs]
        chunk["usage"] = used


def _translate_message(message: dict[str, Any]) -> None:
    """Mistral's reasoning models answer in parts, llama.cpp gives arguments as an object, old APIs know one function.

    A refusal is what the model says.
    """
    content = message.get("content")
    if isinstance(content, list):
        parts = [part if isinstance(part, dict) else {"text": part} for part in content]
        thoughts = "".join(_text_of(part["thinking"]) for part in parts if "thinking" in part)
        message["content"] = "".join(_text_of(part.get("text")) for part in parts) or None
        if thoughts:
            message["reasoning_content"] = thoughts
    elif content is None and isinstance(message.get("refusal"), str):
        message["content"] = message["refusal"]
    function = message.get("function_call")
    if isinstance(function, dict) and not message.get("tool_calls"):
        message["tool_calls"] = [{"index": 0, "id": "function_call", "type": "function", "function": function}]
    for call in message.get("tool_calls") or ():
        function = call.get("function")
        if isinstance(function, dict) and isinstance(function.get("arguments"), dict | list):
            function["arguments"] = json.dumps(function["arguments"], ensure_ascii=False)


def _text_of(value: Any) -> str:
    if isinstance(value, list):
        return "".join(_text_of(part.get("text") if isinstance(part, dict) else part) for part in value)
    return value if isinstance(value, str) else ""


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
    return _Dialect().translate(without_surrogates(body))


def _as_chunk(body: dict[str, Any]) -> dict[str, Any]:
    """A whole answer as the one chunk of a stream."""
    for choice in body["choices"]:
        choice["delta"] = choice.pop("message", None) or {}
        for number, call in enumerate(choice["delta"].get("tool_calls") or ()):
            call.setdefault("index", number)
    return body
