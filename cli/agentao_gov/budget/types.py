"""The ledger's vocabulary: scopes, limits, reservations, balances. Integers only; tokens unless said."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Literal, Protocol

from agentao_gov.endings import ENDINGS
from agentao_gov.errors import GovError, StoreError

if TYPE_CHECKING:
    import threading
    from collections.abc import Sequence

    from agentao_gov.clock import Deadline

#: The largest limit or grant that makes a difference. Sums of them stay exact in every store: Lua counts to 2^53.
LIMIT_TOKENS_MAX = 10**15
#: No model's call comes near; a provider that reports more has a fault, which must not break the ledger's sums.
CALL_TOKENS_MAX = 10**9

ScopeKind = Literal["tenant", "user", "session", "turn"]


@dataclass(frozen=True, slots=True, order=True)
class Scope:
    """What a budget applies to. Keys: `acme`, `acme/ann`, `acme/s-1`, and for a turn its id."""

    kind: ScopeKind
    key: str

    def __str__(self) -> str:
        return f"{self.kind}:{self.key}"


@dataclass(frozen=True, slots=True)
class ScopeLimit:
    """One scope with its limit per window. `limit` None: unlimited, still recorded."""

    scope: Scope
    limit: int | None
    #: IANA zone whose calendar date is the window; the turn scope has the one window `turn`.
    timezone: str = "UTC"


class ReservationState(StrEnum):
    """`reserved → dispatched → settled | released | charged_estimate`."""

    RESERVED = "reserved"
    DISPATCHED = "dispatched"
    SETTLED = "settled"
    RELEASED = "released"
    CHARGED_ESTIMATE = "charged_estimate"


@dataclass(frozen=True, slots=True)
class ReserveRequest:
    """One LLM call that wants to be sent."""

    #: Unique; the same id twice returns the same reservation.
    id: str
    #: tenant, user, session, turn: always in this order.
    scopes: tuple[ScopeLimit, ...]
    #: Upper bound of the prompt.
    prompt_tokens: int
    #: What is wanted for output: the call is refused or waits below `min`, and gets up to `max`.
    output_tokens_min: int
    output_tokens_max: int
    #: Fairness: FIFO within a user, round-robin between users and between tenants.
    tenant: str
    user: str
    #: Names the row of the price table; a model without one is counted as unpriced, never as free.
    model: str = ""


@dataclass(frozen=True, slots=True)
class Reservation:
    """Tokens held for one LLM call. `output_tokens` is the grant: the `max_tokens` to send."""

    id: str
    prompt_tokens: int
    output_tokens: int
    #: Window of each scope, pinned when the call was reserved, in the order of the scopes.
    windows: tuple[str, ...]
    state: ReservationState = ReservationState.RESERVED

    @property
    def total_tokens(self) -> int:
        """What is held in every scope."""
        return self.prompt_tokens + self.output_tokens


@dataclass(frozen=True, slots=True)
class Balance:
    """One scope in one window."""

    scope: Scope
    window: str
    timezone: str
    #: None: unlimited. Grants of this window are included.
    limit: int | None
    used: int
    reserved: int
    #: The part of `used` that no provider reported.
    estimated: int = 0
    #: What was granted for this window alone; `limit` includes it.
    granted: int = 0
    #: Cost of the priced part, in trillionths of a US dollar: integers, as with tokens.
    cost_pico_usd: int = 0
    #: The part of `used` whose model has no price: its cost is unknown, not zero.
    unpriced: int = 0


class Ledger(Protocol):
    """The record of every token reserved and spent. Thread-safe; every method may raise StoreError."""

    def reserve(
        self, request: ReserveRequest, *, deadline: Deadline, cancelled: threading.Event | None = None
    ) -> Reservation:
        """Holds tokens in all scopes in one atomic step, waiting fairly while others may still give tokens back.

        `request`: the call, its scopes and how many tokens. `deadline`: until when it waits. `cancelled`: an event
        that, once set, ends the wait with CancelledWait. Raises BudgetExhaustedError when nothing can come back in this
        window, BudgetImpossibleError when the request is larger than a limit, TurnTimeoutError at the deadline,
        StoreError when the store cannot answer.
        """
        ...

    def dispatch(self, reservation_id: str) -> None:
        """Journals that the call `reservation_id` is being sent: from here on unknown usage is charged, not given back.

        Raises ReservationLostError when the call must not be sent.
        """
        ...

    def extend(self, reservation_id: str, output_tokens: int) -> int:
        """Asks for `output_tokens` more for the stream of `reservation_id`; returns what was granted, maybe 0."""
        ...

    def settle(
        self, reservation_id: str, prompt_tokens: int, completion_tokens: int, *, estimated_tokens: int = 0
    ) -> None:
        """Replaces the reservation `reservation_id` by what was used: `prompt_tokens` and `completion_tokens`.

        `estimated_tokens`: how many of both no provider reported.
        """
        ...

    def charge_estimate(self, reservation_id: str, prompt_tokens: int, completion_tokens: int) -> None:
        """Charges an upper bound, `prompt_tokens` and `completion_tokens`, for a call whose usage never came.

        A later `settle` of the same `reservation_id` posts the correction.
        """
        ...

    def release(self, reservation_id: str) -> None:
        """Gives back all that `reservation_id` holds: the call was not sent."""
        ...

    def balances(self, scopes: Sequence[ScopeLimit]) -> tuple[Balance, ...]:
        """Today's balance of each of `scopes`."""
        ...


# What only callers of the ledger meet; the errors a user can meet stand in `agentao_gov.errors`.


class CancelledWait(GovError):
    """Raised when the `cancelled` event ends a wait for tokens: nothing is held any more."""

    ending = ENDINGS["cancelled"]


class ReservationLostError(StoreError):
    """Raised when a reservation is no longer its owner's: reclaimed after silence, or never there.

    A call whose `dispatch` raises this must not be sent: its tokens were given back and may be spent already.
    """
