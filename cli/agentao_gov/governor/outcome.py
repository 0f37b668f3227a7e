"""Why a turn ended: a closed list, and the exit code and HTTP status each outcome maps to."""

from __future__ import annotations

from enum import StrEnum
from typing import Literal

__all__ = ["Mode", "Outcome", "ToolOutcome"]

Mode = Literal["fresh", "in-process", "subprocess"]
ToolOutcome = Literal["ok", "error", "timeout", "denied", "cancelled"]


class Outcome(StrEnum):
    """Why a turn ended (`contract.md`, "TurnReport")."""

    ANSWERED = "answered"
    TURN_TIMEOUT = "turn_timeout"
    MAX_ITERATIONS = "max_iterations"
    BUDGET_EXHAUSTED = "budget_exhausted"
    BUDGET_IMPOSSIBLE = "budget_impossible"
    CANCELLED = "cancelled"
    REPEAT_GUARD = "repeat_guard"
    MODEL_ERROR = "model_error"
    INCOMPLETE = "incomplete"
    REFUSED = "refused"
    SHUTDOWN = "shutdown"
    STORE_UNAVAILABLE = "store_unavailable"
    STUCK = "stuck"
    INTERNAL_ERROR = "internal_error"

    @property
    def exit_code(self) -> int:
        """What the command line ends with."""
        return _EXIT_CODES[self]

    @property
    def http_status(self) -> int:
        """The status of an answer without text; an outcome that carries an answer is a 200."""
        return _HTTP[self][0]

    @property
    def error_code(self) -> str:
        """The `code` of the HTTP error body."""
        return _HTTP[self][1]


_EXIT_CODES = {
    Outcome.ANSWERED: 0,
    Outcome.MODEL_ERROR: 4,
    Outcome.INCOMPLETE: 4,
    Outcome.TURN_TIMEOUT: 5,
    Outcome.STUCK: 5,
    Outcome.BUDGET_EXHAUSTED: 6,
    Outcome.BUDGET_IMPOSSIBLE: 6,
    Outcome.MAX_ITERATIONS: 7,
    Outcome.REPEAT_GUARD: 7,
    Outcome.REFUSED: 8,
    Outcome.SHUTDOWN: 8,
    Outcome.STORE_UNAVAILABLE: 9,
    Outcome.INTERNAL_ERROR: 10,
    Outcome.CANCELLED: 130,
}

_HTTP = {
    Outcome.ANSWERED: (200, "answered"),
    Outcome.MAX_ITERATIONS: (422, "max_iterations"),
    Outcome.REPEAT_GUARD: (422, "repeat_guard"),
    Outcome.INCOMPLETE: (502, "incomplete"),
    Outcome.MODEL_ERROR: (502, "model_error"),
    Outcome.TURN_TIMEOUT: (504, "turn_timeout"),
    Outcome.BUDGET_EXHAUSTED: (429, "budget_exhausted"),
    Outcome.BUDGET_IMPOSSIBLE: (400, "budget_impossible"),
    Outcome.CANCELLED: (409, "cancelled"),
    Outcome.REFUSED: (429, "queue_full"),
    Outcome.SHUTDOWN: (503, "draining"),
    Outcome.STORE_UNAVAILABLE: (503, "ledger_unavailable"),
    Outcome.STUCK: (500, "stuck"),
    Outcome.INTERNAL_ERROR: (500, "internal_error"),
}
