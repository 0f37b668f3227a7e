"""Writes a turn's one report from what was measured."""

from __future__ import annotations

import datetime
from typing import TYPE_CHECKING, Any

from agentao_gov.errors import StoreError
from agentao_gov.governor.classify import Verdict
from agentao_gov.governor.redact import redact
from agentao_gov.governor.report import BudgetLine, LimitLine, Timing, TurnReport
from agentao_gov.governor.requests import SessionSpec, TurnRequest
from agentao_gov.governor.turn import Turn

if TYPE_CHECKING:
    from agentao_gov.config import ResolvedProfile

__all__ = ["budget_lines", "limit_lines", "write_report"]

#: TOML key in `[limits]` and the attribute that holds it.
_LIMITS = (
    ("max_context_tokens", "max_context_tokens"),
    ("max_output_tokens", "max_output_tokens"),
    ("max_iterations", "max_iterations"),
    ("turn_timeout", "turn_timeout_s"),
    ("cancel_grace", "cancel_grace_s"),
    ("tool_timeout", "tool_timeout_s"),
    ("tool_timeouts", "tool_timeouts_s"),
    ("turn_tokens", "turn_tokens"),
    ("llm_retries", "llm_retries"),
)


def limit_lines(profile: ResolvedProfile) -> dict[str, LimitLine]:
    """Every limit with its value (seconds, tokens, counts) and where it came from."""
    sources = profile.sources
    default = f"profile {profile.profile.name}"
    limits: Any = profile.profile.limits
    return {
        key: LimitLine(value=getattr(limits, attribute), source=sources.get(f"limits.{key}", default))
        for key, attribute in _LIMITS
    }


def budget_lines(turn: Turn) -> tuple[BudgetLine, ...]:
    """The scopes' balances now; a store that cannot answer is a warning."""
    try:
        balances = turn.ledger.balances(turn.scopes)
    except StoreError as error:
        turn.warn(f"The budgets could not be read: {error}")
        return ()
    return tuple(
        BudgetLine(
            scope=balance.scope.kind,
            key=balance.scope.key,
            window=balance.window,
            timezone=balance.timezone,
            limit=balance.limit,
            used=balance.used,
            reserved=balance.reserved,
        )
        for balance in balances
    )


def write_report(
    turn: Turn,
    spec: SessionSpec,
    request: TurnRequest,
    verdict: Verdict,
    *,
    started_at: float,
    limits: dict[str, LimitLine],
    warnings: tuple[str, ...] = (),
) -> TurnReport:
    """The report. `started_at` is the wall clock's. The turn must be closed."""
    budget = budget_lines(turn)
    first_token_s, model_s, tools_s = turn.meter.times_s()
    queued_ms = request.queued_ms
    api_key = spec.model.api_key.get_secret_value()
    return TurnReport(
        turn_id=request.turn_id,
        id=request.id,
        tenant=spec.key.tenant,
        user=request.user,
        session=spec.key.session,
        profile=spec.profile.profile.name,
        mode=spec.mode,
        model=spec.model.name,
        outcome=verdict.outcome,
        answer=verdict.answer,
        detail=redact(verdict.detail, api_key) if verdict.detail else None,
        exit_code=verdict.outcome.exit_code,
        started_at=datetime.datetime.fromtimestamp(started_at, datetime.UTC),
        timing_ms=Timing(
            total=queued_ms + round(turn.elapsed_s() * 1000),
            queued=queued_ms,
            first_token=None if first_token_s is None else round(first_token_s * 1000),
            model=round(model_s * 1000),
            tools=round(tools_s * 1000),
        ),
        usage=turn.meter.usage(),
        iterations=turn.meter.iterations,
        tool_calls=turn.meter.tool_calls(),
        limits=limits,
        budget=budget,
        warnings=tuple(redact(text, api_key) for text in (*warnings, *turn.warnings)),
    )
