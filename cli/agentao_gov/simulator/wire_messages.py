"""Anthropic's Messages API, `/v1/messages`, with its rules about tool results and its prompt cache by breakpoints."""

from __future__ import annotations

import datetime
import json
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from agentao_gov.errors import BadRequestError
from agentao_gov.simulator.request import ChatRequest, WireName, chat_request, positive_limit
from agentao_gov.simulator.tokens import text_of
from agentao_gov.simulator.wire import PlannedAnswer, RateStand, ReportedUsage, compact, parse_object

#: The API takes no more `cache_control` in one request.
BREAKPOINTS_MAX = 4
_ERRORS = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    504: "timeout_error",
    529: "overloaded_error",
}
_STOP_REASONS = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use", "content_filter": "refusal"}


class MessagesWire:
    """See the module."""

    name: WireName = "messages"

    def read(self, body: bytes, headers: Mapping[str, str]) -> ChatRequest:
        """Parses a request. Raises BadRequestError where Anthropic would answer 400."""
        data = parse_object(body)
        limit = positive_limit(data, "max_tokens")
        if limit is None:
            raise BadRequestError("max_tokens: Field required", param="max_tokens")
        conversation = _Conversation()
        conversation.read(data)
        choice = data.get("tool_choice")
        return chat_request(
            self.name,
            data,
            headers,
            conversation.messages,
            conversation.tools,
            may_call_tools=not isinstance(choice, dict) or choice.get("type") != "none",
            max_tokens=limit,
            breakpoints=conversation.breakpoints,
        )

    def whole(self, answer: PlannedAnswer, request: ChatRequest, usage: ReportedUsage | None) -> bytes:
        """The body of an answer that is not streamed."""
        blocks: list[dict[str, Any]] = [_text_block(answer.text)] if answer.tokens else []
        blocks += [
            {**_tool_use(answer, index, name), "input": _parsed(arguments)}
            for index, (name, arguments) in enumerate(answer.calls)
        ]
        message = _message(answer, request) | {"content": blocks, "stop_reason": _stop_reason(answer)}
        if usage is not None:
            message["usage"] = _usage(usage)
        return compact(message).encode()

    def stream(
        self, answer: PlannedAnswer, request: ChatRequest, usage: ReportedUsage | None, quirks: Collection[str]
    ) -> MessagesStream:
        """The encoder of a streamed answer."""
        return MessagesStream(answer, request, usage, quirks)

    def error(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,  # noqa: ARG002 - Anthropic's errors have a type alone
        param: str | None = None,  # noqa: ARG002
    ) -> bytes:
        """Anthropic's error object for an HTTP status."""
        error = {"type": _ERRORS.get(status, "api_error"), "message": message}
        return compact({"type": "error", "error": error, "request_id": "req_sim"}).encode()

    def rate_headers(self, stands: Sequence[RateStand]) -> tuple[tuple[str, str], ...]:
        """The headers in which Anthropic says where its limits stand; a reset is a date."""
        headers = []
        for stand in stands:
            at = datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=stand.full_in_s)
            prefix = f"anthropic-ratelimit-{stand.name}"
            headers += [
                (f"{prefix}-limit", str(stand.limit)),
                (f"{prefix}-remaining", str(stand.remaining)),
                (f"{prefix}-reset", at.strftime("%Y-%m-%dT%H:%M:%SZ")),
            ]
        return tuple(headers)


