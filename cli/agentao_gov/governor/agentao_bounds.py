"""The model's own patterns, searched in bounded time.

`search_file_content` compiles what the model sends. Python's `re` backtracks without end on patterns like `(a+)+$` and
no other thread runs meanwhile: one tool call stops every session of the process, and no time limit reaches it. `regex`
understands the same patterns, has a time limit, and lets others run while it searches.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import agentao.tools.search
import regex  # type: ignore[import-untyped]

__all__ = ["bound_patterns", "path_hints"]


#: One line: an honest pattern takes microseconds.
_LINE_S_MAX = 1.0


class _PatternTooSlowError(Exception):
    """A search that was given up. No OSError, which the tool would take for an unreadable file and go on."""


@dataclass(frozen=True, slots=True)
class _Bounded:
    compiled: Any

    def search(self, line: str) -> Any:
        try:
            return self.compiled.search(line, timeout=_LINE_S_MAX, concurrent=True)
        except TimeoutError:
            raise _PatternTooSlowError(
                f"the pattern took more than {_LINE_S_MAX:.0f} s on one line; use a simpler one"
            ) from None


class _BoundedRe:
    """What the search tool uses of `re`."""

    IGNORECASE = re.IGNORECASE
    error = re.error

    @staticmethod
    def compile(pattern: str, flags: int = 0) -> _Bounded:
        """Compiles, and says what is wrong as `re` would."""
        try:
            return _Bounded(regex.compile(pattern, regex.IGNORECASE if flags & re.IGNORECASE else 0))
        except regex.error as error:
            raise re.error(str(error)) from None


def bound_patterns() -> None:
    """Has agentao's search tool search in bounded time. Idempotent."""
    vars(agentao.tools.search)["re"] = _BoundedRe


# The file names in a conversation, by which agentao recalls memories: found in bounded time.
#
# agentao looks for them with one pattern over the last ten messages, whole. On a long run of letters (base64, a hash, a
# minified file) that takes time with the square of its length and no other thread runs meanwhile: 1 MiB stopped the
# process for minutes, until the warden took it for dead.

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
