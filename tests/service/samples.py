"""TurnReports for tests of what is made from them."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from agentao_gov.endings import Outcome
from agentao_gov.governor.report import BudgetLine, Timing, TurnReport, Usage


def report(outcome: Outcome = Outcome.ANSWERED, *, answer: str | None = "four", **fields: Any) -> TurnReport:
    """A report that looks like a real one."""
    return TurnReport(
        turn_id="t1",
        tenant="acme",
        user="ann",
        session="s1",
        profile="qa",
        mode="in-process",
        model="simulated",
        outcome=outcome,
        answer=answer,
        exit_code=outcome.exit_code,
        started_at=datetime(2026, 11, 22, 8, tzinfo=UTC),
        timing_ms=Timing(total=812, first_token=240),
        usage=Usage(prompt_tokens=5230, completion_tokens=118, total_tokens=5348, llm_calls=2, estimated_tokens=7),
        **fields,
    )


def line(
    scope: str, key: str, *, limit: int | None, used: int, zone: str = "UTC", window: str = "2026-11-22"
) -> BudgetLine:
    """One line of a budget."""
    return BudgetLine.model_validate(
        {"scope": scope, "key": key, "window": window, "timezone": zone, "limit": limit, "used": used, "reserved": 0}
    )
