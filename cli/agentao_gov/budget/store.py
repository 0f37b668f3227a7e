"""The seam between the ledger and the places that keep it: memory, SQLite, Redis. One contract suite runs over all."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from agentao_gov.budget.reservation import Price
from agentao_gov.budget.types import Balance, Reservation, ReserveRequest, Scope, ScopeKind, ScopeLimit

#: Number, text and hash of one journal entry.
JournalRow = tuple[int, str, bytes]


@dataclass(frozen=True, slots=True)
class Waiting:
    """The call is queued: it fits once others settle. Ask again with the same id after the store's notice."""

    #: What blocks it, for the message at the deadline.
    scope: Scope


@dataclass(frozen=True, slots=True)
class Refused:
    """No, with the figures of the scope that says so."""

    reason: Literal["exhausted", "impossible"]
    scope: Scope
    window: str
    limit: int
    used: int
    reserved: int
    asked: int
    #: Until the window's end by the store's clock; None for a turn, whose budget never comes back.
    retry_after_s: float | None


@dataclass(frozen=True, slots=True)
class Crossing:
    """A balance passed a soft threshold: reported once per crossing and window, over all processes."""

    scope: Scope
    window: str
    threshold: float
    used: int
    limit: int


@dataclass(frozen=True, slots=True)
class Settlement:
    """What a posting led to."""

    #: False when the call's end was known already and nothing was posted.
    posted: bool
    crossings: tuple[Crossing, ...] = ()


@dataclass(frozen=True, slots=True)
class Verification:
    """What `budget verify` found."""

    entries: int
    balances: int
    reservations: int
    head: str
    problems: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether the journal reproduces every balance."""
        return not self.problems


def _no_notice(_: Iterable[str]) -> None:
    """Nobody waits."""


def _unpriced(_: str) -> Price | None:
    return None


@dataclass(slots=True)
class StoreSettings:
    """What every store is told by its ledger."""

    #: Fractions of a limit, in ascending order.
    warn_at: tuple[float, ...] = (0.8, 0.95)
    #: Price of a model, or None.
    price: Callable[[str], Price | None] = _unpriced
    #: Called after each commit with the ids of waiting calls that were answered; must not block.
    notice: Callable[[Iterable[str]], None] = field(default=_no_notice)


class Store(Protocol):
    """Keeps reservations, balances, waiting calls and the journal. Thread-safe; each method is one atomic step.

    Every method may raise StoreError. All are idempotent by reservation id.
    """

    settings: StoreSettings

    def reserve(self, request: ReserveRequest) -> Reservation | Refused | Waiting:
        """Holds the tokens of `request`, refuses, or queues the call (and keeps its place when asked again)."""
        ...

    def withdraw(self, reservation_id: str) -> None:
        """Ends the wait of `reservation_id`; where it was granted meanwhile and not sent, gives the tokens back."""
        ...

    def dispatch(self, reservation_id: str) -> None:
        """Notes that the call `reservation_id` is being sent. Raises ReservationLostError when it is no longer held."""
        ...

    def extend(self, reservation_id: str, output_tokens: int) -> int:
        """Adds up to `output_tokens` to the held output of `reservation_id`; returns how much, at once."""
        ...

    def settle(self, reservation_id: str, prompt: int, completion: int, estimated: int) -> Settlement:
        """Posts what the call `reservation_id` used: `prompt` and `completion` tokens.

        `estimated`: how many of both no provider reported.
        """
        ...

    def charge(self, reservation_id: str, prompt: int, completion: int) -> Settlement:
        """Posts an upper bound for the call `reservation_id`: `prompt` and `completion` tokens."""
        ...

    def release(self, reservation_id: str) -> None:
        """Gives everything back that `reservation_id` holds."""
        ...

    def grant(self, scope: ScopeLimit, tokens: int) -> Balance:
        """Adds `tokens` to the limit of `scope` for today's window."""
        ...

    def balances(self, scopes: Sequence[ScopeLimit]) -> tuple[Balance, ...]:
        """Today's balance of each of `scopes`, zero where nothing was recorded."""
        ...

    def all_balances(self, window: str | None = None) -> tuple[Balance, ...]:
        """Every balance but those of turns: of today's windows, of the `window` that is named, or of `"all"`."""
        ...

    def answered(self, reservation_ids: Sequence[str]) -> list[str]:
        """Which of the calls `reservation_ids` no longer wait. Cheap when nothing changed since the last time."""
        ...

    def serve_waiting(self) -> None:
        """Looks at the queue again: a new window or a changed limit may make room."""
        ...

    def heartbeat(self) -> None:
        """Says that this owner lives, and resolves what dead owners left behind."""
        ...

    def journal(self) -> Iterable[JournalRow]:
        """Every entry from the first."""
        ...

    def verify(self) -> Verification:
        """Replays the journal and compares every balance and every reservation."""
        ...

    def close(self) -> None:
        """Lets go of files and connections. What is still held is resolved as if the owner had died."""
        ...


# ── what the ledger tells those who watch it: metrics, the run panel, logs ────────────────────────


@dataclass(frozen=True, slots=True)
class Refusal:
    """A call was told no, at once or at the end of its wait."""

    scope: ScopeKind
    key: str
    reason: Literal["exhausted", "impossible", "deadline", "cancelled"]


@dataclass(frozen=True, slots=True)
class StoreFailureAllowed:
    """The store could not answer and `on_store_failure = "allow"` let the call through, unrecorded."""

    operation: str
    error: str


BudgetEvent = Crossing | Refusal | StoreFailureAllowed
#: Called on the thread of the call that caused it; must not block and must not raise.
BudgetObserver = Callable[[BudgetEvent], None]


# ── a waiting call as text, so that any process can serve it ──────────────────────────────────────


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
