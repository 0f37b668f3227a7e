"""What became of each tool call, put together from agentao's events and what the guard saw.

agentao tells when a call starts and ends, and `ok`, `error` or `cancelled`; only the guard knows that an error was a
time-out, and a call that was refused looks cancelled. The record travels in a context variable, because a call's start
event, its execution and its end event happen on one thread (and the guard copies the context to the tool's own).
"""

from __future__ import annotations

import contextvars
import threading
import time
from dataclasses import dataclass, field

from agentao_gov.governor.observe import ToolCallEnd
from agentao_gov.governor.outcome import ToolOutcome
from agentao_gov.governor.requests import ToolEvent
from agentao_gov.governor.turn import Turn

__all__ = ["ToolLog", "ToolRecord", "current_record", "mark_denied"]


@dataclass(slots=True)
class ToolRecord:
    """One call under way. Owned by the thread that executes it."""

    name: str
    started: float = field(default_factory=time.monotonic)
    #: Whether the guard let it run: a call that ends without was refused before.
    executed: bool = False
    #: What the guard knows better than agentao's status.
    outcome: ToolOutcome | None = None


_RECORD: contextvars.ContextVar[ToolRecord | None] = contextvars.ContextVar("agentao_gov_tool_record", default=None)


def current_record() -> ToolRecord | None:
    """The record of the call executing here."""
    return _RECORD.get()


def mark_denied() -> None:
    """The call executing here reached for what it must not."""
    record = _RECORD.get()
    if record is not None and record.outcome is None:
        record.outcome = "denied"


class ToolLog:
    """The calls of one turn. Thread-safe: a batch of reading tools runs in parallel."""

    def __init__(self, turn: Turn) -> None:
        self._turn = turn
        self._lock = threading.Lock()
        # Under `_lock`: calls that started and have not ended.
        self._open: dict[str, ToolRecord] = {}

    def started(self, call_id: str, name: str) -> None:
        """agentao begins a call, on this thread."""
        record = ToolRecord(name)
        with self._lock:
            self._open[call_id] = record
        _RECORD.set(record)

    def ended(self, call_id: str, status: str) -> None:
        """agentao is done with a call."""
        with self._lock:
            record = self._open.pop(call_id, None)
        if record is not None:
            self._write(record, self._outcome(record, status))

    def refused(self, name: str) -> None:
        """The model asked for a tool it does not have."""
        self._write(ToolRecord(name), "denied")

    def close(self) -> None:
        """The turn is over: what has not ended by now is recorded as cancelled."""
        with self._lock:
            left = list(self._open.values())
            self._open.clear()
        for record in left:
            self._write(record, record.outcome or "cancelled")

    def _outcome(self, record: ToolRecord, status: str) -> ToolOutcome:
        if record.outcome is not None:
            return record.outcome
        match status:
            case "ok":
                return "ok"
            case "cancelled":
                return "cancelled" if record.executed or self._turn.token.is_cancelled else "denied"
        return "error"

    def _write(self, record: ToolRecord, outcome: ToolOutcome) -> None:
        seconds = time.monotonic() - record.started
        self._turn.meter.tool(record.name, outcome, seconds)
        self._turn.emit(ToolEvent(record.name, outcome, round(seconds * 1000)))
        end = ToolCallEnd(record.name, outcome, seconds)
        self._turn.observers.tell(lambda observer: observer.tool_call(self._turn.labels, end))
