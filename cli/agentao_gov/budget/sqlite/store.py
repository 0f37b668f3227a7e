"""The ledger in a SQLite file, shared by all processes of one machine: the default. Its tables are the truth.

Each step is one transaction: it changes balances and one reservation, and appends one entry to a journal that is
chained by hashes and from which `budget verify` adds all of them up again.
"""

from __future__ import annotations

import contextlib
import sqlite3
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, TypeVar

from agentao_gov.budget import failpoints, journal
from agentao_gov.budget.core import LedgerCore, LocalStore
from agentao_gov.budget.high_water import HighWater
from agentao_gov.budget.journal import verify_records
from agentao_gov.budget.sqlite.file import (
    LedgerFile,
    Synchronous,
    check_layout,
    connect,
    create,
    patiently,
    store_error,
)
from agentao_gov.budget.sqlite.tables import (
    SqliteRecords,
    let_entries_post,
    plan_cut,
    read_balances,
    read_calls,
    read_checkpoint,
    read_rows,
)
from agentao_gov.budget.sqlite.transaction import Opening, Transaction, try_unlocked
from agentao_gov.budget.store import JournalRow, Refused, StoreSettings, Verification, Waiting
from agentao_gov.budget.types import Reservation, ReserveRequest, ScopeLimit
from agentao_gov.clock import SYSTEM_CLOCK, Clock
from agentao_gov.errors import StoreError
from agentao_gov.process.owner import Liveness, this_process

T = TypeVar("T")

#: Steps that lock the file first, after one that did not met another process's step; doubled as long as they do meet.
#: Processes that do nothing else than write would else read and decide most steps twice.
_LOCKED_STEPS_MIN, _LOCKED_STEPS_MAX = 8, 512


class SqliteStore(LocalStore):
    """A ledger's core over a file, one connection behind a lock: SQLite has one writer, and waiting here is fair.

    Methods are described in Store. Not usable after a fork: open it in the child. Nor for a thread that signal handlers
    raise in, which is the main one: raised at the wrong moment it would leave this locked.

    `path` is created where it is missing; `clock` tells the time of entries; `settings` are what the ledger sets later.
    `synchronous="NORMAL"` survives every crash of a process, a power cut may lose the last moments; `"FULL"` does not,
    and costs a disk sync per step. `lock_wait_s`: seconds a step waits for another's lock. `lease_s`: seconds of
    silence after which an owner of another pid namespace is taken for dead. `retain_s`: seconds that entries of the
    journal are kept; a settled call older than that is in the balances alone. Raises StoreError.
    """

    def __init__(
        self,
        path: Path,
        clock: Clock = SYSTEM_CLOCK,
        settings: StoreSettings | None = None,
        *,
        synchronous: Synchronous = "NORMAL",
        lock_wait_s: float = 5.0,
        lease_s: float = 30.0,
        retain_s: float = 30 * 86_400.0,
    ) -> None:
        owner = this_process()
        self.owner_id = owner.id
        self._liveness = Liveness(owner, lease_s, clock)
        self._retain_s = retain_s
        self._closed = False
        #: How many steps more lock the file first, and how many do after the next conflict. Hints: no lock needed.
        self._locked_steps = 0
        self._after_conflict = _LOCKED_STEPS_MIN
        #: What the file looked like when `answered` was asked last, and for whom; under the opening's lock.
        self._seen_version = -1
        self._asked: frozenset[str] = frozenset()
        try:
            create(path, int(clock.time() * 1000), lock_wait_s)
            connection = connect(path, synchronous, lock_wait_s)
            let_entries_post(connection)
            file = LedgerFile(path, synchronous, lock_wait_s)
            high_water = HighWater(path.with_name(path.name + ".mark"))
        except (sqlite3.Error, OSError) as error:
            raise store_error(path, error) from error
        records = SqliteRecords(connection, owner)
        self.core = LedgerCore(records, settings or StoreSettings())
        self.opening = Opening(
            path, file, connection, threading.Lock(), records, self.core, high_water, clock, lock_wait_s
        )
        try:
            with Transaction(self.opening, checked=False):
                # Before anything is written: is this file the one that the mark was kept for?
                (ledger_id,) = connection.execute("SELECT value FROM meta WHERE name = 'ledger_id'").fetchone()
                high_water.admit(ledger_id, records.last, high_water.read())
            self.heartbeat()
        except BaseException:
            connection.close()
            file.sql.close()
            raise

    def _perform(
        self,
        step: Callable[[int], T],
        name: str = "",
        *,
        call_id: str = "",
        scopes: Sequence[ScopeLimit] = (),
        write: bool = True,
    ) -> T:
        if write and call_id and self._locked_steps == 0:
            done = try_unlocked(self.opening, step, name, call_id, scopes)
            if done == "conflict":
                self._locked_steps = self._after_conflict
                self._after_conflict = min(_LOCKED_STEPS_MAX, self._after_conflict * 2)
            elif done != "needs lock":
                self._after_conflict = _LOCKED_STEPS_MIN
                return done[0]
        else:
            self._locked_steps = max(0, self._locked_steps - 1)
        with Transaction(self.opening, name, call_id=call_id, scopes=scopes, write=write) as now_ms:
            return step(now_ms)

    def reserve(self, request: ReserveRequest) -> Reservation | Refused | Waiting:
        failpoints.reach("before_reserve")
        records = self.opening.records

        def step(now_ms: int) -> Reservation | Refused | Waiting:
            if not records.registered:
                # Neighbours gave this owner up meanwhile: what it reserves would be nobody's, and given back.
                records.beat()
            return self.core.reserve(request, self.owner_id, now_ms)

        return self._perform(step, "reserve", call_id=request.id, scopes=request.scopes)

    def answered(self, reservation_ids: Sequence[str]) -> list[str]:
        self.opening.file.check_process()
        with self.opening.lock:
            try:
                ((version,),) = self._look("PRAGMA data_version")
                if version == self._seen_version and self._asked.issuperset(reservation_ids):
                    return []
                waiting = {row[0] for row in self._look("SELECT id FROM waiters")}
                # One who was not asked for then may have been answered in the same state of the file.
                self._seen_version, self._asked = version, frozenset(reservation_ids)
            except sqlite3.Error as error:
                raise store_error(self.opening.path, error) from error
        return [call_id for call_id in reservation_ids if call_id not in waiting]

    def _look(self, statement: str) -> list[tuple[Any, ...]]:
        """Rows; waits where someone opens or closes the file."""
        opening = self.opening
        return patiently(lambda: opening.connection.execute(statement).fetchall(), opening.lock_wait_s)

    # ── upkeep ────────────────────────────────────────────────────────────────────────────────────

    def heartbeat(self) -> None:
        """Then lets go of what is old, and syncs what was written, so that the high-water mark may rely on it."""
        opening = self.opening
        with Transaction(opening) as now_ms:
            opening.records.beat()
            for owner_id in self._dead_owners():
                failpoints.reach("during_recovery")
                self._resolve(owner_id, now_ms)
        with opening.file.lock:
            if not self._closed:
                self._cut()
                opening.file.sync(opening.high_water)

    def _dead_owners(self) -> list[str]:
        """Owners whose calls and waits have to be resolved, registered or not."""
        owners = self.opening.records.owners()
        dead = {owner.id for owner, beats in owners if self._liveness.dead(owner, beats)}
        alive = {owner.id for owner, _ in owners} - dead
        return sorted(dead | (self.opening.records.holders() - alive))

    def _resolve(self, owner_id: str, now_ms: int) -> None:
        self.core.resolve(owner_id, self.owner_id, now_ms)
        self.opening.records.forget_owner(owner_id)
        self._liveness.forget(owner_id)

    def _cut(self) -> None:
        """Replaces the oldest part of the journal by a checkpoint where it is older than is kept. Under `file.lock`."""
        opening = self.opening
        try:
            planned = plan_cut(opening.file.sql, opening.clock.time() * 1000, self._retain_s * 1000)
            if planned is not None:
                with Transaction(opening, "cut"):
                    opening.records.cut(planned)
            opening.file.give_back()
        except sqlite3.Error as error:
            raise store_error(opening.path, error) from error

    def journal(self) -> Iterable[JournalRow]:
        with _snapshot(self.opening.path) as sql:
            yield from read_rows(sql)

    def verify(self) -> Verification:
        return verify_file(self.opening.path)

    def close(self) -> None:
        """What is still held is resolved as if the owner had died. Idempotent."""
        opening = self.opening
        if opening.file.forked:
            # It is the parent's to close.
            return
        with opening.file.lock:
            if self._closed:
                return
            self._closed = True
            # A file that fails now is no reason not to close it: then a neighbour resolves what is left.
            with contextlib.suppress(StoreError):
                with Transaction(opening) as now_ms:
                    self._resolve(self.owner_id, now_ms)
            with opening.lock:
                opening.file.sql.close()
                opening.connection.close()
                opening.high_water.close()


