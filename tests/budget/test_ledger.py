"""The ledger over its store: waiting, refusals with figures, the policy for a store that fails."""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from agentao_gov.budget import (
    BudgetEvent,
    CancelledWait,
    MemoryStore,
    Refusal,
    Reservation,
    ReservationLostError,
    ReserveRequest,
    SqliteStore,
    StoreFailureAllowed,
    TokenLedger,
)
from agentao_gov.budget.ledger import LedgerHeartbeat
from agentao_gov.budget.store import Refused, Waiting
from agentao_gov.clock import Deadline
from agentao_gov.errors import BudgetExhaustedError, BudgetImpossibleError, ConfigError, StoreError, TurnTimeoutError
from tests.budget.calls import call, idle, scopes
from tests.support.clock import FakeClock

#: No test waits that long; it only keeps one that hangs from hanging for ever.
GUARD_S = 10.0


class FailingStore(MemoryStore):
    """A real store whose file can be taken away."""

    broken = False
    #: A reservation that cannot be ended.
    unreadable = ""

    def reserve(self, request: ReserveRequest) -> Reservation | Refused | Waiting:
        if self.broken:
            raise StoreError("The disk is gone.")
        return super().reserve(request)

    def release(self, reservation_id: str) -> None:
        if self.broken:
            raise StoreError("The disk is gone.")
        if reservation_id == self.unreadable:
            raise StoreError("It cannot be read.")
        super().release(reservation_id)


def open_ledger(store: MemoryStore, **options: object) -> tuple[TokenLedger, list[BudgetEvent]]:
    ledger = TokenLedger(store, heartbeat_s=None, **options)  # type: ignore[arg-type]
    events: list[BudgetEvent] = []
    ledger.subscribe(events.append)
    return ledger, events


def in_thread(action: Callable[[], object]) -> tuple[threading.Thread, list[object]]:
    """Runs it on a thread; its result or error ends up in the list."""
    results: list[object] = []

    def run() -> None:
        try:
            results.append(action())
        except Exception as error:
            results.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return thread, results


def until_waiting(store: MemoryStore, count: int = 1) -> None:
    """Returns when that many calls are in the queue."""
    guard = Deadline.after(GUARD_S)
    while len(store._records.queue) < count:
        assert not guard.passed


def test_a_waiting_call_gets_what_others_give_back() -> None:
    """Fits once others settle: it waits and goes on, without a refusal."""
    store = MemoryStore()
    ledger, events = open_ledger(store)
    limits = scopes(session=200)
    ledger.reserve(call("c-1", limits), deadline=Deadline.after(GUARD_S))
    thread, results = in_thread(lambda: ledger.reserve(call("c-2", limits), deadline=Deadline.after(GUARD_S)))
    until_waiting(store)

    ledger.settle("c-1", 60, 20)

    thread.join(GUARD_S)
    (held,) = results
    assert isinstance(held, Reservation)
    assert held.output_tokens == 20
    assert events == []


def test_a_wait_ends_at_the_turns_deadline(clock: FakeClock) -> None:
    """The turn is told what it waited for, and holds nothing."""
    store = MemoryStore(clock)
    ledger, events = open_ledger(store, clock=clock)
    limits = scopes(session=200)
    ledger.reserve(call("c-1", limits), deadline=Deadline.after(5, clock))
    thread, results = in_thread(lambda: ledger.reserve(call("c-2", limits), deadline=Deadline.after(5, clock)))
    until_waiting(store)

    clock.advance(6)

    thread.join(GUARD_S)
    assert isinstance(results[0], TurnTimeoutError)
    assert "session:acme/s-1" in results[0].message
    assert events == [Refusal("session", "acme/s-1", "deadline")]
    ledger.release("c-1")
    assert idle(store, limits)


def test_a_cancelled_wait_ends_at_once_and_holds_nothing() -> None:
    """Ctrl-C while waiting for tokens."""
    store = MemoryStore()
    ledger, _ = open_ledger(store)
    limits = scopes(session=200)
    cancelled = threading.Event()
    ledger.reserve(call("c-1", limits), deadline=Deadline.after(GUARD_S))
    thread, results = in_thread(
        lambda: ledger.reserve(call("c-2", limits), deadline=Deadline.never(), cancelled=cancelled)
    )
    until_waiting(store)

    cancelled.set()

    thread.join(GUARD_S)
    assert isinstance(results[0], CancelledWait)
    ledger.release("c-1")
    assert idle(store, limits)


def test_everyone_who_waits_in_vain_is_told_the_figures() -> None:
    """When the last tokens are spent, nobody goes on waiting."""
    store = MemoryStore()
    ledger, events = open_ledger(store)
    limits = scopes(session=200)
    ledger.reserve(call("c-0", limits), deadline=Deadline.after(GUARD_S))
    calls = [call(f"c-{n}", limits) for n in range(1, 9)]
    waiting = [in_thread(partial(ledger.reserve, one, deadline=Deadline.never())) for one in calls]
    until_waiting(store, 8)

    ledger.settle("c-0", 100, 100)

    for thread, _ in waiting:
        thread.join(GUARD_S)
    errors = [results[0] for _, results in waiting]
    assert all(isinstance(error, BudgetExhaustedError) for error in errors)
    assert events.count(Refusal("session", "acme/s-1", "exhausted")) == 8


