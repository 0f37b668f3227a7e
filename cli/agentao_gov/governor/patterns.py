"""The model's own patterns, searched in bounded time.

`search_file_content` compiles what the model sends. Python's `re` backtracks without end on patterns like `(a+)+$` and
no other thread runs meanwhile: one tool call stops every session of the process, and no time limit reaches it. `regex`
understands the same patterns, has a time limit, and lets others run while it searches.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import agentao.tools.search
import regex  # type: ignore[import-untyped]

__all__ = ["bound_patterns"]

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
