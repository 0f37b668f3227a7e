"""What happens to a ledger's files while it is open: nobody else's copy is written to, and nobody loses the log."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from agentao_gov.budget import SqliteStore
from agentao_gov.budget.reservation import Price
from agentao_gov.budget.sqlite import file
from agentao_gov.budget.store import StoreSettings
from agentao_gov.budget.types import CALL_TOKENS_MAX
from agentao_gov.errors import StoreError
from tests.budget.calls import balance, call, scopes

LIMITS = scopes(session=10**7)

OPEN_AND_CLOSE = "import sys, pathlib, agentao_gov.budget as b; b.SqliteStore(pathlib.Path(sys.argv[1])).close()"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger.db"


@pytest.fixture(autouse=True)
def looks_always(monkeypatch: pytest.MonkeyPatch) -> None:
    """The files are looked at twenty times a second; here at every step."""
    monkeypatch.setattr(file, "_LOOK_S", 0.0)


def spend(store: SqliteStore, prefix: str, count: int = 20) -> None:
    for number in range(count):
        store.reserve(call(f"{prefix}-{number}", LIMITS))
        store.settle(f"{prefix}-{number}", 80, 20, 0)


def neighbour(path: Path) -> None:
    """Another process opens the ledger and closes it: `agentao-gov budget show`."""
    subprocess.run([sys.executable, "-c", OPEN_AND_CLOSE, str(path)], check=True, timeout=30)


def test_a_second_opening_keeps_the_locks(path: Path) -> None:
    """Else a neighbour that ends takes itself for the last one, and what is written from then on is lost."""
    first = SqliteStore(path)
    second = SqliteStore(path)

    neighbour(path)
    spend(first, "after")

    assert path.with_name("ledger.db-wal").exists()
    first.opening.connection.close()
    first.opening.file.sql.close()
    second.opening.connection.close()
    second.opening.file.sql.close()
    again = SqliteStore(path)
    assert balance(again, LIMITS).used == 2_000
    again.close()


def test_closing_one_of_two_keeps_the_others_locks(path: Path) -> None:
    """The descriptor that both look through stays open until the last is gone."""
    first = SqliteStore(path)
    second = SqliteStore(path)
    second.close()
    del second

    neighbour(path)
    spend(first, "after")

    assert balance(first, LIMITS).used == 2_000
    first.close()


def copy_in_place(old: Path, path: Path) -> None:
    """`cp old ledger.db`: the same file with other contents."""
    shutil.copyfile(old, path)


def shorter(_: Path, path: Path) -> None:
    os.truncate(path, 0)


def without_log(_: Path, path: Path) -> None:
    path.with_name("ledger.db-wal").unlink()


def another(old: Path, path: Path) -> None:
    old.rename(path)


@pytest.mark.parametrize("harm", [copy_in_place, shorter, without_log, another])
@pytest.mark.parametrize("busy", [True, False])
def test_a_file_changed_under_a_running_service_refuses(
    path: Path, tmp_path: Path, harm: Callable[[Path, Path], None], busy: bool
) -> None:
    """At once and until the restart, whatever SQLite remembers of it or writes to it meanwhile."""
    store = SqliteStore(path)
    spend(store, "old")
    store.heartbeat()
    old = tmp_path / "old.db"
    shutil.copyfile(path, old)
    for beat in range(3):
        if busy:
            spend(store, f"new-{beat}")
        store.heartbeat()

    harm(old, path)

    for attempt in range(2):
        with pytest.raises(StoreError, match="while it was open") as caught:
            store.reserve(call(f"later-{attempt}", LIMITS))
        assert caught.value.exit_code == 9
        with pytest.raises(StoreError, match="while it was open"):
            store.heartbeat()
    store.close()


def test_a_copy_put_in_place_is_refused_after_the_restart_too(path: Path, tmp_path: Path) -> None:
    """The mark beside the file knows how far the ledger had come."""
    store = SqliteStore(path)
    spend(store, "old")
    store.heartbeat()
    old = tmp_path / "old.db"
    shutil.copyfile(path, old)
    spend(store, "new")
    store.heartbeat()
    copy_in_place(old, path)
    store.close()
    for name in ("ledger.db-wal", "ledger.db-shm"):
        path.with_name(name).unlink(missing_ok=True)

    with pytest.raises(StoreError):
        SqliteStore(path)


def test_a_sum_that_no_column_holds_is_a_store_error(path: Path) -> None:
    """No provider's honest report leads there: the step is refused as a whole, and the file stays sound."""
    dear = StoreSettings(price=lambda _: Price(10**12, 10**12))
    store = SqliteStore(path, settings=dear)
    store.reserve(call("c-1", LIMITS))

    with pytest.raises(StoreError, match="cannot store"):
        store.settle("c-1", CALL_TOKENS_MAX, 0, 0)

    assert (balance(store, LIMITS).used, balance(store, LIMITS).reserved) == (0, 200)
    assert store.verify().ok
    store.settle("c-1", 5, 5, 0)
    store.close()


def test_neighbours_that_come_and_go_raise_no_alarm(path: Path) -> None:
    """They move the log into the file too, give back space, and are no reason to refuse anybody."""
    store = SqliteStore(path)
    for number in range(2):
        spend(store, f"mine-{number}")
        other = SqliteStore(path)
        spend(other, f"theirs-{number}", 100)
        other.heartbeat()
        store.heartbeat()
        other.close()
        store.heartbeat()
    neighbour(path)
    store.heartbeat()

    assert balance(store, LIMITS).used == 2 * 120 * 100
    assert store.verify().ok
    store.close()
