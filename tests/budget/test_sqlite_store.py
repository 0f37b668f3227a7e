"""The ledger's file: private, fail-closed, shared, and every changed byte found."""

from __future__ import annotations

import os
import random
import shutil
import signal
import sqlite3
import stat
from contextlib import closing
from pathlib import Path

import pytest

from agentao_gov.budget import Reservation, SqliteStore, verify_file
from agentao_gov.errors import StoreError
from tests.budget.calls import balance, call, idle, scopes
from tests.support.clock import FakeClock

LIMITS = scopes(session=10**7)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "ledger.db"


def spend(store: SqliteStore, count: int = 3, start: int = 0) -> None:
    for number in range(start, start + count):
        store.reserve(call(f"c-{number}", LIMITS))
        store.dispatch(f"c-{number}")
        store.settle(f"c-{number}", 80, 20, 0)


def spent(path: Path, count: int = 3) -> None:
    store = SqliteStore(path)
    spend(store, count)
    store.close()


def test_files_and_directory_are_private(path: Path) -> None:
    """0700 and 0600 from the first moment, for the log and the mark too."""
    store = SqliteStore(path)
    spend(store)

    modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in path.parent.iterdir()}

    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert set(modes) == {"ledger.db", "ledger.db-wal", "ledger.db-shm", "ledger.db.mark"}
    assert set(modes.values()) == {0o600}
    store.close()


def test_a_ledger_goes_on_after_a_restart(path: Path) -> None:
    """Balances, thresholds and the chain are those of before."""
    spent(path)

    store = SqliteStore(path)
    spend(store, start=3)

    assert balance(store, LIMITS).used == 600
    assert store.verify().ok
    store.close()


def test_a_file_locked_by_another_program_refuses(path: Path) -> None:
    """After the lock wait, with a typed error; and it goes on when the lock is gone."""
    store = SqliteStore(path, lock_wait_s=0.05)
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreError, match="locked") as caught:
            store.reserve(call("c-1", LIMITS))

    assert caught.value.exit_code == 9
    assert isinstance(store.reserve(call("c-1", LIMITS)), Reservation)
    store.close()


def test_a_full_disk_refuses(path: Path) -> None:
    """And what could not be written is not half written."""
    store = SqliteStore(path)
    spend(store)
    pages = store.opening.connection.execute("PRAGMA page_count").fetchone()[0]
    store.opening.connection.execute(f"PRAGMA max_page_count={pages}")

    with pytest.raises(StoreError, match="full") as caught:
        spend(store, 1_000, start=10)

    assert caught.value.hint is not None
    store.opening.connection.execute("PRAGMA max_page_count=1000000")
    assert store.verify().ok
    spend(store, 1, start=5_000)
    store.close()


def test_a_read_only_file_refuses(path: Path) -> None:
    """Not one call is admitted that could not be recorded."""
    store = SqliteStore(path)
    store.opening.connection.execute("PRAGMA query_only=ON")

    with pytest.raises(StoreError, match="readonly"):
        store.reserve(call("c-1", LIMITS))
    store.close()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere; the read-only file above covers it")
def test_a_directory_without_permission_refuses(path: Path) -> None:
    """At the start, with the path and what to do."""
    path.parent.mkdir(mode=0o500)

    with pytest.raises(StoreError, match="cannot be used"):
        SqliteStore(path)


@pytest.mark.parametrize("content", [b"", b"not a database, whatever its name says" * 100])
def test_what_is_no_ledger_is_not_used(path: Path, content: bytes) -> None:
    """An empty file becomes one; anything else is left alone."""
    path.parent.mkdir()
    path.write_bytes(content)

    if not content:
        SqliteStore(path).close()
        assert verify_file(path).ok
        return
    with pytest.raises(StoreError):
        SqliteStore(path)
    assert path.read_bytes() == content


def test_another_programs_database_is_not_used(path: Path) -> None:
    """Nothing is written into it."""
    path.parent.mkdir()
    with closing(sqlite3.connect(path)) as other:
        other.execute("CREATE TABLE mine (x)")
        other.commit()

    with pytest.raises(StoreError, match="something else"):
        SqliteStore(path)


def test_a_damaged_file_refuses(path: Path) -> None:
    """A page of garbage in the middle."""
    spent(path, 100)
    with path.open("r+b") as file:
        file.seek(2048 * 3)
        file.write(os.urandom(2048 * 8))

    with pytest.raises(StoreError):
        spent(path, 200)


def test_an_older_copy_refuses(path: Path, tmp_path: Path) -> None:
    """A backup from this morning would have forgotten the day."""
    spent(path)
    shutil.copy(path, tmp_path / "backup.db")
    store = SqliteStore(path)
    spend(store, start=3)
    store.close()
    shutil.copy(tmp_path / "backup.db", path)

    with pytest.raises(StoreError, match="older copy") as caught:
        SqliteStore(path)

    assert caught.value.hint is not None
    assert ".mark" in caught.value.hint


