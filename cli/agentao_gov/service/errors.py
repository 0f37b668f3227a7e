"""Turns errors and outcomes into OpenAI-shaped answers, with status, code and Retry-After from the table of endings."""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from typing import Any
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from starlette.responses import JSONResponse

from agentao_gov.endings import Ending, Retry
from agentao_gov.errors import BadRequestError, GovError
from agentao_gov.governor.report import BudgetLine, TurnReport


@dataclass(frozen=True, slots=True)
class Failure:
    """One error answer, before it is a response or the last event of a stream."""

    ending: Ending
    message: str
    #: The field of the request that is wrong.
    param: str | None = None
    retry_after_s: float | None = None
    #: Of the turn, where one ran.
    report: TurnReport | None = None

    @property
    def _may_retry(self) -> bool:
        # Whoever repeats a turn that had begun pays for it twice, or undoes somebody's cancel.
        begun = self.report is not None and self.report.usage.llm_calls > 0
        return self.ending.may_retry and not begun

    def body(self) -> dict[str, Any]:
        """OpenAI's shape, with the TurnReport beside it where a turn ran."""
        ending = self.ending
        body: dict[str, Any] = {
            "error": {"message": self.message, "type": ending.http_type, "code": ending.code, "param": self.param}
        }
        if self.report is not None:
            body["agentao_gov"] = self.report.model_dump(mode="json", by_alias=True)
        return body

    def response(self) -> JSONResponse:
        """The whole HTTP answer."""
        headers: dict[str, str] = {}
        if self.retry_after_s is not None:
            headers["Retry-After"] = str(max(1, math.ceil(self.retry_after_s)))
        if not self._may_retry:
            # OpenAI's SDKs repeat what they get 409, 429 or 5xx for, after any Retry-After however long.
            headers["x-should-retry"] = "false"
        if self.ending.http_status == 401:
            headers["WWW-Authenticate"] = "Bearer"
        return JSONResponse(self.body(), status_code=self.ending.http_status, headers=headers)


def failure_of_error(error: GovError) -> Failure:
    """The answer to a refusal or fault that was raised: what a tenant may read of it."""
    retry_after_s = error.retry_after_s
    if retry_after_s is None and error.ending.may_retry:
        retry_after_s = error.ending.retry.value
    return Failure(
        error.ending,
        error.public_message,
        param=error.param if isinstance(error, BadRequestError) else None,
        retry_after_s=retry_after_s,
    )


def failure_of_report(report: TurnReport, now: datetime | None = None) -> Failure:
    """The answer to a turn that ended without text.

    `now`: when it is told, for the time that is left of a budget's window; None is this moment.
    """
    ending = report.outcome.ending
    message = ending.sentence
    if report.detail:
        # Some details are the whole sentence again, with more in it.
        again = report.detail.startswith(message.removesuffix("."))
        message = report.detail if again else f"{message} {report.detail}"
    retry_after_s = ending.retry.value if ending.may_retry else None
    if ending.retry is Retry.WINDOW:
        retry_after_s = _window_end_s(report.budget, now or datetime.now(UTC))
    return Failure(ending, message, retry_after_s=retry_after_s, report=report)


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
