"""Structured logs: a JSON object a line when not on a terminal, plain lines on one. Ids and figures, never content."""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime
from typing import Any, TextIO

from agentao_gov.clock import SYSTEM_CLOCK, Allowance, Clock
from agentao_gov.errors import CapacityError, GovError
from agentao_gov.pool.events import (
    EndedByShutdown,
    LeaseLeaked,
    PoolEvent,
    RungEntered,
    SessionClosed,
    SessionOpened,
    SessionOpenFailed,
    SessionStuck,
    TurnEnded,
    TurnRefused,
)

LOGGER = logging.getLogger("agentao_gov.service")
_FIELDS = "gov_fields"
#: Refusals logged a minute and error code: an operator sees what goes on, a flood neither fills the disk nor the
#: service's time. How many there are in all is the metrics' to say.
RECORDS_MAX, PERIOD_S = 60, 60.0


def log_event(event: str, level: int = logging.INFO, **fields: Any) -> None:
    """One line: `event` says what happened, `fields` are ids and figures. Never put a prompt or an answer in one."""
    if LOGGER.isEnabledFor(level):
        kept = {key: value for key, value in fields.items() if value is not None}
        LOGGER.log(level, event, extra={_FIELDS: kept})


def log_refusal(error: GovError, event: str = "request refused", **ids: str) -> None:
    """Logs `error` as the operator reads it, as `event` with the given ids; the client has the public message."""
    level = logging.ERROR if error.http_status >= 500 and not isinstance(error, CapacityError) else logging.WARNING
    log_event(event, level, **ids, code=error.code, reason=str(error))


class JsonFormatter(logging.Formatter):
    """`{"time","level","event",...fields}` on one line."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "event": record.getMessage(),
        }
        line.update(getattr(record, _FIELDS, {}))
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=True, default=str)


class PlainFormatter(logging.Formatter):
    """`08:00:00 info  event key=value`, for a person; control characters from ids are escaped."""

    def format(self, record: logging.LogRecord) -> str:
        clock = datetime.fromtimestamp(record.created).astimezone().strftime("%H:%M:%S")
        fields = "".join(
            f" {key}={json.dumps(value, default=str) if isinstance(value, str) and not value.isalnum() else value}"
            for key, value in getattr(record, _FIELDS, {}).items()
        )
        line = f"{clock} {record.levelname.lower():<7} {record.getMessage()}{fields}"
        if record.exc_info:
            line += "\n" + self.formatException(record.exc_info)
        return line


def configure_logging(stream: TextIO | None = None, *, level: int = logging.INFO) -> None:
    """Sends the product's and uvicorn's logs to `stream` (standard error), JSON unless it is a terminal."""
    stream = stream or sys.stderr
    handler = logging.StreamHandler(stream)
    handler.setFormatter(PlainFormatter() if stream.isatty() else JsonFormatter())
    for name in ("agentao_gov", "uvicorn"):
        logger = logging.getLogger(name)
        logger.handlers = [handler]
        logger.propagate = False
        logger.setLevel(level)
    # One line a request says nothing that the turn's own line does not, and it would carry paths with session ids.
    logging.getLogger("uvicorn.access").disabled = True


def log_pool_event(event: PoolEvent) -> None:
    """A pool observer: tells the log."""
    if isinstance(event, TurnEnded):
        r = event.report
        log_event(
            "turn ended", tenant=r.tenant, session=r.session, turn_id=r.turn_id, profile=r.profile,
            outcome=r.outcome.value, total_ms=r.timing_ms.total, queued_ms=r.timing_ms.queued,
            tokens=r.usage.total_tokens, llm_calls=r.usage.llm_calls, reason=r.operator_detail,
            warnings=list(r.operator_warnings) or None,
        )  # fmt: skip
    elif isinstance(event, TurnRefused):
        log_refusal(event.error, "turn refused", tenant=event.key.tenant, session=event.key.session,
                    turn_id=event.turn_id)  # fmt: skip
    elif isinstance(event, SessionOpened):
        log_event(
            "session opened", logging.DEBUG, tenant=event.key.tenant, session=event.key.session,
            ms=round(event.duration_s * 1000, 1), rehydrated=event.rehydrated,
        )  # fmt: skip
    else:
        _log_trouble(event)


def _log_trouble(event: PoolEvent) -> None:
    if isinstance(event, SessionClosed):
        log_event(
            "session closed", logging.WARNING if event.error else logging.DEBUG, tenant=event.key.tenant,
            session=event.key.session, reason=str(event.reason), ms=round(event.duration_s * 1000, 1),
            error=event.error,
        )  # fmt: skip
    elif isinstance(event, SessionOpenFailed):
        log_event(
            "session could not be opened", logging.ERROR, tenant=event.key.tenant, session=event.key.session,
            code=event.code, detail=event.message,
        )  # fmt: skip
    elif isinstance(event, SessionStuck):
        log_event(
            "turn abandoned", logging.ERROR, tenant=event.key.tenant, session=event.key.session,
            turn_id=event.turn_id,
        )  # fmt: skip
    elif isinstance(event, LeaseLeaked):
        log_event(
            "lease came back late" if event.returned else "lease held too long", logging.ERROR,
            tenant=event.key.tenant, session=event.key.session, held_s=round(event.held_s, 1),
            borrower=event.borrower, worker=event.worker,
        )  # fmt: skip
    elif isinstance(event, RungEntered):
        log_event(
            "shutdown rung", logging.WARNING, rung=event.rung.label, seconds=event.seconds, busy=event.busy,
            waiting=event.waiting, resident=event.resident,
        )  # fmt: skip
    elif isinstance(event, EndedByShutdown):
        log_event("ended by shutdown", logging.WARNING, rung=event.rung.label, what=str(event.key))


class RefusalLog:
    """Logs refusals up to a limit, and once its minute is over how many more there were.

    Bounded, because who is turned away may ask again without a key.
    """

    def __init__(self, clock: Clock = SYSTEM_CLOCK) -> None:
        self._clock = clock
        #: By error code: there are some thirty.
        self._allowances: dict[str, Allowance] = {}

    def tell(self, error: GovError) -> None:
        """Logs one refusal, or counts it where its code has had its minute's share."""
        if (allowance := self._allowances.get(error.code)) is None:
            allowance = self._allowances.setdefault(error.code, Allowance(RECORDS_MAX, PERIOD_S, self._clock))
        dropped, allowed = allowance.admit()
        if dropped:
            log_event("refusals not logged", logging.WARNING, code=error.code, count=dropped)
        if allowed:
            log_refusal(error)