def test_another_ledger_in_its_place_refuses(path: Path, tmp_path: Path) -> None:
    """Also a longer one."""
    spent(path)
    spent(tmp_path / "other" / "ledger.db", 20)
    shutil.copy(tmp_path / "other" / "ledger.db", path)

    with pytest.raises(StoreError, match="another ledger"):
        SqliteStore(path)


def test_a_removed_ledger_refuses(path: Path) -> None:
    """Starting from nothing would forget what was spent today; removing the mark as well is a decision."""
    spent(path)
    path.unlink()

    with pytest.raises(StoreError, match="replaced"):
        SqliteStore(path)
    path.unlink()
    path.with_name("ledger.db.mark").unlink()

    store = SqliteStore(path)
    assert balance(store, LIMITS).used == 0
    store.close()


def test_a_file_replaced_under_a_running_process_refuses(path: Path) -> None:
    """What is written into a removed file would be lost."""
    store = SqliteStore(path)
    spend(store)
    path.rename(path.with_name("moved.db"))
    store.opening.file._look_again_s = 0.0

    with pytest.raises(StoreError):
        store.reserve(call("late", LIMITS))
    store.close()


def test_two_clocks_five_minutes_apart_agree_on_the_day(path: Path) -> None:
    """The one that is ahead opens the new day, and the other follows instead of spending in the old one."""
    early, late = FakeClock(wall=1_790_035_000.0), FakeClock(wall=1_790_035_000.0)
    midnight = 1_790_035_200 - 1_790_035_200 % 86_400 + 86_400
    early.advance(midnight - 240 - early.time())
    late.advance(midnight + 60 - late.time())
    behind, ahead = SqliteStore(path, early), SqliteStore(path, late)
    before = behind.balances(LIMITS)[2].window

    first = ahead.reserve(call("c-1", LIMITS))
    second = behind.reserve(call("c-2", LIMITS))

    assert isinstance(first, Reservation)
    assert isinstance(second, Reservation)
    assert first.windows == second.windows
    assert first.windows[0] > before
    behind.close()
    ahead.close()


def test_a_fork_in_the_middle_of_a_step_is_refused_at_once(path: Path) -> None:
    """SQLite's connections do not survive a fork; nor is a lock, held by a thread then, ever given back."""
    store = SqliteStore(path)
    store.reserve(call("c-1", LIMITS))
    steps = (lambda: store.reserve(call("c-2", LIMITS)), store.heartbeat, lambda: store.answered(["c-2"]))
    with store.opening.lock, store.opening.file.lock:
        child = os.fork()
        if child == 0:
            # Whatever hangs or goes wrong here ends the child, and the parent sees how.
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.alarm(10)
            refused = 0
            try:
                for step in steps:
                    with pytest.raises(StoreError, match="fork"):
                        step()
                    refused += 1
                store.close()
            finally:
                os._exit(refused)
        _, status = os.waitpid(child, 0)

    assert os.waitstatus_to_exitcode(status) == len(steps)
    store.settle("c-1", 5, 5, 0)
    assert store.verify().ok
    store.close()


def test_looking_while_a_neighbour_writes_is_no_alarm(path: Path) -> None:
    """A look sees the moment at which it began, and the mark goes on meanwhile."""
    store, neighbour = SqliteStore(path), SqliteStore(path)
    spend(store)
    connection = store.opening.connection
    written = instructions = 0

    def write() -> None:
        nonlocal written, instructions
        instructions += connection.in_transaction
        # The first instructions of the first look fix the moment that is seen.
        if instructions == 8:
            connection.set_progress_handler(None, 0)
            spend(neighbour, start=100 + written, count=1)
            written += 1

    def interfered() -> SqliteStore:
        nonlocal instructions
        instructions = 0
        connection.set_progress_handler(write, 1)
        return store

    seen = [balance(interfered(), LIMITS).used for _ in range(3)]
    interfered().all_balances()

    assert written == 4
    assert seen == [300, 400, 500]
    store.close()
    neighbour.close()


def test_a_row_that_cannot_be_read_is_a_store_error(path: Path) -> None:
    """Not a failure that nobody expects: calls fail closed, and whoever opens the file is told."""
    store = SqliteStore(path)
    store.reserve(call("c-1", LIMITS))
    store.heartbeat()
    with closing(sqlite3.connect(path)) as sql:
        sql.execute("UPDATE reservations SET balances = '1,x'")
        sql.commit()

    for step in (store.heartbeat, lambda: SqliteStore(path)):
        with pytest.raises(StoreError, match="cannot be read"):
            step()
    assert not verify_file(path).ok
    store.close()


def test_a_mark_that_cannot_be_synced_is_a_store_error(path: Path) -> None:
    """The disk may fail there as anywhere."""
    store = SqliteStore(path)
    store.opening.high_water.close()

    with pytest.raises(StoreError):
        store.opening.file.sync(store.opening.high_water)
    store.close()


