"""OpenAI's Responses API, `/v1/responses`. Nothing is stored: `previous_response_id` names nothing here."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from agentao_gov.errors import BadRequestError
from agentao_gov.simulator.request import ChatRequest, WireName, chat_request, positive_limit
from agentao_gov.simulator.tokens import text_of
from agentao_gov.simulator.wire import (
    PlannedAnswer,
    ReportedUsage,
    compact,
    created,
    error_body,
    openai_rate_headers,
    parse_object,
)

#: The API takes no smaller `max_output_tokens`.
OUTPUT_TOKENS_MIN = 16


class ResponsesWire:
    """See the module."""

    name: WireName = "responses"
    error = staticmethod(error_body)
    rate_headers = staticmethod(openai_rate_headers)

    def read(self, body: bytes, headers: Mapping[str, str]) -> ChatRequest:
        """Parses a request. Raises BadRequestError where OpenAI would answer 400."""
        data = parse_object(body)
        if data.get("previous_response_id"):
            raise BadRequestError("Previous response not found.", param="previous_response_id")
        limit = positive_limit(data, "max_output_tokens")
        if limit is not None and limit < OUTPUT_TOKENS_MIN:
            raise BadRequestError(
                f"Invalid 'max_output_tokens': integer below minimum value. Expected a value >= {OUTPUT_TOKENS_MIN}, "
                f"but got {limit} instead.",
                param="max_output_tokens",
            )
        tools = [_read_tool(tool) for tool in data.get("tools") or [] if isinstance(tool, dict)]
        return chat_request(
            self.name,
            data,
            headers,
            _read_input(data),
            tools,
            may_call_tools=data.get("tool_choice") != "none",
            max_tokens=limit,
        )

    def whole(self, answer: PlannedAnswer, request: ChatRequest, usage: ReportedUsage | None) -> bytes:
        """The body of an answer that is not streamed."""
        return compact(_response(answer, request, _items(answer), usage, ended=True)).encode()

    def stream(
        self, answer: PlannedAnswer, request: ChatRequest, usage: ReportedUsage | None, quirks: Collection[str]
    ) -> ResponsesStream:
        """The encoder of a streamed answer."""
        return ResponsesStream(answer, request, usage, quirks)


class ResponsesStream:
    """Encodes one streamed answer: typed events with a running number."""

    def __init__(
        self, answer: PlannedAnswer, request: ChatRequest, usage: ReportedUsage | None, quirks: Collection[str]
    ) -> None:
        self._answer = answer
        self._request = request
        self._usage = usage
        self._end = "\r\n" if "crlf" in quirks else "\n"
        self._sequence = 0
        self._text_open = False

    def opening(self) -> bytes:
        begun = _response(self._answer, self._request, [], None, ended=False)
        return self._event("response.created", response=begun) + self._event("response.in_progress", response=begun)

    def text(self, text: str) -> bytes:
        before = b""
        if not self._text_open:
            self._text_open = True
            item = {**_message(self._answer), "status": "in_progress", "content": []}
            part = {"type": "output_text", "text": "", "annotations": []}
            before = self._event("response.output_item.added", output_index=0, item=item)
            before += self._event("response.content_part.added", **self._part(), part=part)
        return before + self._event("response.output_text.delta", **self._part(), delta=text, logprobs=[])

    def call(self, index: int, name: str, arguments: str) -> bytes:
        # The text's item is done before the first call's begins.
        before = self._close_text() if index == 0 else b""
        item = _function_call(self._answer, index, name, arguments)
        at = {"output_index": index + self._text_open}
        begun = {**item, "arguments": "", "status": "in_progress"}
        return b"".join(
            [
                before,
                self._event("response.output_item.added", **at, item=begun),
                self._event("response.function_call_arguments.delta", **at, item_id=item["id"], delta=arguments),
                self._event(
                    "response.function_call_arguments.done",
                    **at,
                    item_id=item["id"],
                    name=name,
                    arguments=arguments,
                ),
                self._event("response.output_item.done", **at, item=item),
            ]
        )

    def ending(self) -> bytes:
        before = b"" if self._answer.calls else self._close_text()
        ended = _response(self._answer, self._request, _items(self._answer), self._usage, ended=True)
        return before + self._event(f"response.{ended['status']}", response=ended)

    def comment(self) -> bytes:
        return f": keep-alive{self._end}{self._end}".encode()

    def malformed(self) -> bytes:
        return self._record("response.output_text.delta", '{"type": "response.output_text.delta", "del')

    def failure(self, message: str) -> bytes:
        return self._event("error", code="server_error", message=message, param=None)

    def _close_text(self) -> bytes:
        if not self._text_open:
            return b""
        item = _message(self._answer)
        return b"".join(
            [
                self._event("response.output_text.done", **self._part(), text=self._answer.text, logprobs=[]),
                self._event("response.content_part.done", **self._part(), part=item["content"][0]),
                self._event("response.output_item.done", output_index=0, item=item),
            ]
        )

    def _part(self) -> dict[str, Any]:
        return {"item_id": _message_id(self._answer), "output_index": 0, "content_index": 0}

    def _event(self, kind: str, **fields: Any) -> bytes:
        data = compact({"type": kind, "sequence_number": self._sequence, **fields})
        self._sequence += 1
        return self._record(kind, data)

    def _record(self, kind: str, data: str) -> bytes:
        return f"event: {kind}{self._end}data: {data}{self._end}{self._end}".encode()


# ── requests ──────────────────────────────────────────────────────────────────────────────────────


def _read_input(data: dict[str, Any]) -> list[dict[str, Any]]:
    """The input as messages of a chat, calls that follow one another in one message."""
    messages: list[dict[str, Any]] = []
    if isinstance(data.get("instructions"), str):
        messages.append({"role": "system", "content": data["instructions"]})
    items = data.get("input")
    if isinstance(items, str):
        items = [{"role": "user", "content": items}]
    if not isinstance(items, list) or not items or not all(isinstance(item, dict) for item in items):
        raise BadRequestError("`input` must be a text or a non-empty list of objects.", param="input")
    called: set[str] = set()
    for number, item in enumerate(items):
        _read_item(item, messages, called, f"input[{number}]")
    if called:
        raise BadRequestError(f"No tool output found for function call {min(called)}.", param="input")
    return messages


def _read_item(item: dict[str, Any], messages: list[dict[str, Any]], called: set[str], where: str) -> None:
    match item.get("type", "message"):
        case "message" if item.get("role") in ("user", "assistant", "system", "developer"):
            role = "system" if item["role"] == "developer" else item["role"]
            messages.append({"role": role, "content": item.get("content")})
        case "function_call":
            call_id = str(item.get("call_id"))
            called.add(call_id)
            function = {"name": str(item.get("name", "")), "arguments": str(item.get("arguments", ""))}
            if not messages or messages[-1]["role"] != "assistant":
                messages.append({"role": "assistant", "content": None})
            calls = messages[-1].setdefault("tool_calls", [])
            calls.append({"id": call_id, "type": "function", "function": function})
        case "function_call_output":
            call_id = str(item.get("call_id"))
            known = {call["id"] for message in messages for call in message.get("tool_calls") or ()}
            if call_id not in known:
                raise BadRequestError(
                    f"No tool call found for function call output with call_id {call_id}.", param=where
                )
            called.discard(call_id)
            output = item.get("output")
            text = output if isinstance(output, str) else text_of(output)
            messages.append({"role": "tool", "tool_call_id": call_id, "content": text})
        case "reasoning":
            # Encrypted, and read by nobody but its maker.
            pass
        case kind:
            raise BadRequestError(f"Invalid value: {kind!r} with role {item.get('role')!r}.", param=where)


def _read_tool(tool: dict[str, Any]) -> dict[str, Any]:
    function = {key: tool[key] for key in ("name", "description", "parameters") if key in tool}
    return {"type": "function", "function": function}


# ── answers ───────────────────────────────────────────────────────────────────────────────────────


def _message_id(answer: PlannedAnswer) -> str:
    return f"msg_sim{answer.number}"


def _message(answer: PlannedAnswer) -> dict[str, Any]:
    part = {"type": "output_text", "text": answer.text, "annotations": []}
    status = "incomplete" if answer.finish_reason == "length" and not answer.calls else "completed"
    return {
        "id": _message_id(answer),
        "type": "message",
        "status": status,
        "role": "assistant",
        "content": [part],
    }


def _function_call(answer: PlannedAnswer, index: int, name: str, arguments: str) -> dict[str, Any]:
    return {
        "id": answer.call_id("fc", index),
        "type": "function_call",
        "status": "completed",
        "call_id": answer.call_id("call", index),
        "name": name,
        "arguments": arguments,
    }


def _items(answer: PlannedAnswer) -> list[dict[str, Any]]:
    calls = [_function_call(answer, index, name, args) for index, (name, args) in enumerate(answer.calls)]
    return [_message(answer), *calls] if answer.tokens else calls


def _response(
    answer: PlannedAnswer,
    request: ChatRequest,
    items: list[dict[str, Any]],
    usage: ReportedUsage | None,
    *,
    ended: bool,
) -> dict[str, Any]:
    cut = {"length": "max_output_tokens", "content_filter": "content_filter"}.get(answer.finish_reason)
    status = "in_progress" if not ended else "incomplete" if cut else "completed"
    return {
        "id": f"resp_sim{answer.number}",
        "object": "response",
        "created_at": created(),
        "status": status,
        "error": None,
        "incomplete_details": {"reason": cut} if ended and cut else None,
        "instructions": None,
        "max_output_tokens": request.max_tokens,
        "model": request.model,
        "output": items,
        "parallel_tool_calls": True,
        "previous_response_id": None,
        "store": False,
        "temperature": 1.0,
        "tool_choice": "auto",
        "tools": [],
        "top_p": 1.0,
        "metadata": {},
        "usage": _usage(usage) if usage is not None else None,
    }


def _usage(usage: ReportedUsage) -> dict[str, Any]:
    return {
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": {
            "cached_tokens": usage.cached_tokens,
            "cache_write_tokens": usage.cache_write_tokens,
        },
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
        "total_tokens": usage.total_tokens,
    }
