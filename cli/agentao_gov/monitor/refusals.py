"""What clients are turned away with, in the log: bounded, because who is turned away may ask again without a key."""

from __future__ import annotations

import logging

from agentao_gov.clock import SYSTEM_CLOCK, Allowance, Clock
from agentao_gov.errors import GovError
from agentao_gov.monitor.logs import log_event, log_refusal

__all__ = ["RefusalLog"]

#: Records a minute and error code: an operator sees what goes on, a flood neither fills the disk nor the service's
#: time. How many there are in all is the metrics' to say.
RECORDS_MAX, PERIOD_S = 60, 60.0


class RefusalLog:
    """Logs refusals up to a limit, and once its minute is over how many more there were."""

    def __init__(self, clock: Clock = SYSTEM_CLOCK) -> None:
        self._clock = clock
        #: By error code: there are some thirty.
        self._allowances: dict[str, Allowance] = {}

    def tell(self, error: GovError) -> None:
        """One refusal."""
        if (allowance := self._allowances.get(error.code)) is None:
            allowance = self._allowances.setdefault(error.code, Allowance(RECORDS_MAX, PERIOD_S, self._clock))
        dropped, allowed = allowance.admit()
        if dropped:
            log_event("refusals not logged", logging.WARNING, code=error.code, count=dropped)
        if allowed:
            log_refusal(error)
