"""OpenAI's Chat Completions, `/v1/chat/completions`."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from json.encoder import encode_basestring
from typing import Any

from agentao_gov.errors import BadRequestError
from agentao_gov.simulator.request import ChatRequest, WireName, chat_request, positive_limit
from agentao_gov.simulator.wire import (
    PlannedAnswer,
    ReportedUsage,
    compact,
    created,
    error_body,
    openai_rate_headers,
    parse_object,
)


class CompletionsWire:
    """See the module."""

    name: WireName = "completions"
    error = staticmethod(error_body)
    rate_headers = staticmethod(openai_rate_headers)

    def read(self, body: bytes, headers: Mapping[str, str]) -> ChatRequest:
        """Parses a request. Raises BadRequestError where OpenAI would answer 400."""
        data = parse_object(body)
        messages = data.get("messages")
        if not isinstance(messages, list) or not messages or not all(isinstance(m, dict) for m in messages):
            raise BadRequestError("`messages` must be a non-empty list of objects.", param="messages")
        tools = data.get("tools") or []
        key = "max_completion_tokens" if data.get("max_completion_tokens") else "max_tokens"
        return chat_request(
            self.name,
            data,
            headers,
            messages,
            tools if isinstance(tools, list) else [],
            may_call_tools=data.get("tool_choice") != "none",
            max_tokens=positive_limit(data, key),
            include_usage=bool((data.get("stream_options") or {}).get("include_usage")),
        )

    def whole(self, answer: PlannedAnswer, request: ChatRequest, usage: ReportedUsage | None) -> bytes:
        """The body of an answer that is not streamed."""
        content = answer.text if answer.tokens or not answer.calls else None
        message: dict[str, Any] = {"role": "assistant", "content": content}
        if answer.calls:
            message["tool_calls"] = [_call(answer, i, name, args) for i, (name, args) in enumerate(answer.calls)]
        body: dict[str, Any] = {
            "id": _answer_id(answer),
            "object": "chat.completion",
            "created": created(),
            "model": request.model,
            "choices": [{"index": 0, "message": message, "finish_reason": answer.finish_reason}],
        }
        if usage is not None:
            body["usage"] = _usage(usage)
        return compact(body).encode()

    def stream(
        self, answer: PlannedAnswer, request: ChatRequest, usage: ReportedUsage | None, quirks: Collection[str]
    ) -> CompletionsStream:
        """The encoder of a streamed answer."""
        return CompletionsStream(answer, request, usage, quirks)


class CompletionsStream:
    """Encodes one streamed answer: chunks, and `[DONE]`."""

    def __init__(
        self, answer: PlannedAnswer, request: ChatRequest, usage: ReportedUsage | None, quirks: Collection[str]
    ) -> None:
        self._answer = answer
        self._quirks = quirks
        self._head = (
            f'data: {{"id":{compact(_answer_id(answer))},"object":"chat.completion.chunk","created":{created()},'
            f'"model":{compact(request.model)},"choices":['
        )
        self._end = "\r\n\r\n" if "crlf" in quirks else "\n\n"
        said = _usage(usage) if usage is not None else None
        self._every = said if "usage_every_chunk" in quirks else None
        self._last = said if request.include_usage else None

    def opening(self) -> bytes:
        if "no_role" in self._quirks:
            return b""
        return self._delta({"role": "assistant"} | ({} if "role_only" in self._quirks else {"content": ""}))

    def text(self, text: str) -> bytes:
        # Most events are one of these, so it is written without building a mapping.
        choice = f'{{"index":0,"delta":{{"content":{encode_basestring(text)}}},"finish_reason":null}}'
        return self._event(choice, self._every)

    def call(self, index: int, name: str, arguments: str) -> bytes:
        opening = {"index": index, **_call(self._answer, index, name, "")}
        rest = {"index": index, "function": {"arguments": arguments}}
        return self._delta({"tool_calls": [opening]}) + self._delta({"tool_calls": [rest]})

    def ending(self) -> bytes:
        finish = self._delta({}, self._answer.finish_reason, self._every)
        last = self._event("", self._last) if self._last is not None else b""
        return finish + last + self._raw("[DONE]")

    def comment(self) -> bytes:
        """A keep-alive comment, which a client must ignore."""
        return f": keep-alive{self._end}".encode()

    def malformed(self) -> bytes:
        return self._raw('{"id": "chatcmpl-sim", "choices": [{"delta": {"con')

    def failure(self, message: str) -> bytes:
        return self._raw(error_body(500, message, code="server_error").decode())

    def _delta(
        self, delta: dict[str, Any], finish_reason: str | None = None, usage: dict[str, Any] | None = None
    ) -> bytes:
        return self._event(compact({"index": 0, "delta": delta, "finish_reason": finish_reason}), usage)

    def _raw(self, data: str) -> bytes:
        return f"data: {data}{self._end}".encode()

    def _event(self, choices: str, usage: dict[str, Any] | None) -> bytes:
        tail = f',"usage":{compact(usage)}' if usage is not None else ""
        return f"{self._head}{choices}]{tail}}}{self._end}".encode()


def _answer_id(answer: PlannedAnswer) -> str:
    return f"chatcmpl-sim{answer.number}"


def _call(answer: PlannedAnswer, index: int, name: str, arguments: str) -> dict[str, Any]:
    function = {"name": name, "arguments": arguments}
    return {"id": answer.call_id("call", index), "type": "function", "function": function}


def _usage(usage: ReportedUsage) -> dict[str, Any]:
    said: dict[str, Any] = {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.total_tokens,
    }
    if usage.cached_tokens or usage.cache_write_tokens:
        said["prompt_tokens_details"] = {"cached_tokens": usage.cached_tokens}
        if usage.cache_write_tokens:
            said["prompt_tokens_details"]["cache_write_tokens"] = usage.cache_write_tokens
    if usage.reasoning_tokens:
        said["completion_tokens_details"] = {"reasoning_tokens": usage.reasoning_tokens}
    return said
