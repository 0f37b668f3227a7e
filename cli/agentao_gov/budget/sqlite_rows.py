"""Rows of a ledger file as the pure core's values, and the requests of waiting calls as text."""

from __future__ import annotations

import json
from typing import Any, cast

from agentao_gov.budget.book import Line
from agentao_gov.budget.states import Holding, Price
from agentao_gov.budget.types import ReservationState, ReserveRequest, Scope, ScopeKind, ScopeLimit

__all__ = [
    "CALL_COLUMNS",
    "LINE_COLUMNS",
    "THOUSANDTHS",
    "decode_request",
    "encode_request",
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


def encode_request(request: ReserveRequest) -> str:
    """A waiting call as text, for any process to serve."""
    scopes = [[s.scope.kind, s.scope.key, s.limit, s.timezone] for s in request.scopes]
    return json.dumps(
        [
            request.id,
            scopes,
            request.prompt_tokens,
            request.output_tokens_min,
            request.output_tokens_max,
            request.tenant,
            request.user,
            request.model,
        ]
    )


def decode_request(text: str) -> ReserveRequest:
    """What `encode_request` wrote."""
    call_id, scopes, *rest = json.loads(text)
    limits = tuple(ScopeLimit(Scope(kind, key), limit, timezone) for kind, key, limit, timezone in scopes)
    return ReserveRequest(call_id, limits, *rest)
