"""A ledger file of the version before is taken over at the first start, and not one figure of it changes.

`layout3/ledger.sql` is the dump of a file that layout 3's own code wrote (commit 7d93afa): six days with a cut journal,
every ending of a call, corrections, grants, thresholds, changed limits, a tail of entries after the last fold, and when
its process ended one call reserved, one sent, and one waiting. `layout3/balances.json` is what that code said of it.
"""

from __future__ import annotations

import json
import signal
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from agentao_gov.budget import Balance, Crossing, SqliteStore, StoreSettings, failpoints, verify_file
from agentao_gov.budget.sqlite.file import create
from agentao_gov.errors import StoreError
from tests.budget.calls import call, scopes
from tests.budget.processes import start
from tests.support.clock import FakeClock

FIXTURE = Path(__file__).with_name("layout3")
#: The last call's scopes.
LIMITS = scopes(session=900, names=("acme", "ann", "s-9", "t-9"))
#: A moment after the last entry.
NOW_S = 1_790_000_000.0 + 6 * 86_400


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A file of layout 3."""
    made = tmp_path / "ledger.db"
    with closing(sqlite3.connect(made, isolation_level=None)) as sql:
        sql.execute("PRAGMA page_size=2048")
        sql.execute("PRAGMA auto_vacuum=INCREMENTAL")
        sql.execute("PRAGMA journal_mode=WAL")
        sql.executescript((FIXTURE / "ledger.sql").read_text())
        sql.execute("PRAGMA application_id=0x4147564C")
        sql.execute("PRAGMA user_version=3")
    return made


def said() -> dict[str, Any]:
    """What the old code said."""
    return dict(json.loads((FIXTURE / "balances.json").read_text()))


def figures(balance: Balance) -> list[Any]:
    """A balance as the fixture states it."""
    b = balance
    amounts = (b.limit, b.used, b.reserved, b.estimated, b.granted, b.cost_pico_usd, b.unpriced)
    return [b.scope.kind, b.scope.key, b.window, b.timezone, *amounts]


def everything(path: Path) -> list[Any]:
    """All that the file says, as layout 3 names it."""
    tables = ("meta", "lines", "calls", "journal", "folded", "checkpoint", "owners", "waiters", "served")
    with closing(sqlite3.connect(path)) as sql:
        return [sql.execute(f"SELECT * FROM {table}").fetchall() for table in tables] + sql.execute(
            "SELECT type, name, sql FROM sqlite_master ORDER BY name"
        ).fetchall()


def test_no_balance_changes(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every figure is what the old code said, the chain is unbroken, and the journal bears all of it out."""
    create(path, int(NOW_S * 1000), 5.0)

    found = verify_file(path)

    assert found.ok, found.problems
    assert (found.entries, found.head) == (said()["entries"], said()["head"])
    # Before anything else happens: an opening resolves what its dead owner left.
    monkeypatch.setattr(SqliteStore, "heartbeat", lambda _: None)
    store = SqliteStore(path, FakeClock(wall=NOW_S))
    assert [figures(balance) for balance in store.all_balances("all")] == said()["balances"]
    assert [[b.used, b.reserved] for b in store.balances(LIMITS)] == said()["turn"]
    store.close()


def test_the_first_start_takes_over_and_resolves_what_the_dead_left(path: Path) -> None:
    """Not sent is given back, sent is charged its bound, the queue is empty, and the ledger goes on."""
    before = {tuple(balance[:4]): balance for balance in said()["balances"]}
    store = SqliteStore(path, FakeClock(wall=NOW_S))

    (tenant,) = store.balances(LIMITS[:1])

    old = before["tenant", "acme", tenant.window, "UTC"]
    assert (tenant.used, tenant.reserved, tenant.estimated) == (old[5] + 200, 0, old[7] + 200)
    assert store.answered(["waits"]) == ["waits"]
    store.reserve(call("next", LIMITS))
    store.settle("next", 1, 1, 0)
    again = SqliteStore(path, FakeClock(wall=NOW_S))
    assert again.balances(LIMITS[:1])[0].used == tenant.used + 2
    assert again.verify().ok
    again.close()
    store.close()


def test_what_was_granted_and_reported_before_still_holds(path: Path) -> None:
    """The grant of the day is in the limit, and a threshold that was reported is not reported again."""
    store = SqliteStore(path, FakeClock(wall=NOW_S), StoreSettings(warn_at=(0.5, 0.8)))
    crossings: list[Crossing] = []

    for name, tokens in (("below", 10), ("above", 100)):
        store.reserve(call(name, LIMITS))
        crossings += store.settle(name, tokens, 0, 0).crossings

    (balance,) = store.balances([LIMITS[2]])
    assert (balance.granted, balance.limit) == (550, 1_450)
    assert [(crossing.scope.kind, crossing.threshold) for crossing in crossings] == [("session", 0.8)]
    store.close()


def test_a_take_over_that_is_killed_leaves_the_old_file(path: Path) -> None:
    """Before its commit nothing has changed for the old version; the next start takes over."""
    before = everything(path)
    plan = {"mode": "recover", "point": failpoints.TAKEOVER_POINT, "store": str(path), "name": ""}

    worker = start(plan)
    worker.communicate(timeout=40)

    assert worker.returncode == -signal.SIGKILL, "the point was not reached"
    assert everything(path) == before
    SqliteStore(path, FakeClock(wall=NOW_S)).close()
    assert verify_file(path).ok


@pytest.mark.parametrize(
    "harm",
    [
        "DELETE FROM journal WHERE number = (SELECT number + 3 FROM folded)",
        "UPDATE journal SET body = 'nonsense' WHERE number = (SELECT max(number) FROM journal)",
        "DELETE FROM calls WHERE id = 'd5-0'; UPDATE folded SET number = number - 20",
    ],
)
def test_a_file_that_its_journal_does_not_bear_out_is_refused_and_left_alone(path: Path, harm: str) -> None:
    """With what is wrong and what to do; the old version finds it as it was."""
    with closing(sqlite3.connect(path)) as sql:
        sql.executescript(harm)
    before = everything(path)

    with pytest.raises(StoreError, match="cannot be taken over") as caught:
        SqliteStore(path)

    assert "budget verify" in (caught.value.hint or "")
    assert everything(path) == before


def test_looking_without_opening_names_the_command_that_takes_it_over(path: Path) -> None:
    """`doctor` and `budget verify` change nothing."""
    before = everything(path)

    with pytest.raises(StoreError, match="older agentao-gov") as caught:
        verify_file(path)

    assert "agentao-gov budget show" in (caught.value.hint or "")
    assert everything(path) == before


def append(sql: sqlite3.Connection) -> None:
    """What layout 3 did in each step of a call."""
    sql.execute("INSERT INTO journal SELECT 999, 1, '[]', x'00' WHERE NOT EXISTS (SELECT 1 FROM calls WHERE id = 'x')")


def fold(sql: sqlite3.Connection) -> None:
    """What layout 3 did after some hundred steps."""
    sql.execute("UPDATE lines SET used = used + 1")


@pytest.mark.parametrize("step", [append, fold])
def test_a_process_of_the_old_version_is_refused_from_then_on(
    path: Path, step: Callable[[sqlite3.Connection], None]
) -> None:
    """Else it would write entries that no table knows of: its tables are gone under the names it uses."""
    with closing(sqlite3.connect(path, isolation_level=None)) as old:
        old.execute("SELECT * FROM lines").fetchall()
        SqliteStore(path, FakeClock(wall=NOW_S)).close()

        with pytest.raises(sqlite3.OperationalError, match="no such table"):
            step(old)
