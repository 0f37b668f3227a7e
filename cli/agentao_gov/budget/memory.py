"""The ledger in this process's memory: for `run` without a state directory, for tests, and as the others' model."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from agentao_gov.budget import journal, reservation
from agentao_gov.budget.admission import Admission, Answer, Attempted, Ticket, admit, extendable, fair_order, serve
from agentao_gov.budget.balance import Line, LineKey, crossed, line_name, lower_warned, refusal, within_window
from agentao_gov.budget.journal import Checkpoint, Entry, Kind, over_by, plan
from agentao_gov.budget.reservation import OPEN_STATES, Holding, Posting, Price
from agentao_gov.budget.store import Crossing, JournalRow, Refused, Settlement, StoreSettings, Verification, Waiting
from agentao_gov.budget.types import (
    Balance,
    Reservation,
    ReservationLostError,
    ReservationState,
    ReserveRequest,
    ScopeLimit,
)
from agentao_gov.budget.windows import TURN_WINDOW, WindowCalendar
from agentao_gov.clock import SYSTEM_CLOCK, Clock

__all__ = ["Book", "Call", "MemoryStore", "after", "reserve_note"]


# The ledger as plain values: the reference that the stores must equal, and the memory store's heart.
#
# No clock, no threads, no I/O: every operation takes the time and returns what happened.


@dataclass(slots=True)
class Call:
    """One reservation: its owner, where it posts to, and how far it is."""

    id: str
    owner: str
    lines: tuple[LineKey, ...]
    holding: Holding

    @property
    def reservation(self) -> Reservation:
        """The reservation as its owner sees it."""
        held = self.holding
        windows = tuple(window for _, _, window in self.lines)
        return Reservation(self.id, held.held_prompt, held.held_output, windows, held.state)


@dataclass(slots=True)
class _Waiter:
    request: ReserveRequest
    owner: str
    number: int


@dataclass(slots=True)
class Book:
    """All lines, calls and waiters. One thread at a time."""

    #: Receives each journal entry, in order.
    sink: Callable[[Entry], None]
    warn_at: tuple[float, ...] = ()
    price: Callable[[str], Price | None] = lambda _: None
    lines: dict[LineKey, Line] = field(default_factory=dict)
    calls: dict[str, Call] = field(default_factory=dict)
    waiters: dict[str, _Waiter] = field(default_factory=dict)
    #: Ids that left the queue since they were last collected.
    answered: list[str] = field(default_factory=list)
    _calendar: WindowCalendar = field(default_factory=WindowCalendar)
    #: Latest time seen: a clock that steps back does not take the ledger back.
    _high_water_s: float = 0.0
    _served: dict[tuple[str, str | None], int] = field(default_factory=dict)
    _arrivals: int = 0
    _servings: int = 0

    # ── time ──────────────────────────────────────────────────────────────────────────────────────

    def at(self, now_s: float) -> float:
        """The ledger's time: never earlier than what it has seen."""
        self._high_water_s = max(self._high_water_s, now_s)
        return self._high_water_s

    def seen(self, now_s: float) -> float:
        """The ledger's time for one who only looks: that moves nobody into another day."""
        return max(self._high_water_s, now_s)

    def line_key(self, scope: ScopeLimit, now_s: float) -> LineKey:
        """Where a call reserved now posts to."""
        if scope.scope.kind == "turn":
            return (scope.scope, scope.timezone, TURN_WINDOW)
        return (scope.scope, scope.timezone, self._calendar.window(scope.timezone, now_s).name)

    # ── calls ─────────────────────────────────────────────────────────────────────────────────────

    def reserve(self, request: ReserveRequest, owner: str, now_s: float) -> Reservation | Refused | Waiting:
        """One attempt. A newcomer never overtakes those who wait for the same tokens."""
        now_s = self.at(now_s)
        known = self.calls.get(request.id)
        if known is not None:
            return known.reservation
        if not self.waiters:
            return self._attempt(request, owner, now_s)
        if request.id not in self.waiters:
            if self._hopeless(request, now_s):
                return self._attempt(request, owner, now_s)
            self._enqueue(request, owner)
        self.serve_waiting(now_s)
        if (call := self.calls.get(request.id)) is not None:
            return call.reservation
        if request.id in self.waiters:
            return Waiting(request.scopes[0].scope)
        return self._attempt(request, owner, now_s)

    def _hopeless(self, request: ReserveRequest, now_s: float) -> bool:
        """Whether waiting cannot help: then the call is told so at once, however many wait."""
        answer, _, _ = self._admission(request, now_s)[1]
        return answer in (Answer.EXHAUSTED, Answer.IMPOSSIBLE)

    def _admission(self, request: ReserveRequest, now_s: float) -> tuple[list[Line], Admission]:
        lines = self._lines(request, now_s)
        return lines, admit(
            [line.level for line in lines],
            request.prompt_tokens,
            request.output_tokens_min,
            request.output_tokens_max,
        )

    def _attempt(self, request: ReserveRequest, owner: str, now_s: float) -> Reservation | Refused | Waiting:
        lines, admission = self._admission(request, now_s)
        if admission.answer is Answer.GRANTED:
            return self._hold(request, owner, lines, admission.output_tokens, now_s)
        blocking = lines[admission.blocking[0]]
        if admission.answer is Answer.WAIT:
            self._enqueue(request, owner)
            return Waiting(blocking.key[0])
        return refusal(admission.answer, blocking.balance, request, self._seconds_left(blocking.key, now_s))

    def _lines(self, request: ReserveRequest, now_s: float) -> list[Line]:
        lines = []
        for scope in request.scopes:
            key = self.line_key(scope, now_s)
            # A new line is kept only once something is held on it: a refusal leaves no trace.
            line = self.lines.get(key) or Line(key)
            line.limit = scope.limit
            lines.append(line)
        return lines

    def _hold(
        self, request: ReserveRequest, owner: str, lines: Sequence[Line], output: int, now_s: float
    ) -> Reservation:
        for line in lines:
            self._keep(line, owner, now_s)
        holding = Holding(ReservationState.RESERVED, request.prompt_tokens, output, price=self.price(request.model))
        call = self.calls[request.id] = Call(request.id, owner, tuple(line.key for line in lines), holding)
        self._post(call, "reserve", Posting(ReservationState.RESERVED, reserved=holding.held), owner, now_s)
        return call.reservation

    def dispatch(self, call_id: str, owner: str, now_s: float) -> None:
        """reserved → dispatched; again is harmless."""
        call = self._call(call_id)
        if call.holding.state is ReservationState.DISPATCHED:
            return
        if call.holding.state is not ReservationState.RESERVED:
            raise ReservationLostError(f"Reservation {call_id} is {call.holding.state} and cannot be sent.")
        self._post(call, "dispatch", Posting(ReservationState.DISPATCHED), owner, self.at(now_s))

    def extend(self, call_id: str, tokens: int, owner: str, now_s: float) -> int:
        """Adds to what a running call holds, as far as there is room."""
        call = self._call(call_id)
        if call.holding.state not in reservation.OPEN_STATES or tokens <= 0:
            return 0
        more = extendable([self.lines[key].level for key in call.lines], tokens)
        if more:
            self._post(call, "extend", Posting(call.holding.state, reserved=more), owner, self.at(now_s))
        return more

    def settle(
        self, call_id: str, prompt: int, completion: int, estimated: int, owner: str, now_s: float
    ) -> tuple[Crossing, ...] | None:
        """Posts real usage; None when it was posted before."""
        call = self._call(call_id)
        kind: Kind = "settle" if call.holding.state in reservation.OPEN_STATES else "correct"
        return self._finish(call, kind, reservation.settle(call.holding, prompt, completion, estimated), owner, now_s)

    def charge(
        self, call_id: str, prompt: int, completion: int, owner: str, now_s: float
    ) -> tuple[Crossing, ...] | None:
        """Posts an upper bound; None when the call's end is known."""
        call = self._call(call_id)
        return self._finish(call, "charge", reservation.charge(call.holding, prompt, completion), owner, now_s)

    def release(self, call_id: str, owner: str, now_s: float) -> bool:
        """Gives back what was not sent; False when the call's end is known."""
        call = self._call(call_id)
        return self._finish(call, "release", reservation.release(call.holding), owner, now_s) is not None

    def withdraw(self, call_id: str, owner: str, now_s: float) -> None:
        """Ends a wait."""
        if self.waiters.pop(call_id, None) is not None:
            self.serve_waiting(self.at(now_s))
            return
        call = self.calls.get(call_id)
        if call is not None and call.holding.state is ReservationState.RESERVED:
            self.release(call_id, owner, now_s)

    def reclaim(self, dead: Callable[[str], bool], owner: str, now_s: float) -> int:
        """Resolves what dead owners hold: not sent is given back, sent is charged its bound. Returns how many."""
        gone = [waiter.request.id for waiter in self.waiters.values() if dead(waiter.owner)]
        for call_id in gone:
            del self.waiters[call_id]
        lost = [call for call in self.calls.values() if call.holding.held and dead(call.owner)]
        for call in lost:
            held = call.holding
            if held.state is ReservationState.RESERVED:
                self.release(call.id, owner, now_s)
            else:
                self.charge(call.id, held.held_prompt, held.held_output, owner, now_s)
        if gone and not lost:
            self.serve_waiting(self.at(now_s))
        return len(gone) + len(lost)

    def _call(self, call_id: str) -> Call:
        call = self.calls.get(call_id)
        if call is None:
            raise ReservationLostError(f"There is no reservation {call_id}.")
        return call

    def _finish(
        self, call: Call, kind: Kind, posting: Posting | None, owner: str, now_s: float
    ) -> tuple[Crossing, ...] | None:
        if posting is None:
            return None
        now_s = self.at(now_s)
        crossings = self._post(call, kind, posting, owner, now_s)
        if self.waiters and min(posting.used, posting.reserved) < 0:
            self.serve_waiting(now_s)
        return crossings

    def _post(self, call: Call, kind: Kind, posting: Posting, owner: str, now_s: float) -> tuple[Crossing, ...]:
        crossings = []
        # All are looked up before the first is changed: a step happens as a whole or not at all.
        for line in [self.lines[key] for key in call.lines]:
            line.add(posting)
            line.touched_s = now_s
            if posting.used and (crossing := crossed(line, self.warn_at)) is not None:
                crossings.append(crossing)
        call.holding = after(call.holding, posting, extends=kind == "extend")
        names = tuple(line_name(key) for key in call.lines)
        note = reserve_note(call.holding) if kind == "reserve" else ""
        self.sink(
            Entry.of(posting, at_ms=int(now_s * 1000), kind=kind, id=call.id, owner=owner, lines=names, note=note)
        )
        return tuple(crossings)

    # ── waiting ───────────────────────────────────────────────────────────────────────────────────

    def _enqueue(self, request: ReserveRequest, owner: str) -> None:
        self._arrivals += 1
        self.waiters[request.id] = _Waiter(request, owner, self._arrivals)

    def serve_waiting(self, now_s: float) -> None:
        """Lets everyone who waits try again, in fair order."""
        now_s = self.at(now_s)
        tickets = [
            Ticket(
                waiter.request.id,
                waiter.number,
                waiter.request.tenant,
                waiter.request.user,
                tuple(scope.scope for scope in waiter.request.scopes),
            )
            for waiter in self.waiters.values()
        ]
        serve(fair_order(tickets, self._served), lambda ticket: self._serve_one(ticket, now_s))

    def _serve_one(self, ticket: Ticket, now_s: float) -> Attempted:
        waiter = self.waiters[ticket.id]
        request = waiter.request
        lines, admission = self._admission(request, now_s)
        if admission.answer is Answer.WAIT:
            return tuple(lines[position].key[0] for position in admission.blocking)
        del self.waiters[ticket.id]
        self.answered.append(ticket.id)
        if admission.answer is not Answer.GRANTED:
            return "refused"
        self._servings += 1
        self._served[(ticket.tenant, None)] = self._served[(ticket.tenant, ticket.user)] = self._servings
        self._hold(request, waiter.owner, lines, admission.output_tokens, now_s)
        if not self.waiters:
            # Nobody waits any more, so nobody's turn has to be remembered.
            self._served.clear()
        return "served"

    # ── balances ──────────────────────────────────────────────────────────────────────────────────

    def grant(self, scope: ScopeLimit, tokens: int, owner: str, now_s: float) -> Balance:
        """Adds to the limit of the window that is open now."""
        now_s = self.at(now_s)
        key = self.line_key(scope, now_s)
        line = self.lines.get(key) or Line(key)
        self._keep(line, owner, now_s)
        line.limit = scope.limit
        line.granted += tokens
        lower_warned(line, self.warn_at)
        self.sink(Entry(int(now_s * 1000), "grant", "", owner, (line_name(key),), granted=tokens))
        if self.waiters:
            self.serve_waiting(now_s)
        return line.balance

    def balances(self, scopes: Iterable[ScopeLimit], now_s: float) -> tuple[Balance, ...]:
        """What stands in the windows open now."""
        now_s = self.seen(now_s)
        return tuple(
            _with_limit(self.lines.get(key) or Line(key), scope.limit)
            for scope in scopes
            for key in [self.line_key(scope, now_s)]
        )

    def _keep(self, line: Line, owner: str, now_s: float) -> None:
        if line.key not in self.lines:
            self.lines[line.key] = line
            line.touched_s = now_s
            name = line_name(line.key)
            self.sink(Entry(int(now_s * 1000), "line", name, owner, (), note=name))

    def forget(self, calls: Iterable[str], lines: Iterable[LineKey]) -> None:
        """Drops reservations that have ended, and lines that nothing is posted to any more."""
        for call_id in calls:
            self.calls.pop(call_id, None)
        for key in lines:
            self.lines.pop(key, None)

    def _seconds_left(self, key: LineKey, now_s: float) -> float | None:
        return within_window(self._calendar, key, now_s)


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


