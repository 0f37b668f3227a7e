"""What a session process logs, in the service's own log: bounded, because its writer may be a tenant's tool."""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Mapping
from typing import Any

from agentao_gov.clock import Allowance, Clock
from agentao_gov.governor.types import SessionKey

__all__ = ["RelayedLog"]

_log = logging.getLogger(__name__)
#: A traceback is some thousand characters.
_CHARS_MAX = 8_000
#: Records a minute: one failing turn after the other stays readable, a flood does not fill the disk.
_RECORDS_MAX, _PERIOD_S = 60, 60.0
#: What steers a terminal or begins a line for some reader: everything of that kind but tab and line feed.
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


def _somebody_logs() -> bool:
    """Whether a service's log is set up; a command at a terminal has none."""
    logger: logging.Logger | None = _log
    while logger is not None:
        if any(not isinstance(handler, logging.NullHandler) for handler in logger.handlers):
            return True
        logger = logger.parent
    return False


def _harmless(text: str) -> str:
    return _CONTROL.sub("\N{REPLACEMENT CHARACTER}", text.replace("\r\n", "\n"))


class RelayedLog:
    """Passes on warnings and errors of one session's process. Thread-safe."""

    def __init__(self, key: SessionKey, clock: Clock) -> None:
        self._key = key
        self._allowance = Allowance(_RECORDS_MAX, _PERIOD_S, clock)

    def error_output(self, text: str) -> None:
        """What the process and its servers wrote to their standard error. Where nobody logs, it goes to our own."""
        if _somebody_logs():
            if text.strip():
                self.handle({"level": logging.WARNING, "text": text.strip("\n")})
            return
        dropped, allowed = self._allowance.admit()
        if dropped:
            sys.stderr.write(f"In the process of session {self._key}: {dropped} pieces more were not shown\n")
        if allowed:
            sys.stderr.write(_harmless(text))
            sys.stderr.flush()

    def handle(self, params: Mapping[str, Any]) -> None:
        """One record off the wire. Raises KeyError, TypeError or ValueError for what is none."""
        level = max(logging.WARNING, min(logging.ERROR, int(params["level"])))
        # Lines after the first are set off: none can pass for a record of the service itself.
        text = _harmless(str(params["text"])[:_CHARS_MAX]).replace("\n", "\n    ")
        dropped, allowed = self._allowance.admit()
        if dropped:
            _log.warning("In the process of session %s: %d records more were not logged", self._key, dropped)
        if allowed:
            _log.log(level, "In the process of session %s: %s", self._key, text)
