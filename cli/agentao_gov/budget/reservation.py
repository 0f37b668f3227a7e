"""The life of a reservation: which step may follow which, and what each step posts to the balances."""

from __future__ import annotations

from typing import NamedTuple

from agentao_gov.budget.types import ReservationState

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


class CallRecord(NamedTuple):
    """One reservation as a store keeps it: whose it is, which balances it posts to, and how far it is."""

    id: str
    owner: str
    #: References of its balances, in the order of its scopes.
    refs: tuple[str, ...]
    holding: Holding


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


def after(holding: Holding, posting: Posting, *, extends: bool = False) -> Holding:
    """The holding once a posting is done."""
    return Holding(
        posting.state,
        holding.held_prompt,
        holding.held_output + (posting.reserved if extends else 0),
        holding.used + posting.used,
        holding.estimated + posting.estimated,
        holding.cost + posting.cost,
        holding.unpriced + posting.unpriced,
        holding.price,
    )


def reserve_note(holding: Holding) -> str:
    """What the journal says of a new reservation beside its sum: prompt, output, prices."""
    price = f"{holding.price.prompt} {holding.price.completion}" if holding.price else "unpriced"
    return f"{holding.held_prompt} {holding.held_output} {price}"


def held_by_note(note: str) -> Holding:
    """The new reservation that `reserve_note` wrote down. Raises ValueError for anything else."""
    prompt, output, *prices = note.split(" ")
    price = Price(*map(int, prices)) if len(prices) == 2 else None
    return Holding(ReservationState.RESERVED, int(prompt), int(output), price=price)


def check_usage(prompt: int, completion: int, estimated: int) -> None:
    """Raises ValueError for usage that cannot be."""
    if prompt < 0 or completion < 0 or not 0 <= estimated <= prompt + completion:
        raise ValueError(f"usage cannot be {prompt} + {completion} tokens, {estimated} of them estimated")
