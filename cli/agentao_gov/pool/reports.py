"""Reports of turns that no agent could report: cancelled while they waited, abandoned by their host, or refused."""

from __future__ import annotations

from typing import TYPE_CHECKING

from agentao_gov.clock import SYSTEM_CLOCK, Clock
from agentao_gov.errors import (
    CapacityError,
    DrainingError,
    GovError,
    ModelError,
    SessionStuckError,
    StoreError,
    TurnTimeoutError,
)
from agentao_gov.governor.classify import Verdict
from agentao_gov.governor.report import Outcome, Reason, Timing, TurnReport
from agentao_gov.governor.reporting import compose_report, limit_lines
from agentao_gov.governor.turn import TurnLabels

if TYPE_CHECKING:
    from agentao_gov.pool.tickets import Ticket
    from agentao_gov.pool.types import TurnOrder

__all__ = ["refused_report", "report_without_agent"]

#: The first that fits counts: a draining pool is a capacity error too.
_REFUSALS: tuple[tuple[type[GovError], Outcome], ...] = (
    (DrainingError, Outcome.SHUTDOWN),
    (CapacityError, Outcome.REFUSED),
    (StoreError, Outcome.STORE_UNAVAILABLE),
    (ModelError, Outcome.MODEL_ERROR),
    (SessionStuckError, Outcome.STUCK),
    (TurnTimeoutError, Outcome.TURN_TIMEOUT),
)


def report_without_agent(ticket: Ticket, outcome: Outcome, detail: Reason, clock: Clock) -> TurnReport:
    """The one report of a turn, from what the pool knows of it: no usage, no answer."""
    total_ms = round((clock.monotonic() - ticket.submitted_at) * 1000)
    timing = Timing(total=total_ms, queued=round(ticket.waited_s * 1000) or total_ms)
    return _report(ticket.order, Verdict(outcome, detail=detail), clock.time() - total_ms / 1000, timing)


def refused_report(order: TurnOrder, error: GovError, clock: Clock = SYSTEM_CLOCK) -> TurnReport:
    """The report of a turn that was refused: a batch has one for every line."""
    outcome = next((found for kind, found in _REFUSALS if isinstance(error, kind)), Outcome.INTERNAL_ERROR)
    return _report(order, Verdict(outcome, detail=Reason.of(error)), clock.time(), Timing())


def _report(order: TurnOrder, verdict: Verdict, started_at: float, timing: Timing) -> TurnReport:
    labels = TurnLabels(order.key, order.user, order.profile.profile.name, order.mode, order.turn_id, order.model.name)
    return compose_report(
        labels,
        verdict,
        id=order.id,
        started_at=started_at,
        timing=timing,
        limits=limit_lines(order.profile),
        secret=order.model.api_key.get_secret_value(),
    )
