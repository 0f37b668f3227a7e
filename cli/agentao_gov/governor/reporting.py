"""Writes a turn's one report: from what was measured, or, where no agent ran, from what is known of it."""

from __future__ import annotations

import datetime
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from agentao_gov.budget.types import Ledger, ScopeLimit
from agentao_gov.errors import StoreError
from agentao_gov.governor.classify import TurnResult
from agentao_gov.governor.report import BudgetLine, LimitLine, Reason, Timing, ToolCall, TurnReport, Usage, redact
from agentao_gov.governor.turn import Turn, TurnLabels
from agentao_gov.governor.types import SessionSpec, TurnRequest

if TYPE_CHECKING:
    from agentao_gov.config import ResolvedProfile

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


def budget_lines(ledger: Ledger, scopes: Sequence[ScopeLimit]) -> tuple[tuple[BudgetLine, ...], tuple[Reason, ...]]:
    """The scopes' balances now; a store that cannot answer is a warning instead."""
    try:
        balances = ledger.balances(tuple(scopes))
    except StoreError as error:
        return (), (Reason.of(error).after("The budgets could not be read: "),)
    return tuple(map(BudgetLine.of, balances)), ()


def compose_report(
    labels: TurnLabels,
    result: TurnResult,
    *,
    id: str | int | None,
    started_at: float,
    timing: Timing,
    limits: dict[str, LimitLine],
    usage: Usage | None = None,
    iterations: int = 0,
    tool_calls: tuple[ToolCall, ...] = (),
    budget: tuple[BudgetLine, ...] = (),
    warnings: Iterable[Reason] = (),
    secret: str = "",
) -> TurnReport:
    """The report from its parts. `started_at` is the wall clock's; `secret` is taken out of every sentence."""
    detail, said = result.detail, tuple(warnings)
    private = any(reason.private for reason in said)
    return TurnReport(
        turn_id=labels.turn_id,
        id=id,
        tenant=labels.key.tenant,
        user=labels.user,
        session=labels.key.session,
        profile=labels.profile,
        mode=labels.mode,
        model=labels.model,
        outcome=result.outcome,
        answer=result.answer,
        detail=redact(detail.public, secret) if detail is not None else None,
        operator_detail=redact(detail.private, secret) if detail is not None and detail.private else None,
        exit_code=result.outcome.exit_code,
        started_at=datetime.datetime.fromtimestamp(started_at, datetime.UTC),
        timing_ms=timing,
        usage=usage if usage is not None else Usage(),
        iterations=iterations,
        tool_calls=tool_calls,
        limits=limits,
        budget=budget,
        warnings=tuple(redact(reason.public, secret) for reason in said),
        operator_warnings=tuple(redact(reason.operator, secret) for reason in said) if private else (),
    )


def write_report(
    turn: Turn,
    spec: SessionSpec,
    request: TurnRequest,
    result: TurnResult,
    *,
    started_at: float,
    limits: dict[str, LimitLine],
    warnings: tuple[Reason, ...] = (),
) -> TurnReport:
    """The report of a turn that an agent ran. The turn must be closed."""
    budget, unread = budget_lines(turn.ledger, turn.scopes)
    first_token_s, model_s, tools_s = turn.meter.times_s()
    timing = Timing(
        total=request.queued_ms + round(turn.elapsed_s() * 1000),
        queued=request.queued_ms,
        first_token=None if first_token_s is None else round(first_token_s * 1000),
        model=round(model_s * 1000),
        tools=round(tools_s * 1000),
    )
    return compose_report(
        turn.labels,
        result,
        id=request.id,
        started_at=started_at,
        timing=timing,
        limits=limits,
        usage=turn.meter.usage(),
        iterations=turn.meter.iterations,
        tool_calls=turn.meter.tool_calls(),
        budget=budget,
        warnings=(*warnings, *turn.warnings, *unread),
        secret=spec.model.api_key.get_secret_value(),
    )
