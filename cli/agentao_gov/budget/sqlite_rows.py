"""Rows of a ledger file as the pure core's values."""

from __future__ import annotations

from typing import Any, cast

from agentao_gov.budget.line import Line
from agentao_gov.budget.states import Holding, Price
from agentao_gov.budget.types import ReservationState, Scope, ScopeKind

__all__ = [
    "CALL_COLUMNS",
    "LINE_COLUMNS",
    "THOUSANDTHS",
    "holding_of",
    "line_of",
    "placeholders",
]

#: `warned` is kept in thousandths: integers only.
THOUSANDTHS = 1000

LINE_COLUMNS = (
    "id, kind, key, timezone, window, limit_tokens, granted, used, reserved, estimated, cost, unpriced, warned"
)
CALL_COLUMNS = (
    "lines, state, held_prompt, held_output, used, estimated, cost, unpriced, price_prompt, price_completion, owner"
)


def line_of(row: tuple[Any, ...]) -> Line:
    """A row of LINE_COLUMNS."""
    _, kind, key, timezone, window, limit, granted, used, reserved, estimated, cost, unpriced, warned = row
    name = (Scope(cast("ScopeKind", kind), key), timezone, window)
    return Line(name, limit, granted, used, reserved, estimated, cost, unpriced, warned / THOUSANDTHS)


def holding_of(row: tuple[Any, ...]) -> Holding:
    """A row of CALL_COLUMNS."""
    _, state, held_prompt, held_output, used, estimated, cost, unpriced, price_prompt, price_completion, _ = row
    price = None if price_prompt is None else Price(price_prompt, price_completion)
    return Holding(ReservationState(state), held_prompt, held_output, used, estimated, cost, unpriced, price)


def placeholders(count: int) -> str:
    """`?,?,?` for that many values."""
    return ",".join("?" * count)
