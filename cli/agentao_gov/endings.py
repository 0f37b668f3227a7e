"""The one table of endings: what each outcome of a turn and each error means to scripts, clients and people.

Exit codes, HTTP statuses, error codes, Retry-After, the sentences of HTTP answers, the words of the terminal's panel
and the OpenAPI document all come from `ENDINGS` (`contract.md`, "Exit codes" and "HTTP service").
"""

from __future__ import annotations

from enum import Enum, StrEnum
from typing import NamedTuple


class Retry(Enum):
    """When asking again may help; the value is the `Retry-After` in seconds where the ending itself gives none."""

    #: Never by itself: a client's SDK must not repeat the request (`x-should-retry: false`).
    NEVER = None
    #: When a place or a store is free again.
    SOON = 1.0
    #: When another instance has taken over.
    ELSEWHERE = 5.0
    #: When the budget's window ends. Hours: nothing that an SDK should sleep through, so to an SDK it is NEVER.
    WINDOW = -1.0


class Ending(NamedTuple):
    """One row. A NamedTuple, because `--help` imports this module and `dataclasses` would cost it 10 ms."""

    #: The machine's word in JSON.
    code: str
    http_status: int
    #: OpenAI's `type` for it.
    http_type: str
    exit_code: int
    retry: Retry
    #: What it means, as an HTTP client reads it.
    sentence: str
    #: What a person at a terminal reads of a turn that ended so; empty where no turn does.
    words: str = ""
    #: What a tenant reads in place of an error's own message, which names the operator's files or providers.
    told: str | None = None

    @property
    def may_retry(self) -> bool:
        """Whether repeating the same request by itself makes sense, after the time of `retry`."""
        return self.retry in (Retry.SOON, Retry.ELSEWHERE)


_INVALID = "invalid_request_error"
_FORBIDDEN = "permission_error"
_QUOTA = "insufficient_quota"
_RATE = "rate_limit_error"
_SERVER = "server_error"

_NEVER, _SOON, _ELSEWHERE, _WINDOW = Retry.NEVER, Retry.SOON, Retry.ELSEWHERE, Retry.WINDOW

# fmt: off
_ROWS = (
    # Of a turn: each of these stands in a TurnReport.
    Ending("answered", 200, "", 0, _NEVER, "The turn was answered.", "answered"),
    Ending("max_iterations", 422, _INVALID, 7, _NEVER, "The turn used all its iterations without an answer.",
           "reached its iteration cap"),
    Ending("repeat_guard", 422, _INVALID, 7, _NEVER, "The agent repeated the same tool call and was stopped.",
           "stopped by the repeat guard"),
    Ending("incomplete", 502, _SERVER, 4, _NEVER, "The model's answer was empty or cut off.",
           "the answer is empty or cut off"),
    Ending("model_error", 502, _SERVER, 4, _NEVER, "The model or its provider failed.",
           "the model failed", told="The model or its provider failed."),
    Ending("turn_timeout", 504, _SERVER, 5, _NEVER, "The turn met its time limit before there was an answer.",
           "stopped at its time limit"),
    Ending("budget_exhausted", 429, _QUOTA, 6, _WINDOW, "A token budget is exhausted.",
           "stopped: a token budget is spent"),
    Ending("budget_impossible", 400, _QUOTA, 6, _NEVER,
           "The request is larger than a whole token budget; trying again will not help.",
           "not started: larger than a whole token budget"),
    Ending("cancelled", 409, _INVALID, 130, _NEVER, "The turn was cancelled.", "cancelled"),
    Ending("queue_full", 429, _RATE, 8, _SOON, "There was no room for the turn.", "refused: no capacity"),
    Ending("draining", 503, _SERVER, 8, _ELSEWHERE, "The service is shutting down and cancelled the turn.",
           "cancelled by the shutdown"),
    Ending("ledger_unavailable", 503, _SERVER, 9, _SOON,
           "The token ledger cannot be used, so no model call was made.",
           "not run: the ledger cannot be used", told="A store of the service cannot be used at the moment."),
    Ending("stuck", 500, _SERVER, 5, _NEVER,
           "The turn did not stop when it had to and was abandoned; the session is quarantined.",
           "abandoned: something in it never returned"),
    Ending("internal_error", 500, _SERVER, 10, _NEVER, "The turn failed inside the service.", "internal error",
           told="Something failed inside the service; its operator has the details."),
    # Of a request or a command that never became a turn.
    Ending("capacity", 429, _RATE, 8, _SOON, "There is no room at the moment."),
    Ending("tenant_session_limit", 429, _RATE, 8, _SOON, "Every session of the tenant is busy."),
    Ending("user_session_limit", 429, _RATE, 8, _SOON, "Every session of the user is busy."),
    Ending("queue_timeout", 429, _RATE, 8, _SOON, "The turn waited as long as it may without getting a place."),
    Ending("overloaded", 503, _SERVER, 8, _SOON, "The service has no room for the request at the moment."),
    Ending("invalid_request", 400, _INVALID, 2, _NEVER, "The request cannot be understood."),
    Ending("too_large", 413, _INVALID, 2, _NEVER, "The body or a message is over its limit."),
    Ending("method_not_allowed", 405, _INVALID, 2, _NEVER, "The path does not take this method."),
    Ending("invalid_api_key", 401, "authentication_error", 3, _NEVER, "No API key was sent, or one of no tenant."),
    Ending("forbidden_origin", 403, _FORBIDDEN, 3, _NEVER,
           "A page elsewhere asked a service that needs no key, or called it by a name of another machine."),
    Ending("profile_not_allowed", 403, _FORBIDDEN, 3, _NEVER, "The tenant may not use this profile."),
    Ending("not_found", 404, _INVALID, 2, _NEVER, "Nothing lives at this path."),
    Ending("session_not_found", 404, _INVALID, 2, _NEVER, "The tenant has no such session."),
    Ending("session_damaged", 500, _SERVER, 9, _NEVER,
           "What is kept of the session cannot be read; delete it or start another.",
           told="What is kept of the session cannot be read: delete the session, or start another."),
    Ending("usage", 400, _INVALID, 2, _NEVER, "Flags or arguments make no sense together."),
    Ending("invalid_configuration", 500, _SERVER, 3, _NEVER, "The configuration is wrong.",
           told="The service's configuration is wrong; its operator has the details."),
    Ending("service_start_failed", 500, _SERVER, 1, _NEVER, "The service under test did not start."),
)
# fmt: on

#: Every ending by its code. A head that is too large has the code of a body that is, and a status of its own.
ENDINGS = {row.code: row for row in _ROWS} | {
    "head_too_large": Ending(
        "too_large", 431, _INVALID, 2, _NEVER, "The request's path and headers are over their limit."
    )
}


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
    def ending(self) -> Ending:
        """The outcome's row of the table."""
        return ENDINGS[_CODES.get(self, self.value)]

    @property
    def exit_code(self) -> int:
        """What the command line ends with."""
        return self.ending.exit_code

    @property
    def http_status(self) -> int:
        """The status of an answer without text; an outcome that carries an answer is a 200."""
        return self.ending.http_status

    @property
    def error_code(self) -> str:
        """The `code` of the HTTP error body."""
        return self.ending.code


#: Outcomes that HTTP calls by the code of the error that says the same.
_CODES = {
    Outcome.REFUSED: "queue_full",
    Outcome.SHUTDOWN: "draining",
    Outcome.STORE_UNAVAILABLE: "ledger_unavailable",
}
