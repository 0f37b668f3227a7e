"""What is old is replaced by a checkpoint: the proof goes on, the space comes back, and memory stays where it is."""

from __future__ import annotations

import gc
import signal
import sqlite3
import tracemalloc
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from agentao_gov.budget import MemoryStore, RedisStore, Reservation, SqliteStore, Store, failpoints, verify_file
from agentao_gov.budget.journal import piece, plan
from agentao_gov.budget.redis.session import link
from agentao_gov.budget.sqlite.tables import plan_cut
from agentao_gov.budget.sqlite.transaction import Transaction
from agentao_gov.budget.types import ReservationLostError
from agentao_gov.errors import StoreError
from tests.budget.calls import balance, call, idle, scopes
from tests.budget.processes import start
from tests.budget.stores import ALL, LASTING, OpenStore, opener
from tests.support.clock import FakeClock

DAY_S = 86_400
RETAIN_S = 2 * DAY_S
LIMITS = scopes()


@pytest.fixture(params=LASTING)
def short(request: pytest.FixtureRequest, tmp_path: Path, clock: FakeClock) -> OpenStore:
    """Opens a ledger that keeps its journal for two days."""
    return opener(request, tmp_path, clock, RETAIN_S)


@pytest.fixture(params=ALL)
def kept(request: pytest.FixtureRequest, tmp_path: Path, clock: FakeClock) -> Iterator[Store]:
    """A ledger of any kind that keeps its journal for two days."""
    store = opener(request, tmp_path, clock, RETAIN_S)()
    yield store
    store.close()


def many(store: Store) -> int:
    """So many calls that something is cut: in memory it is the number of entries that makes it cut."""
    return 600 if isinstance(store, MemoryStore) else 5


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


def test_a_long_life_keeps_what_is_recent_and_proves_the_rest(short: OpenStore, clock: FakeClock) -> None:
    """After ten days the journal holds some four; the tenant's days, today's balances and the chain stay."""
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
    assert sum(1 for b in balances if b.scope.kind == "user") <= 8
    assert balance(store, LIMITS).used == 10
    assert idle(store, LIMITS)
    store.close()
    again = short()
    assert again.verify().ok
    again.close()


def test_a_call_that_is_open_over_the_cut_stays(short: OpenStore, clock: FakeClock) -> None:
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


def test_the_same_call_again_is_still_the_same(short: OpenStore, clock: FakeClock) -> None:
    """Within the time that is kept a replayed settlement posts nothing."""
    store = short()
    live(store, clock, 4)
    store.reserve(call("c", LIMITS))
    store.settle("c", 5, 5, 0)
    clock.advance(DAY_S)
    store.heartbeat()

    assert not store.settle("c", 50, 50, 0).posted
    store.close()


def fill(store: Store, prefix: str, calls: int) -> None:
    """Calls of other turns, so that time and the journal go on."""
    limits = scopes(names=("acme", "bob", "other", f"t-{prefix}"))
    for number in range(calls):
        store.reserve(call(f"{prefix}-{number}", limits))
        store.settle(f"{prefix}-{number}", 1, 1, 0)


def test_a_turn_that_goes_on_after_a_long_rest_keeps_its_budget(kept: Store, clock: FakeClock) -> None:
    """Its last call is long cut from the journal, but the one that is open now still posts to its line."""
    limits = scopes(turn=500)
    kept.reserve(call("first", limits))
    kept.settle("first", 150, 50, 0)
    clock.advance(2 * DAY_S)
    fill(kept, "before", many(kept))
    clock.advance(4 * DAY_S)
    kept.reserve(call("open", limits))
    kept.dispatch("open")
    clock.advance(DAY_S)
    fill(kept, "after", many(kept))
    kept.heartbeat()
    (first, *_) = kept.journal()

    held = balance(kept, limits, "turn")
    kept.settle("open", 100, 40, 0)
    fill(kept, "later", 5)

    assert first[0] > 3, "nothing was cut"
    assert (held.used, held.reserved) == (200, 200)
    after = balance(kept, limits, "turn")
    assert (after.used, after.reserved) == (340, 0)
    assert idle(kept, limits)
    found = kept.verify()
    assert found.ok, found.problems


def test_a_line_stays_for_the_correction_of_a_later_call(kept: Store, clock: FakeClock) -> None:
    """A turn rested for more than a day; the call it made then is kept, so what it posts to is kept with it."""
    limits = scopes(turn=500)
    kept.reserve(call("first", limits))
    kept.settle("first", 80, 20, 0)
    clock.advance(1.5 * DAY_S)
    fill(kept, "between", many(kept))
    clock.advance(0.5 * DAY_S)
    kept.reserve(call("late", limits))
    kept.dispatch("late")
    kept.charge("late", 100, 100)
    clock.advance(1.9 * DAY_S)
    fill(kept, "after", many(kept))
    kept.heartbeat()
    (first, *_) = kept.journal()

    before = balance(kept, limits, "turn").used
    settlement = kept.settle("late", 100, 20, 0)

    assert first[0] > 3, "nothing was cut"
    assert before == 300
    assert settlement.posted
    assert balance(kept, limits, "turn").used == 220
    found = kept.verify()
    assert found.ok, found.problems


