"""One step of one reservation: the journal entry that states it, and what is known once that is written."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from agentao_gov.budget.balance import Line
from agentao_gov.budget.journal import Entry, Kind
from agentao_gov.budget.memory import after, reserve_note
from agentao_gov.budget.reservation import Holding, Posting, Price
from agentao_gov.budget.sqlite_rows import StoredCall
from agentao_gov.budget.types import Reservation, ReservationState, ReserveRequest

__all__ = ["Step", "following", "granted", "reserving"]


class Step(NamedTuple):
    """What is written, and what it leaves behind: the reservation as it is then, and what each line gets."""

    entry: Entry
    call: StoredCall
    posting: Posting


def reserving(
    request: ReserveRequest, output: int, price: Price | None, lines: tuple[int, ...], owner: str, at_ms: int
) -> Step:
    """The first step: `output` tokens were granted beside the prompt."""
    held = Holding(ReservationState.RESERVED, request.prompt_tokens, output, price=price)
    reserved = request.prompt_tokens + output
    entry = Entry(
        at_ms, "reserve", request.id, owner, tuple(map(str, lines)), 0, reserved, 0, 0, 0, 0, reserve_note(held)
    )
    return Step(entry, StoredCall(lines, held, owner), Posting(ReservationState.RESERVED, 0, reserved))


def granted(request: ReserveRequest, output: int, lines: Iterable[Line]) -> Reservation:
    """The reservation as its owner sees it; `lines` in the order of its scopes."""
    return Reservation(request.id, request.prompt_tokens, output, tuple([line.key[2] for line in lines]))


def following(kind: Kind, call_id: str, call: StoredCall, posting: Posting, owner: str, at_ms: int) -> Step:
    """The next step of a reservation. `owner` is who takes it, not always who holds the tokens."""
    _, used, reserved, estimated, cost, unpriced = posting
    refs = tuple(map(str, call.lines))
    entry = Entry(at_ms, kind, call_id, owner, refs, used, reserved, estimated, 0, cost, unpriced)
    now = StoredCall(call.lines, after(call.holding, posting, extends=kind == "extend"), call.owner)
    return Step(entry, now, posting)
