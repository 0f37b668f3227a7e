"""The ledger as plain values: the reference that the stores must equal, and the memory store's heart.

No clock, no threads, no I/O: every operation takes the time and returns what happened.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from agentao_gov.budget import states
from agentao_gov.budget.admission import Admission, Answer, admit, extendable
from agentao_gov.budget.errors import ReservationLostError
from agentao_gov.budget.journal import Entry, Kind
from agentao_gov.budget.line import Line, LineKey, crossed, line_name, lower_warned, refusal, within_window
from agentao_gov.budget.queue import Attempted, Ticket, fair_order, serve
from agentao_gov.budget.states import Holding, Posting, Price
from agentao_gov.budget.store import Crossing, Refused, Waiting
from agentao_gov.budget.types import (
    Balance,
    Reservation,
    ReservationState,
    ReserveRequest,
    ScopeLimit,
)
from agentao_gov.budget.windows import TURN_WINDOW, WindowCalendar

__all__ = ["Book", "Call", "after", "reserve_note"]


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
        if call.holding.state not in states.OPEN_STATES or tokens <= 0:
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
        kind: Kind = "settle" if call.holding.state in states.OPEN_STATES else "correct"
        return self._finish(call, kind, states.settle(call.holding, prompt, completion, estimated), owner, now_s)

    def charge(
        self, call_id: str, prompt: int, completion: int, owner: str, now_s: float
    ) -> tuple[Crossing, ...] | None:
        """Posts an upper bound; None when the call's end is known."""
        call = self._call(call_id)
        return self._finish(call, "charge", states.charge(call.holding, prompt, completion), owner, now_s)

    def release(self, call_id: str, owner: str, now_s: float) -> bool:
        """Gives back what was not sent; False when the call's end is known."""
        call = self._call(call_id)
        return self._finish(call, "release", states.release(call.holding), owner, now_s) is not None

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