def test_an_exhausted_budget_says_figures_and_when_to_come_back(clock: FakeClock) -> None:
    """Scope, limit, used, reserved, asked, and the seconds to the next window."""
    ledger, _ = open_ledger(MemoryStore(clock), clock=clock)
    limits = scopes(session=200)
    ledger.reserve(call("c-1", limits), deadline=Deadline.after(5, clock))
    ledger.settle("c-1", 100, 95)

    with pytest.raises(BudgetExhaustedError) as caught:
        ledger.reserve(call("c-2", limits), deadline=Deadline.after(5, clock))

    error = caught.value
    figures = (error.scope, error.limit_tokens, error.used_tokens, error.reserved_tokens, error.asked_tokens)
    assert figures == ("session:acme/s-1", 200, 195, 0, 110)
    assert error.retry_after_s == pytest.approx(86_400 - clock.time() % 86_400, abs=1)
    assert "budget grant session:acme/s-1" in str(error)


def test_an_impossible_call_is_not_worth_a_retry() -> None:
    """Larger than the whole budget: no Retry-After."""
    ledger, _ = open_ledger(MemoryStore())

    with pytest.raises(BudgetImpossibleError) as caught:
        ledger.reserve(call("c-1", scopes(turn=50)), deadline=Deadline.after(GUARD_S))

    assert caught.value.retry_after_s is None


def test_a_store_that_fails_refuses() -> None:
    """Fail closed: no reservation, a typed error."""
    store = FailingStore()
    ledger, _ = open_ledger(store)
    store.broken = True

    with pytest.raises(StoreError):
        ledger.reserve(call("c-1"), deadline=Deadline.after(GUARD_S))


def test_where_the_operator_chose_so_a_failing_store_lets_through_and_says_so(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """`on_store_failure = "allow"`: each use is logged and told, and the call's later steps are no errors."""
    store = FailingStore()
    ledger, events = open_ledger(store, on_store_failure="allow")
    store.broken = True

    for number in range(2):
        held = ledger.reserve(call(f"c-{number}"), deadline=Deadline.after(GUARD_S))
        ledger.dispatch(held.id)
        assert ledger.extend(held.id, 5) == 5
        ledger.settle(held.id, 10, 10)

    assert held.output_tokens == 100
    assert [type(event) for event in events] == [StoreFailureAllowed, StoreFailureAllowed]
    assert sum("let through unrecorded" in record.message for record in caplog.records) == 2


def test_what_a_failing_store_could_not_take_is_posted_when_it_is_back() -> None:
    """A moment's failure leaves nothing reserved for the rest of the process's life."""
    store = FailingStore()
    ledger, _ = open_ledger(store)
    limits = scopes()
    ledger.reserve(call("c-1", limits), deadline=Deadline.after(GUARD_S))
    store.broken = True
    with pytest.raises(StoreError):
        ledger.release("c-1")
    store.broken = False

    ledger._beat()

    assert idle(store, limits)


def test_what_never_succeeds_does_not_keep_the_rest_from_being_posted() -> None:
    """Each is tried; the failure is told at the end, and tried again at the next beat."""
    store = FailingStore()
    ledger, _ = open_ledger(store)
    limits = scopes()
    for number in range(3):
        ledger.reserve(call(f"c-{number}", limits), deadline=Deadline.after(GUARD_S))
    store.broken = True
    for number in range(3):
        with pytest.raises(StoreError):
            ledger.release(f"c-{number}")
    store.broken = False
    store.unreadable = "c-0"

    with pytest.raises(StoreError, match="cannot be read"):
        ledger._beat()
    left = store.balances(limits)[0].reserved
    store.unreadable = ""
    ledger._beat()

    assert left == 200
    assert idle(store, limits)


def test_more_output_for_what_was_never_reserved_is_refused_in_either_mode(tmp_path: Path) -> None:
    """`allow` is for a store that fails, not for a reservation that it does not know."""
    for mode in ("refuse", "allow"):
        ledger = TokenLedger(SqliteStore(tmp_path / f"{mode}.db"), on_store_failure=mode, heartbeat_s=None)

        with pytest.raises(ReservationLostError):
            ledger.extend("nobody", 1_000)
        ledger.close()


def test_the_heart_goes_on_after_a_failure_that_nobody_expected(caplog: pytest.LogCaptureFixture) -> None:
    """Neighbours would else take what this process holds; the failure is logged with its trace."""
    beats, told, again = 0, threading.Event(), threading.Event()

    def beat() -> None:
        nonlocal beats
        beats += 1
        if beats == 1:
            raise RuntimeError("a surprise")
        told.set()
        again.wait(GUARD_S)

    heart = LedgerHeartbeat(beat, 0.01)
    try:
        assert told.wait(GUARD_S), "the heart stopped"
        failure = heart.failure
    finally:
        again.set()
        heart.stop()

    assert failure is not None
    assert "RuntimeError" in str(failure)
    assert any(record.exc_info for record in caplog.records)


def test_a_grant_to_an_unlimited_budget_is_refused() -> None:
    """It would change nothing, and look as if it had."""
    ledger, _ = open_ledger(MemoryStore())

    with pytest.raises(ConfigError, match="no limit"):
        ledger.grant(scopes(session=None)[2], 100)


def test_the_heartbeat_ends_with_the_ledger(tmp_path: Path) -> None:
    """Nothing keeps running, and closing again is harmless."""
    ledger = TokenLedger(SqliteStore(tmp_path / "ledger.db"), heartbeat_s=0.01)

    ledger.close()
    ledger.close()

    assert not [thread for thread in threading.enumerate() if thread.name == "ledger-heartbeat"]
    with pytest.raises(StoreError):
        ledger.reserve(call("c-1"), deadline=Deadline.after(1))
