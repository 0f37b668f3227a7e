"""The arithmetic of admission, over all small cases and at the edges."""

from __future__ import annotations

from itertools import product

import pytest

from agentao_gov.budget import reservation
from agentao_gov.budget.admission import Answer, Level, admit, extendable
from agentao_gov.budget.reservation import Holding, Price
from agentao_gov.budget.types import ReservationState

SMALL = range(5)


def test_a_grant_never_passes_a_limit_and_a_wait_is_never_hopeless() -> None:
    """Every combination of small figures in two scopes, against the definition itself."""
    for limit, used, reserved, prompt, least, extra in product(SMALL, SMALL, SMALL, SMALL, SMALL, SMALL):
        levels = [Level(limit, used, reserved), Level(4, 1, reserved), Level(None, 99, 99)]

        answer = admit(levels, prompt, least, least + extra)

        rooms = [(limit, used), (4, 1)]
        asked = prompt + least
        if all(spent + reserved + asked <= most for most, spent in rooms):
            expected = Answer.GRANTED
        elif all(spent + asked <= most for most, spent in rooms):
            expected = Answer.WAIT
        elif all(asked <= most for most, _ in rooms):
            expected = Answer.EXHAUSTED
        else:
            expected = Answer.IMPOSSIBLE
        assert answer.answer is expected
        if expected is Answer.GRANTED:
            room = min(most - spent - reserved for most, spent in rooms)
            assert answer.output_tokens == min(least + extra, room - prompt)
            assert answer.output_tokens >= least


def test_no_limit_at_all_grants_what_is_wanted() -> None:
    """Unlimited scopes never shrink an output."""
    assert admit([Level(None, 10, 10)], 5, 1, 7).output_tokens == 7


def test_the_scope_that_is_impossible_is_named_before_the_one_that_is_busy() -> None:
    """A wait for the first scope would end in a refusal by the second."""
    answer = admit([Level(100, 0, 95), Level(8, 0, 0)], 5, 5, 5)

    assert (answer.answer, answer.blocking) == (Answer.IMPOSSIBLE, (1,))


@pytest.mark.parametrize(("free", "wanted", "got"), [(10, 4, 4), (3, 4, 3), (0, 4, 0), (-2, 4, 0)])
def test_an_extension_gets_what_is_free(free: int, wanted: int, got: int) -> None:
    """Never less than nothing, also in a scope that is overdrawn."""
    assert extendable([Level(100, 100 - free, 0), Level(None, 0, 0)], wanted) == got


def test_every_end_of_a_call_leaves_nothing_held() -> None:
    """From each open state, each ending takes back exactly what was held."""
    for state, extended in product((ReservationState.RESERVED, ReservationState.DISPATCHED), (0, 7)):
        held = Holding(state, 30, 20 + extended, price=Price(2, 3))
        for posting in (reservation.settle(held, 9, 4, 1), reservation.charge(held, 30, 20), reservation.release(held)):
            assert posting is not None
            assert posting.reserved == -(50 + extended)


def test_an_ended_call_is_not_ended_again() -> None:
    """Only real usage moves a call that has ended, and only once."""
    settled = Holding(ReservationState.SETTLED, 30, 20, used=13)
    released = Holding(ReservationState.RELEASED, 30, 20)

    assert [reservation.settle(settled, 1, 1), reservation.charge(settled, 1, 1), reservation.release(settled)] == [
        None
    ] * 3
    assert [reservation.charge(released, 1, 1), reservation.release(released)] == [None] * 2


def test_a_correction_replaces_the_estimate_in_tokens_and_cost() -> None:
    """What was charged too much comes back, in both units."""
    charged = Holding(ReservationState.CHARGED_ESTIMATE, 30, 20, used=50, estimated=50, cost=120, price=Price(2, 3))

    posting = reservation.settle(charged, 10, 5)

    assert posting is not None
    assert (posting.used, posting.estimated, posting.cost, posting.reserved) == (-35, -50, 35 - 120, 0)


@pytest.mark.parametrize("usage", [(-1, 0, 0), (0, -1, 0), (1, 1, 3), (1, 1, -1)])
def test_usage_that_cannot_be_is_refused(usage: tuple[int, int, int]) -> None:
    """A negative or over-estimated usage is a bug of the caller, not a credit."""
    with pytest.raises(ValueError, match="usage"):
        reservation.settle(Holding(ReservationState.RESERVED, 1, 1), *usage)
