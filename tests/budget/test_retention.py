"""What is old is replaced by a checkpoint: the proof goes on, the space comes back, and memory stays where it is."""

from __future__ import annotations

import signal
import sqlite3
import tracemalloc
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from agentao_gov.budget import MemoryStore, RedisStore, Reservation, SqliteStore, Store, failpoints, verify_file
from agentao_gov.errors import StoreError
from tests.budget.calls import balance, call, idle, scopes
from tests.budget.processes import start
from tests.support.clock import FakeClock

DAY_S = 86_400
RETAIN_S = 2 * DAY_S
LIMITS = scopes()


@pytest.fixture(params=["sqlite", pytest.param("redis", marks=pytest.mark.redis)])
def short(request: pytest.FixtureRequest, tmp_path: Path, clock: FakeClock) -> Callable[[], Store]:
    """Opens a ledger that keeps its journal for two days."""
    if request.param == "sqlite":
        return lambda: SqliteStore(tmp_path / "ledger.db", clock, retain_s=RETAIN_S)
    url = request.getfixturevalue("redis_url")
    return lambda: RedisStore(url, clock=clock, name=tmp_path.name, retain_s=RETAIN_S)


def live(store: Store, clock: FakeClock, days: int, calls: int = 20) -> None:
    """Days of turns, each with a few calls and some of every ending."""
    for day in range(days):
        for number in range(calls):
            name = f"{day}-{number}"
            limits = scopes(names=("acme", "ann", f"s-{number % 3}", f"t-{name}"))
            store.reserve(call(name, limits))
            store.dispatch(name)
            if number % 7 == 5:
                store.charge(name, 100, 50)
            elif number % 7 == 6:
                store.release(name)
            else:
                store.settle(name, 80, 20, 0)
        clock.advance(DAY_S)
        store.heartbeat()


def test_a_long_life_keeps_what_is_recent_and_proves_the_rest(short: Callable[[], Store], clock: FakeClock) -> None:
    """After ten days the journal holds some two; the tenant's days, today's balances and the chain stay."""
    store = short()
    live(store, clock, 10)
    store.reserve(call("today", LIMITS))
    store.settle("today", 5, 5, 0)

    result = store.verify()

    kept = list(store.journal())
    assert result.ok, result.problems
    assert kept[-1][0] == result.entries
    assert 0 < len(kept) < result.entries / 2
    balances = store.all_balances("all")
    assert sum(1 for b in balances if b.scope.kind == "tenant") == 11
    assert sum(1 for b in balances if b.scope.kind == "user") <= 6
    assert balance(store, LIMITS).used == 10
    assert idle(store, LIMITS)
    store.close()
    again = short()
    assert again.verify().ok
    again.close()


def test_a_call_that_is_open_over_the_cut_stays(short: Callable[[], Store], clock: FakeClock) -> None:
    """However old it is: what holds tokens is never let go of, and it settles in its own day."""
    store = short()
    store.reserve(call("slow", scopes(names=("acme", "bob", "slow", "t-slow"))))
    store.dispatch("slow")
    live(store, clock, 6, 10)

    before = store.verify()
    store.settle("slow", 70, 7, 0)

    (first,) = (b for b in store.all_balances("all") if b.scope.key == "acme/slow")
    assert before.ok, before.problems
    assert (first.used, first.reserved) == (77, 0)
    assert store.verify().ok
    live(store, clock, 4, 10)
    assert store.verify().ok
    store.close()


def test_the_same_call_again_is_still_the_same(short: Callable[[], Store], clock: FakeClock) -> None:
    """Within the time that is kept a replayed settlement posts nothing."""
    store = short()
    live(store, clock, 4)
    store.reserve(call("c", LIMITS))
    store.settle("c", 5, 5, 0)
    clock.advance(DAY_S)
    store.heartbeat()

    assert not store.settle("c", 50, 50, 0).posted
    store.close()


CHANGES = [
    "UPDATE checkpoint SET body = replace(body, 'acme', 'acmf')",
    "UPDATE checkpoint SET number = number + 1",
    "UPDATE checkpoint SET hash = zeroblob(32)",
    "UPDATE checkpoint SET body = ''",
    "UPDATE checkpoint SET body = 'nonsense'",
    "DELETE FROM journal WHERE number = (SELECT min(number) FROM journal)",
    "UPDATE lines SET used = used + 1 WHERE id = (SELECT min(id) FROM lines WHERE kind = 'tenant')",
    "UPDATE folded SET number = number - 20",
]


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_checkpoint_is_found(tmp_path: Path, clock: FakeClock, change: str) -> None:
    """It is bound to the chain from both sides."""
    path = tmp_path / "ledger.db"
    store = SqliteStore(path, clock, retain_s=RETAIN_S)
    live(store, clock, 8)
    store.close()
    assert verify_file(path).ok
    with closing(sqlite3.connect(path)) as sql:
        assert sql.execute(change).rowcount > 0
        sql.commit()

    try:
        result = verify_file(path)
    except StoreError:
        return
    assert not result.ok