#: What comes of a column that holds something else than it should.
_UNREADABLE = (TypeError, ValueError, AttributeError, LookupError, OverflowError)


@contextmanager
def _snapshot(path: Path) -> Iterator[sqlite3.Connection]:
    """A connection of its own that sees one moment, while others go on writing."""
    try:
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, isolation_level=None)) as sql:
            sql.execute("BEGIN")
            yield sql
    except (sqlite3.Error, *_UNREADABLE) as error:
        raise store_error(path, error) from error


def verify_file(path: Path) -> Verification:
    """Checks the file at `path`: its structure, the journal's chain, and everything that the journal adds up to.

    Does not open it as a ledger: what is broken may not even open. Raises StoreError for what cannot be read at all.
    """
    with _snapshot(path) as sql:
        check_layout(sql, path)
        problems = [f"file: {row[0]}" for row in sql.execute("PRAGMA integrity_check(10)") if row[0] != "ok"]
        checkpoint = read_checkpoint(sql)
        result = journal.replay(read_rows(sql), base=checkpoint.replay())
        problems += [
            f"journal: entry {number} was moved in time"
            for (number,) in sql.execute(
                "SELECT number FROM journal WHERE CASE WHEN json_valid(body) THEN json_extract(body, '$[0]') END"
                " IS NOT at_ms LIMIT 10"
            )
        ]
        if sql.execute("SELECT size FROM checkpoint").fetchone() != (len(checkpoint.body),):
            problems.append("journal: the checkpoint has another size than it says")
        if sql.execute("SELECT value FROM meta WHERE name = 'ledger_id'").fetchone() != (result.ledger,):
            problems.append("the ledger's identity is not the journal's")
        return verify_records(result, checkpoint, read_balances(sql), read_calls(sql, problems), found=problems)