def test_a_correction_of_a_call_that_is_no_longer_kept_is_refused(kept: Store, clock: FakeClock) -> None:
    """What was charged for it stands: there is nothing left that could be corrected, and nothing to try again."""
    limits = scopes(turn=500)
    kept.reserve(call("charged", limits))
    kept.dispatch("charged")
    kept.charge("charged", 100, 100)
    for day in range(8):
        clock.advance(DAY_S)
        fill(kept, f"day-{day}", many(kept))
        kept.heartbeat()
    before = kept.all_balances("all")

    with pytest.raises(ReservationLostError):
        kept.settle("charged", 100, 20, 0)

    assert kept.all_balances("all") == before
    assert kept.verify().ok


def test_a_turn_that_rests_for_less_than_a_day_keeps_its_budget(
    short: OpenStore, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is open on it, and its calls are long cut: it is over only a day after its last one."""
    monkeypatch.setattr("agentao_gov.budget.journal._PIECE", 20)
    store = short()
    store.reserve(call("first", LIMITS))
    store.settle("first", 150, 50, 0)
    for hour in range(10):
        clock.advance(7_200)
        fill(store, f"hour-{hour}", 3)
    clock.advance(4 * DAY_S)
    fill(store, "after", 1)
    starts, used = set(), set()

    for _ in range(5):
        store.heartbeat()
        starts.add(next(iter(store.journal()))[0])
        used.add(balance(store, LIMITS, "turn").used)
    clock.advance(4 * DAY_S)
    fill(store, "end", 1)
    store.heartbeat()

    assert len(starts) > 3
    assert used == {200}
    assert balance(store, LIMITS, "turn").used == 0
    assert store.verify().ok
    store.close()


def rested(store: Store, clock: FakeClock) -> None:
    """A turn whose line may go with what is cut next."""
    store.reserve(call("first", LIMITS))
    store.settle("first", 150, 50, 0)
    clock.advance(2 * DAY_S)
    fill(store, "before", 5)
    clock.advance(4 * DAY_S)
    fill(store, "after", 5)


def test_a_line_taken_up_between_plan_and_cut_stays_in_a_file(tmp_path: Path, clock: FakeClock) -> None:
    """The plan is made without the lock; whoever reserves meanwhile keeps what it reserved on."""
    store = SqliteStore(tmp_path / "ledger.db", clock, retain_s=RETAIN_S)
    rested(store, clock)
    planned = plan_cut(store.opening.file.sql, clock.time() * 1000, RETAIN_S * 1000)
    assert planned is not None
    assert planned.over
    store.reserve(call("open", LIMITS))

    with Transaction(store.opening, "cut"):
        store.opening.records.cut(planned)

    assert next(iter(store.journal()))[0] == 1
    store.settle("open", 5, 5, 0)
    store.heartbeat()
    assert next(iter(store.journal()))[0] > 1
    assert store.verify().ok
    assert balance(store, LIMITS, "turn").reserved == 0
    store.close()


@pytest.mark.redis
def test_a_line_taken_up_between_plan_and_cut_stays_in_redis(redis_url: str, tmp_path: Path, clock: FakeClock) -> None:
    """As in a file."""
    store = RedisStore(redis_url, clock=clock, name=tmp_path.name, retain_s=RETAIN_S)
    store.reserve(call("open", LIMITS))
    checkpoint = store._reader.checkpoint()
    rows = list(store.journal())[:-1]
    planned = plan(checkpoint, rows, lambda *_: True, (), link)
    assert planned is not None
    assert "turn:t-1 UTC turn" in planned.over

    store.cut(planned)

    assert next(iter(store.journal()))[0] == 1
    store.settle("open", 5, 5, 0)
    assert store.verify().ok
    store.close()


def test_a_lines_number_is_never_given_to_another(tmp_path: Path, clock: FakeClock) -> None:
    """The journal knows lines by their number: a later line under the same one would be taken for it."""
    store = SqliteStore(tmp_path / "ledger.db", clock, retain_s=RETAIN_S)
    rested(store, clock)
    highest = int(store.opening.connection.execute("SELECT max(id) FROM balances").fetchone()[0])
    clock.advance(7 * DAY_S)
    store.reserve(call("last", LIMITS))
    store.settle("last", 1, 1, 0)
    with closing(sqlite3.connect(store.opening.path)) as sql:
        before = {row[0] for row in sql.execute("SELECT id FROM balances")}
    store.heartbeat()
    with closing(sqlite3.connect(store.opening.path)) as sql:
        gone = before - {row[0] for row in sql.execute("SELECT id FROM balances")}
        assert gone
        # As if the highest had been among them: it is what SQLite would give away first.
        (given,) = sql.execute("SELECT seq FROM sqlite_sequence WHERE name = 'balances'").fetchone()
    assert given >= max(before) >= highest

    for day in range(6):
        fill(store, f"new-{day}", 2)
        clock.advance(DAY_S)
        store.heartbeat()
        found = store.verify()
        assert found.ok, found.problems
    store.close()


def test_a_clock_that_is_ahead_for_a_beat_gives_nobody_a_new_budget(kept: Store, clock: FakeClock) -> None:
    """Looking and upkeep are no events: once the clock is right again, day and turn are what they were."""
    fill(kept, "some", 5)
    kept.reserve(call("c", LIMITS))
    kept.settle("c", 5, 5, 0)
    before, entries = kept.balances(LIMITS), len(list(kept.journal()))

    clock.step_wall(31 * DAY_S)
    kept.heartbeat()
    kept.balances(LIMITS)
    kept.all_balances()
    clock.step_wall(-31 * DAY_S)

    assert kept.balances(LIMITS) == before
    assert balance(kept, LIMITS, "turn").used == 10
    assert len(list(kept.journal())) == entries
    assert kept.verify().ok


def test_a_cut_is_at_the_time_of_the_last_entry(short: OpenStore, clock: FakeClock) -> None:
    """Also where there is something to cut, a clock that is ahead moves nobody into another day."""
    store = short()
    rested(store, clock)
    window = store.balances(LIMITS)[0].window

    clock.step_wall(DAY_S)
    store.heartbeat()
    clock.step_wall(-DAY_S)

    assert next(iter(store.journal()))[0] > 1
    assert store.balances(LIMITS)[0].window == window
    assert store.verify().ok
    store.close()


def live_hourly(store: Store, clock: FakeClock, hours: int, prefix: str = "hour") -> None:
    """A call an hour, each with a beat."""
    for hour in range(hours):
        clock.advance(3_600)
        fill(store, f"{prefix}-{hour}", 1)
        store.heartbeat()


def test_little_that_is_old_does_not_move_a_large_checkpoint(tmp_path: Path, clock: FakeClock) -> None:
    """Every beat would else read, parse and write anew all that tenants ever used."""
    store = SqliteStore(tmp_path / "ledger.db", clock, retain_s=RETAIN_S)
    live_hourly(store, clock, 3 * 24 + 2)
    before = store.opening.connection.execute("SELECT number, size FROM checkpoint").fetchone()
    statements: list[str] = []
    store.opening.file.sql.set_trace_callback(statements.append)

    # Each beat finds some entries that are past their time.
    live_hourly(store, clock, 6, "later")

    store.opening.file.sql.set_trace_callback(None)
    after = store.opening.connection.execute("SELECT number, size FROM checkpoint").fetchone()
    assert before[1] > 0
    assert after == before
    assert any("size FROM checkpoint" in statement for statement in statements)
    assert not any("body FROM checkpoint" in statement for statement in statements)
    clock.advance(DAY_S)
    fill(store, "next", 1)
    store.heartbeat()
    assert store.opening.connection.execute("SELECT number FROM checkpoint").fetchone()[0] > before[0]
    store.close()


@pytest.mark.redis
def test_little_that_is_old_does_not_move_a_checkpoint_in_redis(
    redis_url: str, tmp_path: Path, clock: FakeClock
) -> None:
    """As in a file."""
    store = RedisStore(redis_url, clock=clock, name=tmp_path.name, retain_s=RETAIN_S)
    live_hourly(store, clock, 3 * 24 + 2)
    before = store._reader.checkpoint()

    live_hourly(store, clock, 6, "later")

    assert before.number > 0
    assert store._reader.checkpoint() == before
    store.close()


def test_a_piece_grows_with_what_has_to_be_written_anew() -> None:
    """So that the work of a cut is in proportion to what it lets go of."""
    assert piece(0) == 4_000
    assert piece(3_650_000) == 36_500


CHANGES = [
    "UPDATE checkpoint SET body = replace(body, 'acme', 'acmf')",
    "UPDATE checkpoint SET number = number + 1",
    "UPDATE checkpoint SET hash = zeroblob(32)",
    "UPDATE checkpoint SET body = ''",
    "UPDATE checkpoint SET size = size + 1",
    "UPDATE checkpoint SET body = 'nonsense'",
    "DELETE FROM journal WHERE number = (SELECT min(number) FROM journal)",
    "UPDATE balances SET used = used + 1 WHERE id = (SELECT min(id) FROM balances WHERE kind = 'tenant')",
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
    store.opening.file.sync(store.opening.high_water)
    large = path.stat().st_size
    clock.advance(6 * DAY_S)
    store.reserve(call("later", LIMITS))
    store.settle("later", 5, 5, 0)

    for _ in range(20):
        store.heartbeat()

    store.opening.file.sync(store.opening.high_water)
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
        # What is garbage already is not remembered; when it goes is chance.
        gc.collect()
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
    # Without its orderly end.
    store.opening.connection.close()
    store.opening.file.sql.close()
    store.opening.high_water.close()

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
