"""The life of a reservation: which step may follow which, and what each step posts to the balances."""

from __future__ import annotations

from typing import NamedTuple

from agentao_gov.budget.types import ReservationState

__all__ = ["OPEN_STATES", "Holding", "Posting", "Price", "charge", "check_usage", "release", "settle"]

#: States in which tokens are held.
OPEN_STATES = frozenset({ReservationState.RESERVED, ReservationState.DISPATCHED})


class Price(NamedTuple):
    """Trillionths of a US dollar per token, pinned when the call was reserved."""

    prompt: int
    completion: int


class Holding(NamedTuple):
    """What is known of one call: what it holds, and what was posted for it so far."""

    state: ReservationState
    held_prompt: int
    held_output: int
    used: int = 0
    estimated: int = 0
    cost: int = 0
    unpriced: int = 0
    price: Price | None = None

    @property
    def held(self) -> int:
        """Tokens that the balances count as reserved for this call."""
        return self.held_prompt + self.held_output if self.state in OPEN_STATES else 0


class Posting(NamedTuple):
    """One step: the new state, and what it adds to every balance of the call (negative takes away)."""

    state: ReservationState
    used: int = 0
    reserved: int = 0
    estimated: int = 0
    cost: int = 0
    unpriced: int = 0


def settle(holding: Holding, prompt: int, completion: int, estimated: int = 0) -> Posting | None:
    """Replaces what is held, or what was charged by estimate, by what was really used. None: settled before.

    Usage that arrives for a call already released (its owner was silent too long) is real all the same.
    """
    check_usage(prompt, completion, estimated)
    if holding.state is ReservationState.SETTLED:
        return None
    return _post(holding, ReservationState.SETTLED, prompt, completion, estimated)


def charge(holding: Holding, prompt: int, completion: int) -> Posting | None:
    """Charges an upper bound for a call whose usage never came. None: its end is known already."""
    check_usage(prompt, completion, 0)
    if holding.state not in OPEN_STATES:
        return None
    return _post(holding, ReservationState.CHARGED_ESTIMATE, prompt, completion, prompt + completion)


def release(holding: Holding) -> Posting | None:
    """Gives everything back. None: its end is known already."""
    if holding.state not in OPEN_STATES:
        return None
    return Posting(ReservationState.RELEASED, reserved=-holding.held)


def _post(holding: Holding, state: ReservationState, prompt: int, completion: int, estimated: int) -> Posting:
    used = prompt + completion
    price = holding.price
    cost = prompt * price.prompt + completion * price.completion if price else 0
    unpriced = 0 if price else used
    return Posting(
        state,
        used=used - holding.used,
        reserved=-holding.held,
        estimated=estimated - holding.estimated,
        cost=cost - holding.cost,
        unpriced=unpriced - holding.unpriced,
    )


def check_usage(prompt: int, completion: int, estimated: int) -> None:
    """Raises ValueError for usage that cannot be."""
    if prompt < 0 or completion < 0 or not 0 <= estimated <= prompt + completion:
        raise ValueError(f"usage cannot be {prompt} + {completion} tokens, {estimated} of them estimated")
