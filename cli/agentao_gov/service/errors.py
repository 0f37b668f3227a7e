"""Turns errors and outcomes into OpenAI-shaped bodies with the contract's status, code and Retry-After."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time, timedelta
from typing import Any
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from starlette.responses import JSONResponse

from agentao_gov.errors import BadRequestError, GovError
from agentao_gov.governor.report import BudgetLine, Outcome, TurnReport

__all__ = ["Failure", "failure_of_error", "failure_of_report"]

#: OpenAI's `type` for each code; everything else is a `server_error`.
_TYPES = {
    "budget_exhausted": "insufficient_quota",
    "budget_impossible": "insufficient_quota",
    "queue_full": "rate_limit_error",
    "max_iterations": "invalid_request_error",
    "repeat_guard": "invalid_request_error",
    "cancelled": "invalid_request_error",
}
#: What a turn that was cancelled by the drain may wait for before it tries another instance.
_DRAINING_RETRY_S = 5.0

_MESSAGES = {
    Outcome.TURN_TIMEOUT: "The turn met its time limit before there was an answer.",
    Outcome.MAX_ITERATIONS: "The turn used all its iterations without an answer.",
    Outcome.BUDGET_EXHAUSTED: "A token budget is exhausted.",
    Outcome.BUDGET_IMPOSSIBLE: "The request is larger than a whole token budget; trying again will not help.",
    Outcome.CANCELLED: "The turn was cancelled.",
    Outcome.REPEAT_GUARD: "The agent repeated the same tool call and was stopped.",
    Outcome.MODEL_ERROR: "The model or its provider failed.",
    Outcome.INCOMPLETE: "The model's answer was empty or cut off.",
    Outcome.REFUSED: "There was no room for the turn.",
    Outcome.SHUTDOWN: "The service is shutting down and cancelled the turn.",
    Outcome.STORE_UNAVAILABLE: "The token ledger cannot be used, so no model call was made.",
    Outcome.STUCK: "The turn did not stop when it had to and was abandoned; the session is quarantined.",
    Outcome.INTERNAL_ERROR: "The turn failed inside the service.",
}


@dataclass(frozen=True, slots=True)
class Failure:
    """One error answer, before it is a response or the last event of a stream."""

    status: int
    code: str
    type: str
    message: str
    param: str | None = None
    retry_after_s: float | None = None
    report: TurnReport | None = None
    headers: dict[str, str] = field(default_factory=dict)

    def body(self) -> dict[str, Any]:
        """OpenAI's shape, with the TurnReport beside it where a turn ran."""
        body: dict[str, Any] = {
            "error": {"message": self.message, "type": self.type, "code": self.code, "param": self.param}
        }
        if self.report is not None:
            body["agentao_gov"] = self.report.model_dump(mode="json", by_alias=True)
        return body

    def response(self) -> JSONResponse:
        """The whole HTTP answer."""
        headers = dict(self.headers)
        if self.retry_after_s is not None:
            headers["Retry-After"] = str(max(1, math.ceil(self.retry_after_s)))
        if self.status == 401:
            headers["WWW-Authenticate"] = "Bearer"
        return JSONResponse(self.body(), status_code=self.status, headers=headers)


def failure_of_error(error: GovError) -> Failure:
    """The answer to a refusal or fault that was raised: what a tenant may read of it."""
    retry_after_s = error.retry_after_s
    if retry_after_s is None and error.http_status in (429, 503) and error.code != "budget_exhausted":
        retry_after_s = _DRAINING_RETRY_S if error.code == "draining" else 1.0
    return Failure(
        status=error.http_status,
        code=error.code,
        type=error.http_type,
        message=error.public_message,
        param=error.param if isinstance(error, BadRequestError) else None,
        retry_after_s=retry_after_s,
    )


def failure_of_report(report: TurnReport, now: datetime | None = None) -> Failure:
    """The answer to a turn that ended without text."""
    outcome = report.outcome
    code = outcome.error_code
    message = _MESSAGES.get(outcome, "The turn ended without an answer.")
    if report.detail:
        # Some details are the whole sentence again, with more in it.
        again = report.detail.startswith(message.removesuffix("."))
        message = report.detail if again else f"{message} {report.detail}"
    return Failure(
        status=outcome.http_status,
        code=code,
        type=_TYPES.get(code, "server_error"),
        message=message,
        retry_after_s=_retry_after_s(report, now or datetime.now(UTC)),
        report=report,
    )


def _retry_after_s(report: TurnReport, now: datetime) -> float | None:
    if report.outcome is Outcome.BUDGET_EXHAUSTED:
        return _window_end_s(report.budget, now)
    if report.outcome in (Outcome.REFUSED, Outcome.STORE_UNAVAILABLE):
        return 1.0
    return _DRAINING_RETRY_S if report.outcome is Outcome.SHUTDOWN else None


def _window_end_s(lines: tuple[BudgetLine, ...], now: datetime) -> float | None:
    """Seconds to the end of the tightest scope's window; None when the turn's own budget was the tightest."""
    limited = [(line.limit - line.used - line.reserved, line) for line in lines if line.limit is not None]
    if not limited:
        return None
    tightest = min(limited, key=lambda pair: pair[0])[1]
    if tightest.scope == "turn":
        return None
    try:
        zone = ZoneInfo(tightest.timezone)
        day = date.fromisoformat(tightest.window)
    except (ZoneInfoNotFoundError, ValueError):
        return None
    opens = datetime.combine(day + timedelta(days=1), time(), zone)
    return max(1.0, (opens.astimezone(UTC) - now).total_seconds())