def _with_limit(line: Line, limit: int | None) -> Balance:
    line.limit = limit
    return line.balance


#: There is only one owner, and it dies together with the store.
_OWNER = "memory"
#: Entries of the journal at which the older half is replaced by a checkpoint: nobody looks at them later, and they
#: would be all that a process remembers after a month.
_ROWS_MAX = 2_048
#: How long a turn's line is kept after its last call: longer than any turn pauses between two of them.
_TURN_S = 3_600.0


class MemoryStore:
    """A Book behind a lock. Nothing outlives the process."""

    def __init__(self, clock: Clock = SYSTEM_CLOCK, settings: StoreSettings | None = None) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        #: Journal rows in order, from the one after the checkpoint on; under the lock.
        self._rows: list[JournalRow] = []
        self._checkpoint = Checkpoint()
        self._settings = settings or StoreSettings()
        self._book = Book(self._append)
        self.settings = self._settings

    @property
    def settings(self) -> StoreSettings:
        """What the ledger told this store."""
        return self._settings

    @settings.setter
    def settings(self, settings: StoreSettings) -> None:
        self._settings = settings
        self._book.warn_at = settings.warn_at
        self._book.price = settings.price

    def reserve(self, request: ReserveRequest) -> Reservation | Refused | Waiting:
        """See Store."""
        with self._lock:
            result = self._book.reserve(request, _OWNER, self._clock.time())
            answered = self._collect()
        self._settings.notice(answered)
        return result

    def withdraw(self, reservation_id: str) -> None:
        """See Store."""
        with self._lock:
            self._book.withdraw(reservation_id, _OWNER, self._clock.time())
            answered = self._collect()
        self._settings.notice(answered)

    def dispatch(self, reservation_id: str) -> None:
        """See Store."""
        with self._lock:
            self._book.dispatch(reservation_id, _OWNER, self._clock.time())

    def extend(self, reservation_id: str, output_tokens: int) -> int:
        """See Store."""
        with self._lock:
            return self._book.extend(reservation_id, output_tokens, _OWNER, self._clock.time())

    def settle(self, reservation_id: str, prompt: int, completion: int, estimated: int) -> Settlement:
        """See Store."""
        with self._lock:
            crossings = self._book.settle(reservation_id, prompt, completion, estimated, _OWNER, self._clock.time())
            answered = self._collect()
        self._settings.notice(answered)
        return Settlement(crossings is not None, crossings or ())

    def charge(self, reservation_id: str, prompt: int, completion: int) -> Settlement:
        """See Store."""
        with self._lock:
            crossings = self._book.charge(reservation_id, prompt, completion, _OWNER, self._clock.time())
            answered = self._collect()
        self._settings.notice(answered)
        return Settlement(crossings is not None, crossings or ())

    def release(self, reservation_id: str) -> None:
        """See Store."""
        with self._lock:
            self._book.release(reservation_id, _OWNER, self._clock.time())
            answered = self._collect()
        self._settings.notice(answered)

    def grant(self, scope: ScopeLimit, tokens: int) -> Balance:
        """See Store."""
        with self._lock:
            balance = self._book.grant(scope, tokens, _OWNER, self._clock.time())
            answered = self._collect()
        self._settings.notice(answered)
        return balance

    def balances(self, scopes: Sequence[ScopeLimit]) -> tuple[Balance, ...]:
        """See Store."""
        with self._lock:
            return self._book.balances(scopes, self._clock.time())

    def all_balances(self, window: str | None = None) -> tuple[Balance, ...]:
        """See Store."""
        with self._lock:
            now_s = self._book.seen(self._clock.time())
            return tuple(
                line.balance
                for line in self._book.lines.values()
                if line.key[0].kind != "turn" and (window or self._today(line, now_s)) in ("all", line.key[2])
            )

    def answered(self, reservation_ids: Sequence[str]) -> list[str]:  # noqa: ARG002
        """See Store. Notices reach everyone here, so there is nothing to look up."""
        return []

    def serve_waiting(self) -> None:
        """See Store."""
        with self._lock:
            self._book.serve_waiting(self._clock.time())
            answered = self._collect()
        self._settings.notice(answered)

    def heartbeat(self) -> None:
        """See Store. The only owner is this process."""

    def journal(self) -> Iterable[JournalRow]:
        """See Store."""
        with self._lock:
            return list(self._rows)

    def verify(self) -> Verification:
        """See Store."""
        with self._lock:
            rows, lines = list(self._rows), {line_name(key): line for key, line in self._book.lines.items()}
            checkpoint = self._checkpoint
            sums = {name: _totals(line) for name, line in lines.items()}
            lost = [
                call.id
                for call in self._book.calls.values()
                if call.holding.state in OPEN_STATES and not self._book.lines.keys() >= set(call.lines)
            ]
            calls = {call.id: (call.holding.used, call.holding.held) for call in self._book.calls.values()}
        result = journal.replay(rows, base=checkpoint.replay())
        problems = list(result.problems)
        if (changed := checkpoint.problem(result)) is not None:
            problems.append(changed)
        for name, expected in sums.items():
            found = result.lines.get(name, journal.Totals())
            if found != expected:
                problems.append(f"balance of {name}: the journal adds up to {found}, the balance says {expected}")
        for call_id, expected_call in calls.items():
            total = result.calls.get(call_id, journal.Totals())
            if call_id not in result.notes:
                # It began before the checkpoint and was corrected after it.
                continue
            if (total.used, total.reserved) != expected_call:
                problems.append(f"reservation {call_id} does not match the journal")
        problems += [f"reservation {name} holds tokens of a line that is not there" for name in lost]
        problems += [
            f"balance of {name}: {total.reserved:,} tokens are reserved"
            for name, total in sums.items()
            if total.reserved < 0
        ]
        return Verification(result.entries, len(sums), len(calls), result.head.hex(), tuple(problems))

    def close(self) -> None:
        """See Store."""

    def _today(self, line: Line, now_s: float) -> str:
        scope, timezone, _ = line.key
        return self._book.line_key(ScopeLimit(scope, None, timezone), now_s)[2]

    def _append(self, entry: Entry) -> None:
        text = journal.encode(entry)
        previous = self._rows[-1][2] if self._rows else self._checkpoint.hash
        number = self._rows[-1][0] if self._rows else self._checkpoint.number
        self._rows.append((number + 1, text, journal.chain(previous, text)))

    def _cut_if_long(self) -> None:
        """Keeps a process that lives for months from remembering every call."""
        if len(self._rows) < _ROWS_MAX:
            return
        now_s = self._book.at(self._clock.time())
        keys = {line_name(key): key for key in self._book.lines}
        days_over = over_by(now_s * 1000)

        def over(name: str, touched_ms: int) -> bool:
            rested = now_s - self._book.lines[keys[name]].touched_s > _TURN_S
            return rested and (name.startswith("turn:") or days_over(name, touched_ms))

        half = len(self._rows) // 2
        # What may still be posted to: by calls that are open, and by corrections of those that were charged.
        kept = {
            line_name(key)
            for call in self._book.calls.values()
            if call.holding.state is not ReservationState.SETTLED
            for key in call.lines
        }
        planned = plan(self._checkpoint, self._rows[:half], over, kept)
        if planned is None:
            return
        self._checkpoint, self._rows = planned.after, self._rows[half:]
        self._book.forget(planned.calls, [keys[name] for name in planned.lines])
        self._append(Entry(int(now_s * 1000), "checkpoint", "", _OWNER, (), note=planned.after.note()))

    def _collect(self) -> list[str]:
        self._cut_if_long()
        answered, self._book.answered = self._book.answered, []
        return answered


def _totals(line: Line) -> journal.Totals:
    return journal.Totals(line.used, line.reserved, line.estimated, line.granted, line.cost, line.unpriced)
