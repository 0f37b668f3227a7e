"""Decides every step of a ledger: what is granted, what waits, what is posted. One decision for memory and SQLite.

`LedgerCore` has no clock, no I/O and no threads: it is told the time, reads and writes through `Records`, and can be
simulated by the million (`tests/budget/simulation.py`). `LocalStore` puts a store's lock or transaction around each
step. `redis/ledger.lua` states the same decision for a server; one contract suite holds all of them together.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple, Protocol, TypeVar

from agentao_gov.budget import failpoints, reservation
from agentao_gov.budget.admission import Admission, Answer, Attempted, QueueTicket, admit, extendable, fair_order, serve
from agentao_gov.budget.balance import (
    THOUSANDTHS,
    BalanceKey,
    BalanceRecord,
    balance_name,
    crossed,
    refusal,
    still_passed,
    within_window,
)
from agentao_gov.budget.journal import JournalEntry, Kind
from agentao_gov.budget.reservation import OPEN_STATES, CallRecord, Holding, Posting, reserve_note
from agentao_gov.budget.store import Crossing, Refused, Settlement, Store, StoreSettings, Waiting
from agentao_gov.budget.types import (
    Balance,
    Reservation,
    ReservationLostError,
    ReservationState,
    ReserveRequest,
    ScopeLimit,
)
from agentao_gov.budget.windows import TURN_WINDOW, WindowCalendar

T = TypeVar("T")


class QueuedCall(NamedTuple):
    """One queued call: its place of arrival, what it asks for, and the owner that waits."""

    number: int
    request: ReserveRequest
    owner: str


class Records(Protocol):
    """Where a ledger's records are read and written. What one step writes becomes true as a whole, or not at all.

    A step writes journal entries and nothing else: `append` posts what an entry says to its balances and reservation.
    """

    #: Time of the journal's last entry, Unix milliseconds.
    last_ms: int

    @property
    def waiting(self) -> bool:
        """Whether any call is queued."""
        ...

    def call(self, call_id: str) -> CallRecord | None:
        """The reservation of that id."""
        ...

    def held_by(self, owner: str) -> list[CallRecord]:
        """All reservations of an owner that hold tokens."""
        ...

    def find(self, keys: Sequence[BalanceKey]) -> list[BalanceRecord]:
        """The balances of those scopes and windows, in that order; one without reference where there is none yet."""
        ...

    def load(self, refs: Sequence[str]) -> list[BalanceRecord]:
        """Balances by reference, in that order. Raises KeyError where one is not there."""
        ...

    def open(self, key: BalanceKey) -> str:
        """Keeps a balance that was not there; returns its reference."""
        ...

    def timezones(self) -> list[str]:
        """The zones of all balances but those of turns."""
        ...

    def daily(self, timezone: str, window: str | None) -> Iterable[BalanceRecord]:
        """Balances of a zone but those of turns: of one window, or of all where it is None."""
        ...

    def append(self, entry: JournalEntry) -> None:
        """Adds an entry to the journal and posts it. Raises KeyError, before anything is posted, for lost balances."""
        ...

    def waiters(self) -> list[QueuedCall]:
        """Everyone who waits, in the order of arrival."""
        ...

    def waits(self, call_id: str) -> bool:
        """Whether the call is queued."""
        ...

    def enqueue(self, request: ReserveRequest, owner: str) -> None:
        """Puts a call at the end of the queue."""
        ...

    def dequeue(self, call_id: str) -> bool:
        """Takes a call out of the queue; False where it did not wait."""
        ...

    def dequeue_owner(self, owner: str) -> None:
        """Takes out whatever that owner waits for."""
        ...

    def served(self) -> dict[tuple[str, str | None], int]:
        """Tenant and user (None: the tenant itself) → a counter that grew when one of theirs was served last."""
        ...

    def note_served(self, tenant: str, user: str) -> None:
        """Raises the counter of a tenant and of its user above all others."""
        ...


class LedgerCore:
    """Every step of a ledger over its records. `now_ms` is Unix milliseconds; `owner` is who takes the step."""

    def __init__(self, records: Records, settings: StoreSettings) -> None:
        self.records = records
        self.settings = settings
        self.calendar = WindowCalendar()
        #: Ids of calls that left the queue since they were taken last.
        self._answered: list[str] = []

    def take_answered(self) -> list[str]:
        """Ids of the calls that left the queue since the last time this was asked."""
        answered, self._answered = self._answered, []
        return answered

    # ── calls ─────────────────────────────────────────────────────────────────────────────────────

    def reserve(self, request: ReserveRequest, owner: str, now_ms: int) -> Reservation | Refused | Waiting:
        """Grants, refuses or queues a call. A newcomer never overtakes those who wait for the same tokens.

        A refusal writes nothing: whoever asks a thousand times fills nothing.
        """
        at_ms, records = self._at(now_ms), self.records
        if (known := self._known(request.id)) is not None:
            return known
        if records.waiting:
            if not records.waits(request.id):
                balances, admission = self._admission(request, at_ms)
                if admission.answer in (Answer.EXHAUSTED, Answer.IMPOSSIBLE):
                    # Waiting cannot help: the call is told so at once, however many wait.
                    return self._refusal(request, balances, admission, at_ms)
                records.enqueue(request, owner)
            self.serve_waiting(at_ms)
            if (known := self._known(request.id)) is not None:
                return known
            if records.waits(request.id):
                return Waiting(request.scopes[0].scope)
        balances, admission = self._admission(request, at_ms)
        if admission.answer is Answer.GRANTED:
            return self._hold(request, owner, balances, admission.output_tokens, at_ms)
        if admission.answer is Answer.WAIT:
            records.enqueue(request, owner)
            return Waiting(balances[admission.blocking[0]].key[0])
        return self._refusal(request, balances, admission, at_ms)

    def dispatch(self, call_id: str, owner: str, now_ms: int) -> None:
        """reserved → dispatched; again is harmless. Raises ReservationLostError where tokens are no longer held."""
        call = self._call(call_id)
        if call.holding.state is ReservationState.DISPATCHED:
            return
        if call.holding.state is not ReservationState.RESERVED:
            raise ReservationLostError(f"Reservation {call_id} is {call.holding.state} and cannot be sent.")
        self._write(call, "dispatch", Posting(ReservationState.DISPATCHED), owner, self._at(now_ms))

    def extend(self, call_id: str, tokens: int, owner: str, now_ms: int) -> int:
        """Adds to what a running call holds as far as there is room; returns how many tokens that is."""
        call = self._call(call_id)
        if call.holding.state not in OPEN_STATES or tokens <= 0:
            return 0
        balances = self.records.load(call.refs)
        more = extendable([balance.level(balance.limit) for balance in balances], tokens)
        if more:
            self._write(call, "extend", Posting(call.holding.state, reserved=more), owner, self._at(now_ms))
        return more

    def settle(self, call_id: str, prompt: int, completion: int, estimated: int, owner: str, now_ms: int) -> Settlement:
        """Replaces what is held, or was charged by estimate, by the tokens that were used."""
        call = self._call(call_id)
        kind: Kind = "settle" if call.holding.state in OPEN_STATES else "correct"
        return self._end(
            call, kind, reservation.settle(call.holding, prompt, completion, estimated), owner, self._at(now_ms)
        )

    def charge(self, call_id: str, prompt: int, completion: int, owner: str, now_ms: int) -> Settlement:
        """Charges an upper bound for a call whose usage never came."""
        call = self._call(call_id)
        return self._end(call, "charge", reservation.charge(call.holding, prompt, completion), owner, self._at(now_ms))

    def release(self, call_id: str, owner: str, now_ms: int) -> None:
        """Gives everything back."""
        call = self._call(call_id)
        self._end(call, "release", reservation.release(call.holding), owner, self._at(now_ms))

    def withdraw(self, call_id: str, owner: str, now_ms: int) -> None:
        """Ends a wait; a grant that came in the same moment and was not sent is given back."""
        at_ms = self._at(now_ms)
        if self.records.dequeue(call_id):
            self.serve_waiting(at_ms)
            return
        call = self.records.call(call_id)
        if call is not None and call.holding.state is ReservationState.RESERVED:
            self._end(call, "release", reservation.release(call.holding), owner, at_ms)

    def resolve(self, dead: str, owner: str, now_ms: int) -> None:
        """What a dead owner had not sent is given back; what it had sent is charged its bound."""
        at_ms = self._at(now_ms)
        self.records.dequeue_owner(dead)
        for call in self.records.held_by(dead):
            held = call.holding
            if held.state is ReservationState.RESERVED:
                self._end(call, "release", reservation.release(held), owner, at_ms)
            else:
                posting = reservation.charge(held, held.held_prompt, held.held_output)
                self._end(call, "charge", posting, owner, at_ms)
        self.serve_waiting(at_ms)

    # ── waiting ───────────────────────────────────────────────────────────────────────────────────

    def serve_waiting(self, now_ms: int) -> None:
        """Lets everyone who waits try again, in fair order."""
        records = self.records
        if not records.waiting:
            return
        at_ms = self._at(now_ms)
        waiters = {waiter.request.id: waiter for waiter in records.waiters()}
        tickets = [
            QueueTicket(call_id, number, request.tenant, request.user, tuple(limit.scope for limit in request.scopes))
            for call_id, (number, request, _) in waiters.items()
        ]

        def attempt(ticket: QueueTicket) -> Attempted:
            _, request, owner = waiters[ticket.id]
            balances, admission = self._admission(request, at_ms)
            if admission.answer is Answer.WAIT:
                return tuple(balances[position].key[0] for position in admission.blocking)
            if admission.answer is Answer.GRANTED:
                self._hold(request, owner, balances, admission.output_tokens, at_ms)
                records.note_served(request.tenant, request.user)
            records.dequeue(request.id)
            self._answered.append(request.id)
            return "served" if admission.answer is Answer.GRANTED else "refused"

        serve(fair_order(tickets, records.served()), attempt)

    # ── balances ──────────────────────────────────────────────────────────────────────────────────

    def grant(self, scope: ScopeLimit, tokens: int, owner: str, now_ms: int) -> Balance:
        """Adds to the limit of the window that is open now; returns the balance."""
        at_ms = self._at(now_ms)
        key = self.key(scope, at_ms)
        (balance,) = self.records.find([key])
        self._keep(balance, scope.limit, owner, at_ms)
        self.records.append(JournalEntry(at_ms, "grant", "", owner, (balance.ref,), granted=tokens))
        (balance,) = self.records.find([key])
        if (still := still_passed(balance, self.settings.warn_at)) < balance.warned:
            self._note_warned(balance.ref, still, owner, at_ms)
        self.serve_waiting(at_ms)
        return self.records.find([key])[0].public(scope.limit)

    def balances(self, scopes: Sequence[ScopeLimit], now_ms: int) -> tuple[Balance, ...]:
        """What stands in the windows open now, under the limits that the caller states."""
        at_ms = self._at(now_ms)
        found = self.records.find([self.key(scope, at_ms) for scope in scopes])
        return tuple(balance.public(scope.limit) for balance, scope in zip(found, scopes, strict=True))

    def all_balances(self, window: str | None, now_ms: int) -> tuple[Balance, ...]:
        """Every balance but those of turns, of one window, of `"all"`, or of the one open now in each zone."""
        now_s = self._at(now_ms) / 1000
        found: list[Balance] = []
        for timezone in self.records.timezones():
            wanted = window or self.calendar.window(timezone, now_s).name
            records = self.records.daily(timezone, None if wanted == "all" else wanted)
            found += [balance.public(balance.limit) for balance in records]
        return tuple(found)

    # ── inside ────────────────────────────────────────────────────────────────────────────────────

    def _at(self, now_ms: int) -> int:
        """The ledger's time: never earlier than the last entry's, so that a clock stepping back opens no window twice.

        Only entries move it: a look, or a beat, while the clock is ahead moves nobody into another day.
        """
        return max(now_ms, self.records.last_ms)

    def key(self, scope: ScopeLimit, at_ms: int) -> BalanceKey:
        """Where a call reserved now posts to."""
        if scope.scope.kind == "turn":
            return (scope.scope, scope.timezone, TURN_WINDOW)
        return (scope.scope, scope.timezone, self.calendar.window(scope.timezone, at_ms / 1000).name)

    def _admission(self, request: ReserveRequest, at_ms: int) -> tuple[list[BalanceRecord], Admission]:
        balances = self.records.find([self.key(scope, at_ms) for scope in request.scopes])
        levels = [balance.level(scope.limit) for balance, scope in zip(balances, request.scopes, strict=True)]
        return balances, admit(levels, request.prompt_tokens, request.output_tokens_min, request.output_tokens_max)

    def _refusal(
        self, request: ReserveRequest, balances: Sequence[BalanceRecord], admission: Admission, at_ms: int
    ) -> Refused:
        position = admission.blocking[0]
        balance = balances[position]
        left_s = within_window(self.calendar, balance.key, at_ms / 1000)
        return refusal(admission.answer, balance.public(request.scopes[position].limit), request, left_s)

    def _hold(
        self, request: ReserveRequest, owner: str, balances: Sequence[BalanceRecord], output: int, at_ms: int
    ) -> Reservation:
        for balance, scope in zip(balances, request.scopes, strict=True):
            self._keep(balance, scope.limit, owner, at_ms)
        price = self.settings.price(request.model)
        holding = Holding(ReservationState.RESERVED, request.prompt_tokens, output, price=price)
        refs = tuple([balance.ref for balance in balances])
        note = reserve_note(holding)
        self.records.append(JournalEntry(at_ms, "reserve", request.id, owner, refs, 0, holding.held, 0, 0, 0, 0, note))
        windows = tuple([balance.key[2] for balance in balances])
        return Reservation(request.id, request.prompt_tokens, output, windows)

    def _keep(self, balance: BalanceRecord, limit: int | None, owner: str, at_ms: int) -> None:
        """Opens a balance that is not kept yet, and notes a changed limit: the journal tells later which one held."""
        opened = not balance.ref
        if opened:
            balance.ref = self.records.open(balance.key)
            self.records.append(JournalEntry(at_ms, "line", balance.ref, owner, (), note=balance_name(balance.key)))
        if opened or balance.limit != limit:
            self.records.append(JournalEntry(at_ms, "limit", balance.ref, owner, (), note=str(limit)))

    def _end(self, call: CallRecord, kind: Kind, posting: Posting | None, owner: str, at_ms: int) -> Settlement:
        if posting is None:
            return Settlement(posted=False)
        crossings = self._write(call, kind, posting, owner, at_ms)
        if min(posting.used, posting.reserved) < 0:
            self.serve_waiting(at_ms)
        return Settlement(True, crossings)

    def _write(self, call: CallRecord, kind: Kind, posting: Posting, owner: str, at_ms: int) -> tuple[Crossing, ...]:
        """Writes one step of a reservation, and which soft thresholds it passes."""
        _, used, reserved, estimated, cost, unpriced = posting
        # Looked up before anything is written: a step happens as a whole or not at all.
        balances = self.records.load(call.refs) if used else ()
        crossings = [found for balance in balances if (found := crossed(balance, used, self.settings.warn_at))]
        self.records.append(
            JournalEntry(at_ms, kind, call.id, owner, call.refs, used, reserved, estimated, 0, cost, unpriced)
        )
        for ref, crossing in crossings:
            self._note_warned(ref, crossing.threshold, owner, at_ms)
        return tuple([crossing for _, crossing in crossings])

    def _note_warned(self, ref: str, fraction: float, owner: str, at_ms: int) -> None:
        self.records.append(JournalEntry(at_ms, "warn", ref, owner, (), note=str(round(fraction * THOUSANDTHS))))

    def _call(self, call_id: str) -> CallRecord:
        call = self.records.call(call_id)
        if call is None:
            raise ReservationLostError(f"There is no reservation {call_id}.")
        return call

    def _known(self, call_id: str) -> Reservation | None:
        """The reservation as its owner sees it, where it was made before."""
        call = self.records.call(call_id)
        if call is None:
            return None
        held = call.holding
        windows = tuple(balance.key[2] for balance in self.records.load(call.refs))
        return Reservation(call_id, held.held_prompt, held.held_output, windows, held.state)


class LocalStore(Store):
    """Implements Store where this process decides: each step is one of a core, under the subclass's lock.

    A subclass sets `core` and `owner_id`, and makes a step atomic in `_perform`.
    """

    core: LedgerCore
    #: Who takes the steps; as the journal names it.
    owner_id: str

    def _perform(
        self,
        step: Callable[[int], T],
        name: str = "",
        *,
        call_id: str = "",
        scopes: Sequence[ScopeLimit] = (),
        write: bool = True,
    ) -> T:
        """Takes a step of the core with all it writes, or nothing of it; tells those whose wait it ended.

        `step` is given the present in Unix milliseconds and may be called again when it came to nothing. `name` names
        the failure points around its commit, if it has any. `call_id` and `scopes` are what it is about, so that a
        store can read all of it at once. Without `write` the step only looks.
        """
        raise NotImplementedError

    @property
    def settings(self) -> StoreSettings:
        """What the ledger told this store."""
        return self.core.settings

    @settings.setter
    def settings(self, settings: StoreSettings) -> None:
        self.core.settings = settings

    def reserve(self, request: ReserveRequest) -> Reservation | Refused | Waiting:
        failpoints.reach("before_reserve")
        return self._perform(
            lambda now_ms: self.core.reserve(request, self.owner_id, now_ms),
            "reserve",
            call_id=request.id,
            scopes=request.scopes,
        )

    def withdraw(self, reservation_id: str) -> None:
        self._perform(lambda now_ms: self.core.withdraw(reservation_id, self.owner_id, now_ms), call_id=reservation_id)

    def dispatch(self, reservation_id: str) -> None:
        self._perform(
            lambda now_ms: self.core.dispatch(reservation_id, self.owner_id, now_ms), "dispatch", call_id=reservation_id
        )

    def extend(self, reservation_id: str, output_tokens: int) -> int:
        return self._perform(
            lambda now_ms: self.core.extend(reservation_id, output_tokens, self.owner_id, now_ms),
            call_id=reservation_id,
        )

    def settle(self, reservation_id: str, prompt: int, completion: int, estimated: int) -> Settlement:
        failpoints.reach("before_settle")
        return self._perform(
            lambda now_ms: self.core.settle(reservation_id, prompt, completion, estimated, self.owner_id, now_ms),
            "settle",
            call_id=reservation_id,
        )

    def charge(self, reservation_id: str, prompt: int, completion: int) -> Settlement:
        return self._perform(
            lambda now_ms: self.core.charge(reservation_id, prompt, completion, self.owner_id, now_ms),
            call_id=reservation_id,
        )

    def release(self, reservation_id: str) -> None:
        self._perform(lambda now_ms: self.core.release(reservation_id, self.owner_id, now_ms), call_id=reservation_id)

    def grant(self, scope: ScopeLimit, tokens: int) -> Balance:
        return self._perform(lambda now_ms: self.core.grant(scope, tokens, self.owner_id, now_ms))

    def serve_waiting(self) -> None:
        self._perform(lambda now_ms: self.core.serve_waiting(now_ms))

    def balances(self, scopes: Sequence[ScopeLimit]) -> tuple[Balance, ...]:
        return self._perform(lambda now_ms: self.core.balances(scopes, now_ms), scopes=scopes, write=False)

    def all_balances(self, window: str | None = None) -> tuple[Balance, ...]:
        return self._perform(lambda now_ms: self.core.all_balances(window, now_ms), write=False)
