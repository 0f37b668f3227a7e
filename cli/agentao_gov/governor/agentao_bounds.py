"""The file names in a conversation, by which agentao recalls memories: found in bounded time.

agentao looks for them with one pattern over the last ten messages, whole. On a long run of letters (base64, a hash, a
minified file) that takes time with the square of its length and no other thread runs meanwhile: 1 MiB stopped the
process for minutes, until the warden took it for dead.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

#: As agentao takes: the last so many messages, the first so many names.
_MESSAGES = 10
_HINTS_MAX = 20
#: Characters looked at in one message: names worth recalling by stand near the start of it.
_CHARS_MAX = 16_000
#: A longer run is data, not a path; it also bounds the square in the second pattern.
_RUN_CHARS_MAX = 256
# Runs do not overlap, so this one is linear.
_RUN = re.compile(r"[\w./\\-]+")
_PATH = re.compile(r"[\w./\\-]+\.\w{2,6}")


def path_hints(messages: Sequence[Mapping[str, Any]]) -> list[str]:
    """File paths in the last messages, first ones first."""
    hints: list[str] = []
    for message in messages[-_MESSAGES:]:
        for text in _texts(message.get("content")):
            for run in _RUN.findall(text[:_CHARS_MAX]):
                if len(run) <= _RUN_CHARS_MAX:
                    hints += _PATH.findall(run)
                if len(hints) >= _HINTS_MAX:
                    return hints[:_HINTS_MAX]
    return hints


def _texts(content: object) -> list[str]:
    if isinstance(content, str):
        return [content]
    if not isinstance(content, list):
        return []
    return [str(part.get("text", "")) for part in content if isinstance(part, Mapping) and part.get("type") == "text"]