class MessagesStream:
    """Encodes one streamed answer: blocks that begin, grow and stop."""

    def __init__(
        self, answer: PlannedAnswer, request: ChatRequest, usage: ReportedUsage | None, quirks: Collection[str]
    ) -> None:
        self._answer = answer
        self._request = request
        self._usage = usage
        self._end = "\r\n" if "crlf" in quirks else "\n"
        self._text_open = False

    def opening(self) -> bytes:
        message = _message(self._answer, self._request)
        if self._usage is not None:
            # The whole prompt is counted when the answer begins, of the answer a first token.
            message["usage"] = {**_usage(self._usage), "output_tokens": min(1, self._usage.completion_tokens)}
        return self._event("message_start", message=message) + self._event("ping")

    def text(self, text: str) -> bytes:
        before = b"" if self._text_open else self._event("content_block_start", index=0, content_block=_text_block(""))
        self._text_open = True
        return before + self._event("content_block_delta", index=0, delta={"type": "text_delta", "text": text})

    def call(self, index: int, name: str, arguments: str) -> bytes:
        before = self._event("content_block_stop", index=0) if index == 0 and self._text_open else b""
        at = index + self._text_open
        opening = self._event("content_block_start", index=at, content_block=_tool_use(self._answer, index, name))
        deltas = [
            self._event("content_block_delta", index=at, delta={"type": "input_json_delta", "partial_json": part})
            for part in ("", arguments)
        ]
        return b"".join([before, opening, *deltas, self._event("content_block_stop", index=at)])

    def ending(self) -> bytes:
        before = self._event("content_block_stop", index=0) if self._text_open and not self._answer.calls else b""
        fields: dict[str, Any] = {"delta": {"stop_reason": _stop_reason(self._answer), "stop_sequence": None}}
        if self._usage is not None:
            fields["usage"] = _usage(self._usage)
        return before + self._event("message_delta", **fields) + self._event("message_stop")

    def comment(self) -> bytes:
        return f": keep-alive{self._end}{self._end}".encode()

    def malformed(self) -> bytes:
        return self._record("content_block_delta", '{"type": "content_block_delta", "del')

    def failure(self, message: str) -> bytes:
        return self._event("error", error={"type": "api_error", "message": message})

    def _event(self, kind: str, **fields: Any) -> bytes:
        return self._record(kind, compact({"type": kind, **fields}))

    def _record(self, kind: str, data: str) -> bytes:
        return f"event: {kind}{self._end}data: {data}{self._end}{self._end}".encode()


# ── requests ──────────────────────────────────────────────────────────────────────────────────────


