"""A chat request as the simulated model sees it: what is asked, and in which round of the tool loop."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass, field
from typing import Any

from agentao_gov.errors import BadRequestError
from agentao_gov.simulator.tokens import prompt_tokens, text_of

__all__ = ["ChatRequest", "read_request"]

# agentao puts reminders (date and time, hook output) into user messages; they are not the user's words.
_REMINDER = re.compile(r"<system-reminder>.*?</system-reminder>\s*", re.DOTALL)
_SUMMARY_SYSTEM = "You are a conversation summarization assistant"


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """One parsed request to `/v1/chat/completions`."""

    model: str
    api_key: str
    user: str | None
    stream: bool
    include_usage: bool
    #: Completion tokens at most; None: no limit.
    max_tokens: int | None
    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]]
    #: The last thing the user said, without the runtime's reminders.
    question: str
    #: Rounds of tool calls since the question.
    round_index: int
    #: Whether the runtime asks for a summary of the conversation.
    is_summary: bool
    #: Hash of the messages: the same for a retry of the same call.
    digest: str
    prompt_tokens: int
    headers: dict[str, str] = field(default_factory=dict)

    @property
    def may_call_tools(self) -> bool:
        """Whether the request offers tools at all."""
        return bool(self.tools)

    def tool(self, name: str) -> dict[str, Any] | None:
        """The offered tool's function object."""
        for tool in self.tools:
            function = tool.get("function") or {}
            if function.get("name") == name:
                return dict(function)
        return None


def read_request(body: bytes, headers: dict[str, str]) -> ChatRequest:
    """Parses a body. Raises BadRequestError where a real provider would answer 400."""
    try:
        data = json.loads(body)
    except (ValueError, UnicodeDecodeError) as error:
        raise BadRequestError(f"The body is not JSON: {error}") from error
    messages = data.get("messages") if isinstance(data, dict) else None
    if not isinstance(messages, list) or not messages or not all(isinstance(m, dict) for m in messages):
        raise BadRequestError("`messages` must be a non-empty list of objects.", param="messages")
    if not isinstance(data.get("model"), str):
        raise BadRequestError("`model` must be a string.", param="model")
    tools = data.get("tools") or []
    if not isinstance(tools, list) or data.get("tool_choice") == "none":
        tools = []
    index, question = _question(messages)
    options = data.get("stream_options") or {}
    return ChatRequest(
        model=data["model"],
        api_key=headers.get("authorization", "").removeprefix("Bearer ").strip(),
        user=data["user"] if isinstance(data.get("user"), str) else None,
        stream=bool(data.get("stream")),
        include_usage=bool(options.get("include_usage")),
        max_tokens=_max_tokens(data),
        messages=messages,
        tools=tools,
        question=question,
        round_index=sum(1 for m in messages[index + 1 :] if m.get("role") == "assistant" and m.get("tool_calls")),
        is_summary=_is_summary(messages),
        digest=_digest(messages),
        prompt_tokens=prompt_tokens(messages, tools),
        headers={k: v for k, v in headers.items() if k.startswith("x-")},
    )


def _max_tokens(data: dict[str, Any]) -> int | None:
    value = data.get("max_completion_tokens") or data.get("max_tokens")
    if value is None:
        return None
    if not isinstance(value, int) or value < 1:
        raise BadRequestError("`max_tokens` must be a positive integer.", param="max_tokens")
    return value


def _question(messages: list[dict[str, Any]]) -> tuple[int, str]:
    for index in range(len(messages) - 1, -1, -1):
        message = messages[index]
        if message.get("role") == "user":
            text = _REMINDER.sub("", text_of(message.get("content"))).strip()
            if text:
                return index, text
    return len(messages) - 1, ""


def _is_summary(messages: list[dict[str, Any]]) -> bool:
    return messages[0].get("role") == "system" and text_of(messages[0].get("content")).startswith(_SUMMARY_SYSTEM)


def _digest(messages: list[dict[str, Any]]) -> str:
    # Reminders carry the time of day: a retry is the same call all the same.
    hashed = hashlib.blake2b(str(len(messages)).encode(), digest_size=8)
    for message in messages[-3:]:
        text = _REMINDER.sub("", text_of(message.get("content")))
        hashed.update(f"\x01{message.get('role')}\x00{text}".encode("utf-8", "replace"))
    return hashed.hexdigest()
