"""Reports of turns that no agent could report: cancelled while they waited, or abandoned by their host."""

from __future__ import annotations

from datetime import UTC, datetime

from agentao_gov.clock import Clock
from agentao_gov.governor.outcome import Outcome
from agentao_gov.governor.report import LimitLine, Timing, TurnReport, Usage
from agentao_gov.pool.tickets import Ticket

__all__ = ["report_without_agent"]


def report_without_agent(ticket: Ticket, outcome: Outcome, detail: str, clock: Clock) -> TurnReport:
    """The one report of a turn, from what the pool knows of it: no usage, no answer."""
    order = ticket.order
    total_ms = round((clock.monotonic() - ticket.submitted_at) * 1000)
    limits = order.profile.profile.limits
    return TurnReport(
        turn_id=order.turn_id,
        id=order.id,
        tenant=order.key.tenant,
        user=order.user,
        session=order.key.session,
        profile=order.profile.profile.name,
        mode=order.mode,
        model=order.model.name,
        outcome=outcome,
        answer=None,
        detail=detail,
        exit_code=outcome.exit_code,
        started_at=datetime.fromtimestamp(clock.time() - total_ms / 1000, UTC),
        timing_ms=Timing(total=total_ms, queued=round(ticket.waited_s * 1000) or total_ms),
        usage=Usage(),
        limits={
            "turn_timeout": LimitLine(value=limits.turn_timeout_s, source=order.profile.source("limits.turn_timeout"))
        },
    )