class _Conversation:
    """A request's prompt as messages of a chat, and after how many of them each breakpoint of the cache stands.

    A block of a user's turn is a message of its own: a breakpoint may stand between two.
    """

    def __init__(self) -> None:
        self.messages: list[dict[str, Any]] = []
        self.tools: list[dict[str, Any]] = []
        self.breakpoints: list[int] = []
        #: Calls that the next turn must answer.
        self._open: list[str] = []

    def read(self, data: dict[str, Any]) -> None:
        for tool in data.get("tools") or ():
            self._tool(tool)
        system = data.get("system")
        if isinstance(system, str):
            self.messages.append({"role": "system", "content": system})
        elif isinstance(system, list):
            self.messages.append({"role": "system", "content": system})
            self._mark(any("cache_control" in block for block in system))
        turns = data.get("messages")
        if not isinstance(turns, list) or not turns or not all(isinstance(turn, dict) for turn in turns):
            raise BadRequestError("messages: at least one message is required", param="messages")
        for number, turn in enumerate(turns):
            self._turn(turn, number)
        if self._open:
            self._unanswered(len(turns) - 1)
        if len(self.breakpoints) > BREAKPOINTS_MAX:
            raise BadRequestError(
                f"A maximum of {BREAKPOINTS_MAX} blocks with cache_control may be provided. "
                f"Found {len(self.breakpoints)}."
            )

    def _tool(self, tool: dict[str, Any]) -> None:
        function = {
            "name": tool.get("name", ""),
            "description": tool.get("description", ""),
            "parameters": tool.get("input_schema"),
        }
        self.tools.append({"type": "function", "function": function})
        self._mark("cache_control" in tool)

    def _turn(self, turn: dict[str, Any], number: int) -> None:
        role, content = turn.get("role"), turn.get("content")
        if role not in ("user", "assistant"):
            raise BadRequestError(f"messages.{number}.role: Input should be 'user' or 'assistant'", param="messages")
        blocks = [_text_block(content)] if isinstance(content, str) else content
        if not isinstance(blocks, list) or not blocks:
            raise BadRequestError(f"messages.{number}: messages must have non-empty content", param="messages")
        if role == "assistant":
            self._assistant(blocks, number)
        else:
            self._user(blocks, number)

    def _assistant(self, blocks: list[dict[str, Any]], number: int) -> None:
        if self._open:
            self._unanswered(number - 1)
        texts = [block for block in blocks if block.get("type") == "text"]
        self._check_texts(texts, number)
        message: dict[str, Any] = {"role": "assistant", "content": text_of(texts)}
        calls = []
        for block in blocks:
            if block.get("type") == "tool_use":
                function = {"name": block["name"], "arguments": json.dumps(block["input"], ensure_ascii=False)}
                calls.append({"id": block["id"], "type": "function", "function": function})
        if calls:
            message["tool_calls"] = calls
            self._open = [call["id"] for call in calls]
        self.messages.append(message)
        self._mark(any("cache_control" in block for block in blocks))

    def _user(self, blocks: list[dict[str, Any]], number: int) -> None:
        for block in blocks:
            if block.get("type") == "tool_result":
                call_id = str(block.get("tool_use_id"))
                if call_id not in self._open:
                    raise BadRequestError(
                        f"messages.{number}: unexpected `tool_use_id` found in `tool_result` blocks: {call_id}. "
                        "Each `tool_result` block must have a corresponding `tool_use` block in the previous message."
                    )
                self._open.remove(call_id)
                content = block.get("content")
                text = content if isinstance(content, str) else text_of(content)
                self.messages.append({"role": "tool", "tool_call_id": call_id, "content": text})
            else:
                if self._open:
                    self._unanswered(number)
                self._check_texts([block] if block.get("type") == "text" else [], number)
                self.messages.append({"role": "user", "content": [block]})
            self._mark("cache_control" in block)

    def _check_texts(self, texts: list[dict[str, Any]], number: int) -> None:
        if not all(block.get("text", "").strip() for block in texts):
            raise BadRequestError(f"messages.{number}: text content blocks must be non-empty", param="messages")

    def _unanswered(self, number: int) -> None:
        raise BadRequestError(
            f"messages.{number}: `tool_use` ids were found without `tool_result` blocks immediately after: "
            f"{', '.join(self._open)}."
        )

    def _mark(self, marked: bool) -> None:
        if marked:
            self.breakpoints.append(len(self.messages))


# ── answers ───────────────────────────────────────────────────────────────────────────────────────


def _message(answer: PlannedAnswer, request: ChatRequest) -> dict[str, Any]:
    return {
        "id": f"msg_sim{answer.number}",
        "type": "message",
        "role": "assistant",
        "model": request.model,
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
    }


def _stop_reason(answer: PlannedAnswer) -> str:
    return _STOP_REASONS.get(answer.finish_reason, answer.finish_reason)


def _text_block(text: str) -> dict[str, Any]:
    return {"type": "text", "text": text}


def _tool_use(answer: PlannedAnswer, index: int, name: str) -> dict[str, Any]:
    return {"type": "tool_use", "id": answer.call_id("toolu", index), "name": name, "input": {}}


def _parsed(arguments: str) -> dict[str, Any]:
    """The arguments as an object; what was cut short or is none leaves nothing that could be told."""
    try:
        found = json.loads(arguments)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _usage(usage: ReportedUsage) -> dict[str, Any]:
    return {
        "input_tokens": usage.prompt_tokens - usage.cached_tokens - usage.cache_write_tokens,
        "cache_creation_input_tokens": usage.cache_write_tokens,
        "cache_read_input_tokens": usage.cached_tokens,
        "output_tokens": usage.completion_tokens,
    }