def test_a_path_with_odd_characters_is_verified(tmp_path: Path) -> None:
    """What means something in an address is a plain character of a file's name."""
    path = tmp_path / "a#b?c%20d.db"
    spent(path)

    result = verify_file(path)

    assert result.ok
    assert result.entries > 3


def test_a_file_that_was_open_to_others_is_closed_to_them(path: Path) -> None:
    """Whoever made it before us, with whatever mask."""
    spent(path)
    beside = [path, *(path.with_name(path.name + end) for end in (".mark", "-wal", "-shm"))]
    for file in beside:
        file.touch()
        file.chmod(0o666)

    store = SqliteStore(path)

    assert {stat.S_IMODE(file.stat().st_mode) for file in beside} == {0o600}
    store.close()


def test_verify_says_so_where_an_open_call_has_lost_its_line(path: Path) -> None:
    """Also where the journal no longer knows of that line; and no balance is below nothing."""
    store = SqliteStore(path)
    store.reserve(call("c-1", LIMITS))
    store.heartbeat()
    with closing(sqlite3.connect(path)) as sql:
        sql.execute("DELETE FROM balances WHERE kind = 'turn'")
        sql.execute("UPDATE balances SET reserved = -20 WHERE kind = 'user'")
        sql.commit()

    problems = verify_file(path).problems

    assert any("c-1 holds tokens of a balance that is not there" in problem for problem in problems)
    assert any("-20 tokens are reserved" in problem for problem in problems)
    store.opening.connection.close()
    store.opening.file.sql.close()
    store.opening.high_water.close()


CHANGES = [
    "UPDATE balances SET used = used + 1 WHERE kind = 'tenant'",
    "UPDATE balances SET granted = granted + 1 WHERE kind = 'session'",
    "UPDATE balances SET key = 'acmf' WHERE key = 'acme'",
    "UPDATE balances SET limit_tokens = limit_tokens + 1 WHERE kind = 'session'",
    "UPDATE balances SET cost = 1 WHERE kind = 'user'",
    "UPDATE reservations SET used = used + 1 WHERE id = 'c-1'",
    "UPDATE reservations SET state = 'released' WHERE id = 'c-1'",
    "UPDATE reservations SET balances = '1,2,3' WHERE id = 'c-1'",
    "UPDATE reservations SET held_prompt = held_prompt + 1 WHERE id = 'c-1'",
    "DELETE FROM reservations WHERE id = 'c-1'",
    "DELETE FROM balances WHERE kind = 'user'",
    "DELETE FROM journal WHERE number = 7",
    "UPDATE journal SET at_ms = at_ms + 1 WHERE number = 7",
    "UPDATE journal SET body = replace(body, 'c-1', 'c-2') WHERE body LIKE '%settle%c-1%'",
    "UPDATE journal SET body = 'nonsense' WHERE number = 5",
    "UPDATE journal SET hash = zeroblob(32) WHERE number = 9",
]


@pytest.mark.parametrize("change", CHANGES)
def test_verify_finds_what_was_changed(path: Path, change: str) -> None:
    """Every figure that the ledger goes by is reproduced from the journal, and the journal proves itself."""
    spent(path)
    with closing(sqlite3.connect(path)) as sql:
        assert sql.execute(change).rowcount > 0
        sql.commit()

    result = verify_file(path)

    assert not result.ok


def figures(path: Path) -> object:
    """Everything that the file says, or that it cannot be read."""
    tables = ("meta", "balances", "reservations", "journal", "checkpoint", "owners", "waiters", "served")
    try:
        with closing(sqlite3.connect(path)) as sql:
            sql.text_factory = bytes
            return [sql.execute(f"SELECT * FROM {table}").fetchall() for table in tables]
    except sqlite3.Error as error:
        return str(error)


def verdict(path: Path) -> bool:
    try:
        return verify_file(path).ok
    except StoreError:
        return False


def test_verify_finds_every_changed_byte_wherever_it_is(path: Path) -> None:
    """One bit in each of some hundred places all over the file: where a figure changes, verify says so.

    What it may pass is a byte that nobody reads: unused space, and flags that change nothing.
    """
    spent(path, 8)
    original, sound = path.read_bytes(), figures(path)
    header, used = 100, [offset for offset, byte in enumerate(original) if byte]
    chosen = random.Random(3).sample([offset for offset in used if offset >= header], 400)
    found = 0

    for offset in chosen:
        changed = bytearray(original)
        changed[offset] ^= 1
        path.write_bytes(changed)
        if verdict(path):
            assert figures(path) == sound, f"byte {offset} changed a figure unseen"
        else:
            found += 1

    path.write_bytes(original)
    assert found > len(chosen) / 2
    assert verdict(path)


def test_verify_does_not_stop_those_who_write(path: Path) -> None:
    """It sees one moment, and the others go on."""
    store = SqliteStore(path)
    spend(store)
    rows = iter(store.journal())
    next(rows)

    spend(store, start=3)

    assert len(list(rows)) < sum(1 for _ in store.journal())
    assert store.verify().ok
    assert idle(store, LIMITS)
    store.close()
