"""Rows of a ledger file as the pure core's values."""

from __future__ import annotations

from typing import Any, NamedTuple, cast

from agentao_gov.budget.balance import Line
from agentao_gov.budget.reservation import Holding, Price
from agentao_gov.budget.types import ReservationState, Scope, ScopeKind
from agentao_gov.errors import StoreError

__all__ = [
    "CALL_COLUMNS",
    "LINE_COLUMNS",
    "THOUSANDTHS",
    "StoredCall",
    "call_of",
    "holding_of",
    "limit_of_note",
    "line_of",
    "placeholders",
    "row_of_call",
    "row_of_line",
]

#: `warned` is kept in thousandths: integers only.
THOUSANDTHS = 1000

LINE_COLUMNS = (
    "id, kind, key, timezone, window, limit_tokens, granted, used, reserved, estimated, cost, unpriced, warned"
)
CALL_COLUMNS = (
    "lines, state, held_prompt, held_output, used, estimated, cost, unpriced, price_prompt, price_completion, owner"
)

#: Plain strings: the database adapter takes 4 µs to find out that a StrEnum is one.
_TEXT = {state: str(state) for state in ReservationState}


class StoredCall(NamedTuple):
    """A reservation: the lines it posts to in the order of its scopes, what it holds, and whose it is."""

    lines: tuple[int, ...]
    holding: Holding
    owner: str


def line_of(row: tuple[Any, ...]) -> Line:
    """A row of LINE_COLUMNS. Raises StoreError for one that cannot be read."""
    _, kind, key, timezone, window, limit, granted, used, reserved, estimated, cost, unpriced, warned = row
    name = (Scope(cast("ScopeKind", kind), key), timezone, window)
    try:
        return Line(name, limit, granted, used, reserved, estimated, cost, unpriced, warned / THOUSANDTHS)
    except TypeError as error:
        raise _unreadable(f"Line {row[0]}", error) from error


def row_of_line(line: Line) -> tuple[Any, ...]:
    """What of a line changes: the columns from `limit_tokens` on."""
    warned = round(line.warned * THOUSANDTHS)
    amounts = (line.granted, line.used, line.reserved, line.estimated, line.cost, line.unpriced)
    return (line.limit, *amounts, warned)


def holding_of(row: tuple[Any, ...]) -> Holding:
    """A row of CALL_COLUMNS."""
    _, state, held_prompt, held_output, used, estimated, cost, unpriced, price_prompt, price_completion, _ = row
    price = None if price_prompt is None else Price(price_prompt, price_completion)
    return Holding(ReservationState(state), held_prompt, held_output, used, estimated, cost, unpriced, price)


def call_of(row: tuple[Any, ...]) -> StoredCall:
    """A row of CALL_COLUMNS with the lines and the owner. Raises StoreError for one that cannot be read."""
    try:
        return StoredCall(tuple(map(int, row[0].split(","))), holding_of(row), row[-1])
    except (ValueError, TypeError, AttributeError) as error:
        raise _unreadable("A reservation", error) from error


def _unreadable(what: str, error: Exception) -> StoreError:
    return StoreError(
        f"{what} of the token ledger cannot be read: {str(error).rstrip('.')}.",
        hint="Run `agentao-gov budget verify`, and put a sound copy back.",
    )


def row_of_call(call_id: str, call: StoredCall) -> tuple[Any, ...]:
    """`id` and CALL_COLUMNS."""
    held = call.holding
    return (
        call_id,
        ",".join(map(str, call.lines)),
        _TEXT[held.state],
        held.held_prompt,
        held.held_output,
        held.used,
        held.estimated,
        held.cost,
        held.unpriced,
        *(held.price or (None, None)),
        call.owner,
    )


def limit_of_note(note: str) -> int | None:
    """The limit that a journal entry states."""
    return None if note == "None" else int(note)


def placeholders(count: int) -> str:
    """`?,?,?` for that many values."""
    return ",".join("?" * count)
