"""Several openings of one ledger file: each step sees what the others did, and none comes between another's."""

from __future__ import annotations

import random
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from agentao_gov.budget import Reservation, SqliteStore, StoreSettings, failpoints, verify_file
from agentao_gov.budget.store import Crossing, Refused, Waiting
from agentao_gov.errors import StoreError
from tests.budget.calls import balance, call, idle, scopes

LIMITS = scopes(session=1_000)


@pytest.fixture
def open_store(tmp_path: Path) -> Iterator[Callable[[], SqliteStore]]:
    """Opens the one file again: each store is a process's of its own, as far as SQLite can tell."""
    opened: list[SqliteStore] = []

    def opener() -> SqliteStore:
        opened.append(SqliteStore(tmp_path / "ledger.db"))
        return opened[-1]

    yield opener
    for store in opened:
        store.close()
    found = verify_file(tmp_path / "ledger.db")
    assert found.problems == ()


def settled(store: SqliteStore, call_id: str, used: int = 10) -> None:
    """One call from its start to its end."""
    assert isinstance(store.reserve(call(call_id, LIMITS)), Reservation)
    store.dispatch(call_id)
    store.settle(call_id, used, 0, 0)


def test_neighbours_who_take_turns_see_each_others_steps(open_store: Callable[[], SqliteStore]) -> None:
    """Each step of one makes what the other knows outdated: together they never hold or use more than the limit."""
    stores = [open_store() for _ in range(3)]
    dice = random.Random(5)
    held: list[str] = []
    for number in range(400):
        store = dice.choice(stores)
        if held and dice.random() < 0.5:
            # A call may be ended by any of them.
            store.settle(held.pop(dice.randrange(len(held))), 1, 0, 0)
        else:
            answer = store.reserve(call(f"c-{number}", LIMITS, prompt=dice.randrange(1, 200), output=(1, 50)))
            if isinstance(answer, Reservation):
                held.append(answer.id)
            else:
                store.withdraw(f"c-{number}")
        now = balance(store, LIMITS, "session")
        assert now.used + now.reserved <= 1_000
    for name in held:
        stores[0].settle(name, 1, 0, 0)

    balances = [balance(store, LIMITS, "session") for store in stores]
    assert balances[0].used == balances[1].used == balances[2].used > 100
    assert idle(stores[0], LIMITS)


def test_nobody_writes_between_a_decision_and_its_commit(open_store: Callable[[], SqliteStore]) -> None:
    """Both would fit alone: the file is locked from the first look to the commit, and the second sees the first."""
    store, neighbour = open_store(), SqliteStore(open_store().opening.path, lock_wait_s=0.01)
    refused: list[StoreError] = []

    def interfere(point: str) -> None:
        if point != "before_reserve_commit":
            return
        failpoints.install(None)
        with pytest.raises(StoreError, match="locked") as caught:
            neighbour.reserve(call("n-1", LIMITS, prompt=900, output=(1, 1)))
        refused.append(caught.value)

    failpoints.install(interfere)
    try:
        answer = store.reserve(call("c-1", LIMITS, prompt=900, output=(1, 1)))
    finally:
        failpoints.install(None)

    assert isinstance(answer, Reservation)
    assert len(refused) == 1
    assert isinstance(neighbour.reserve(call("n-1", LIMITS, prompt=900, output=(1, 1))), Waiting)
    assert balance(store, LIMITS, "session").reserved == 901
    neighbour.close()


def test_a_copy_put_back_through_sqlite_is_refused(tmp_path: Path) -> None:
    """The path, the file and its counters are right, and the next entry's number is free: only the one before tells."""
    store = SqliteStore(tmp_path / "ledger.db")
    settled(store, "c-0")
    with closing(sqlite3.connect(tmp_path / "copy.db")) as copy:
        store.opening.connection.backup(copy)
        for number in range(1, 4):
            settled(store, f"c-{number}")
        with closing(sqlite3.connect(tmp_path / "ledger.db")) as restored:
            copy.backup(restored)

    with pytest.raises(StoreError, match="older copy"):
        store.reserve(call("c-9", LIMITS))

    store.close()


