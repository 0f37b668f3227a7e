"""What clients are turned away with, in the log: bounded, because who is turned away may ask again without a key."""

from __future__ import annotations

import logging
from dataclasses import dataclass

from agentao_gov.clock import SYSTEM_CLOCK, Clock
from agentao_gov.errors import GovError
from agentao_gov.monitor.logs import log_event, log_refusal

__all__ = ["RefusalLog"]

#: Records a minute and error code: an operator sees what goes on, a flood neither fills the disk nor the service's
#: time. How many there are in all is the metrics' to say.
RECORDS_MAX, PERIOD_S = 60, 60.0


@dataclass(slots=True)
class _Period:
    since: float
    count: int = 0


class RefusalLog:
    """Logs refusals up to a limit, and once its minute is over how many more there were. For one thread."""

    def __init__(self, clock: Clock = SYSTEM_CLOCK) -> None:
        self._clock = clock
        #: By error code: there are some thirty.
        self._periods: dict[str, _Period] = {}

    def tell(self, error: GovError) -> None:
        """One refusal."""
        now = self._clock.monotonic()
        period = self._periods.setdefault(error.code, _Period(now))
        if now - period.since >= PERIOD_S:
            if period.count > RECORDS_MAX:
                log_event("refusals not logged", logging.WARNING, code=error.code, count=period.count - RECORDS_MAX)
            period.since, period.count = now, 0
        period.count += 1
        if period.count <= RECORDS_MAX:
            log_refusal(error)