@pytest.mark.slow
def test_space_comes_back(tmp_path: Path, clock: FakeClock) -> None:
    """A busy month does not weigh for ever, and nobody has to stop the service for it."""
    path = tmp_path / "ledger.db"
    store = SqliteStore(path, clock, retain_s=RETAIN_S)
    live(store, clock, 1, 2_000)
    store.file.sync(store.mark)
    large = path.stat().st_size
    clock.advance(6 * DAY_S)

    for _ in range(20):
        store.heartbeat()

    store.file.sync(store.mark)
    assert path.stat().st_size < large * 0.8
    assert store.verify().ok
    store.close()


@pytest.mark.slow
@pytest.mark.timeout(60)
@pytest.mark.parametrize("kind", ["memory", "sqlite"])
def test_memory_stays_where_it_is(kind: str, tmp_path: Path, clock: FakeClock) -> None:
    """Every turn opens a line and some calls of its own; after some hundred turns no more is remembered."""
    store: Store = MemoryStore(clock) if kind == "memory" else SqliteStore(tmp_path / "ledger.db", clock)

    def turns(count: int, prefix: str) -> int:
        for number in range(count):
            limits = scopes(names=("acme", "ann", f"s-{number % 20}", f"{prefix}-{number}"))
            for step in range(2):
                name = f"{prefix}-{number}-{step}"
                store.reserve(call(name, limits))
                store.settle(name, 80, 20, 0)
            clock.advance(30)
        return tracemalloc.get_traced_memory()[0]

    turns(50, "warm")
    tracemalloc.start()
    try:
        settled = turns(600, "first")
        later = turns(600, "second")
    finally:
        tracemalloc.stop()

    assert later < settled + 200 * 1_024
    assert store.verify().ok
    store.close()


def test_what_is_kept_in_memory_proves_itself(clock: FakeClock) -> None:
    """Also past the point where its journal is cut; an open call and a line in use stay."""
    store = MemoryStore(clock)
    store.reserve(call("held", LIMITS))
    for number in range(3_000):
        store.reserve(call(f"c-{number}", LIMITS))
        store.settle(f"c-{number}", 80, 20, 0)

    rows = list(store.journal())

    assert len(rows) < 5_000 < rows[-1][0]
    assert store.verify().ok
    assert balance(store, LIMITS, "turn").used == 300_000
    store.settle("held", 1, 1, 0)
    assert idle(store, LIMITS)
    assert store.verify().ok


@pytest.mark.slow
@pytest.mark.timeout(60)
@pytest.mark.parametrize("point", failpoints.UPKEEP_POINTS)
def test_a_kill_during_upkeep_changes_nothing(tmp_path: Path, point: str) -> None:
    """Before or after its commit: every balance is what it was, and the proof holds."""
    path = tmp_path / "ledger.db"
    clock = FakeClock()
    store = SqliteStore(path, clock, retain_s=RETAIN_S)
    live(store, clock, 1)
    clock.advance(5 * DAY_S)
    store.reserve(call("last", LIMITS))
    store.settle("last", 5, 5, 0)
    expected = store.all_balances("all")
    # Without its orderly end, so that the tables are behind the journal.
    store.connection.close()
    store.file.sql.close()
    store.mark.close()

    worker = start({"mode": "upkeep", "store": str(path), "point": point, "now": clock.time(), "retain_s": RETAIN_S})
    worker.communicate(timeout=40)

    assert worker.returncode == -signal.SIGKILL, f"{point} was not reached"
    found = verify_file(path)
    assert found.ok, found.problems
    again = SqliteStore(path, clock, retain_s=RETAIN_S)
    tenants = [b for b in again.all_balances("all") if b.scope.kind == "tenant"]
    assert tenants == [b for b in expected if b.scope.kind == "tenant"]
    assert balance(again, LIMITS).used == 10
    assert idle(again, LIMITS)
    assert isinstance(again.reserve(call("next", LIMITS)), Reservation)
    assert again.verify().ok
    again.close()