def test_an_interrupt_before_the_commit_changes_nothing(open_store: Callable[[], SqliteStore]) -> None:
    """What was not committed is not held, and the next step goes on from what the file says."""
    store = open_store()
    settled(store, "c-0", used=0)

    def interrupt(point: str) -> None:
        if point == "before_reserve_commit":
            raise KeyboardInterrupt

    failpoints.install(interrupt)
    try:
        with pytest.raises(KeyboardInterrupt):
            store.reserve(call("c-8", LIMITS, prompt=900, output=(1, 1)))
    finally:
        failpoints.install(None)

    assert isinstance(store.reserve(call("c-9", LIMITS, prompt=900, output=(1, 1))), Reservation)
    assert balance(store, LIMITS, "session").reserved == 901


def test_who_asks_later_hears_of_an_answer_that_came_before(open_store: Callable[[], SqliteStore]) -> None:
    """The file looks as it did when another call's answer was asked for; this one's has come all the same."""
    spender, waiter = open_store(), open_store()
    spender.reserve(call("large", LIMITS, prompt=900, output=(1, 1)))
    assert isinstance(waiter.reserve(call("waits", LIMITS, prompt=500, output=(1, 1))), Waiting)
    spender.settle("large", 1, 0, 0)

    assert waiter.answered([]) == []
    assert waiter.answered(["waits"]) == ["waits"]


def test_a_closed_store_says_so(tmp_path: Path) -> None:
    """Also to a turn that was given up and comes back."""
    store = SqliteStore(tmp_path / "ledger.db")
    for number in range(3):
        settled(store, f"c-{number}")
    store.close()

    with pytest.raises(StoreError):
        store.reserve(call("c-9", LIMITS))


def test_whoever_waits_elsewhere_is_served_by_the_step_that_gives_tokens_back(
    open_store: Callable[[], SqliteStore],
) -> None:
    """To wait leaves no entry in the journal; whoever settles looks for it all the same."""
    spender, waiter = open_store(), open_store()
    for number in range(3):
        settled(spender, f"c-{number}", used=0)
    spender.reserve(call("large", LIMITS, prompt=900, output=(1, 1)))
    spender.reserve(call("small", LIMITS, prompt=1, output=(1, 1)))

    assert isinstance(waiter.reserve(call("waits", LIMITS, prompt=500, output=(1, 1))), Waiting)
    spender.settle("large", 1, 0, 0)

    assert waiter.answered(["waits"]) == ["waits"]
    assert isinstance(waiter.reserve(call("waits", LIMITS, prompt=500, output=(1, 1))), Reservation)


def test_a_newcomer_does_not_overtake_one_who_waits_elsewhere(open_store: Callable[[], SqliteStore]) -> None:
    """It would fit, and nothing in this process waits."""
    spender, waiter = open_store(), open_store()
    for number in range(3):
        settled(spender, f"c-{number}", used=0)
    spender.reserve(call("large", LIMITS, prompt=900, output=(1, 1)))
    assert isinstance(waiter.reserve(call("waits", LIMITS, prompt=500, output=(1, 1))), Waiting)

    assert isinstance(spender.reserve(call("newcomer", LIMITS, prompt=1, output=(1, 1))), Waiting)


def test_an_owner_that_was_given_up_registers_again_first(open_store: Callable[[], SqliteStore]) -> None:
    """Else its next reservation would be nobody's, and given back under its feet."""
    store, neighbour = open_store(), open_store()
    for number in range(3):
        settled(store, f"c-{number}")
    neighbour.opening.connection.execute("DELETE FROM owners WHERE id = ?", (store.owner_id,))

    store.reserve(call("c-9", LIMITS))
    neighbour.heartbeat()

    assert balance(neighbour, LIMITS).reserved == 200


def test_soft_thresholds_and_changed_limits_are_seen(open_store: Callable[[], SqliteStore]) -> None:
    """Each is one more entry of the same step."""
    store = open_store()
    store.settings = StoreSettings(warn_at=(0.5, 0.9))
    for number in range(3):
        settled(store, f"c-{number}", used=0)

    crossings: list[Crossing] = []
    for number in range(10):
        store.reserve(call(f"d-{number}", LIMITS, prompt=99, output=(1, 1)))
        crossings += store.settle(f"d-{number}", 95, 0, 0).crossings

    assert [(crossing.scope.kind, crossing.threshold) for crossing in crossings] == [("session", 0.5), ("session", 0.9)]
    narrower = scopes(session=960)
    assert isinstance(store.reserve(call("e", narrower, prompt=20, output=(1, 1))), Refused)
    assert isinstance(store.reserve(call("f", LIMITS, prompt=20, output=(1, 1))), Reservation)
