"""One transaction on a ledger file: lock, check that the file is the right one, step, commit, notice."""

from __future__ import annotations

import contextlib
import sqlite3
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Literal, TypeVar

from agentao_gov.budget import failpoints
from agentao_gov.budget.core import LedgerCore
from agentao_gov.budget.high_water import HighWater
from agentao_gov.budget.sqlite.file import LOCKED_HINT, LedgerFile, begin_immediate, is_busy, patiently, store_error
from agentao_gov.budget.sqlite.tables import NeedsLock, SqliteRecords
from agentao_gov.budget.types import ScopeLimit
from agentao_gov.clock import Clock
from agentao_gov.errors import StoreError

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Opening:
    """One process's opening of a ledger file: what its transactions need."""

    path: Path
    file: LedgerFile
    #: For the steps of turns; under `lock`.
    connection: sqlite3.Connection
    #: One thread in a transaction at a time; everything below is under it.
    lock: threading.Lock
    records: SqliteRecords
    core: LedgerCore
    high_water: HighWater
    clock: Clock
    #: Seconds that a step waits for another thread's or process's lock before it is refused.
    lock_wait_s: float

    def enter(self) -> None:
        """Takes the lock, of this process and on the open file that is still at its path, or raises StoreError."""
        self.file.check_process()
        if not self.lock.acquire(timeout=self.lock_wait_s):
            # Whoever has it waits for the file: all who stand behind would else wait so long one after the other.
            raise StoreError(f"The token ledger {self.path} cannot be used: it is locked.", hint=LOCKED_HINT)
        try:
            self.high_water.check_open()
            self.file.check()
        except BaseException:
            self.lock.release()
            raise


class Transaction:
    """`with Transaction(opening, "settle") as now_ms`: all of it happens, or nothing. Holds the lock meanwhile.

    `name` names the failure points around the commit; empty where there are none. `call_id` and `scopes` are what the
    step is about: one statement reads all of it. `write` False: it only looks, and holds up nobody. `checked` False
    only before the high-water mark has been admitted.
    """

    __slots__ = ("_call_id", "_checked", "_name", "_opening", "_scopes", "_write")

    def __init__(
        self,
        opening: Opening,
        name: str = "",
        *,
        call_id: str = "",
        scopes: Sequence[ScopeLimit] = (),
        write: bool = True,
        checked: bool = True,
    ) -> None:
        self._opening = opening
        self._name = name
        self._call_id = call_id
        self._scopes = scopes
        self._write = write
        self._checked = checked

    def __enter__(self) -> int:
        opening = self._opening
        opening.enter()
        now_ms = int(opening.clock.time() * 1000)
        try:
            marked: int | None = None
            if self._write:
                begin_immediate(opening.connection, opening.lock_wait_s)
                self._look(now_ms)
            else:
                # Before the moment that is seen: neighbours go on, and the mark with them.
                marked = opening.high_water.last
                patiently(lambda: self._begin_reading(now_ms), opening.lock_wait_s)
            if self._checked:
                opening.high_water.check(opening.records.last, marked)
        except BaseException as error:
            self._abandon(error, (sqlite3.Error, TypeError, ValueError, KeyError))
            raise
        return now_ms

    def _look(self, now_ms: int) -> None:
        core = self._opening.core
        self._opening.records.begin(self._call_id, [core.key(scope, now_ms) for scope in self._scopes])

    def _begin_reading(self, now_ms: int) -> None:
        self._opening.connection.execute("BEGIN")
        try:
            # The first look at the file fixes the moment that is seen.
            self._look(now_ms)
        except BaseException:
            self._opening.connection.execute("ROLLBACK")
            raise

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        opening = self._opening
        if error is not None:
            self._abandon(error)
            return
        try:
            if self._name:
                failpoints.reach(f"before_{self._name}_commit")
            opening.connection.execute("COMMIT")
            if self._write:
                opening.high_water.advance(opening.records.last)
            answered = opening.core.take_answered()
        except BaseException as failure:
            self._abandon(failure)
            raise
        opening.lock.release()
        if self._name:
            failpoints.reach(f"after_{self._name}_commit")
        if answered:
            opening.core.settings.notice(answered)

    def _abandon(
        self,
        error: BaseException,
        of_file: tuple[type[Exception], ...] = (sqlite3.Error, KeyError, OverflowError),
    ) -> None:
        """Nothing of it happened. Raises StoreError where the error is one that the file is to blame for."""
        opening = self._opening
        opening.core.take_answered()
        # A file that is beyond even that led here by an error which is raised.
        with contextlib.suppress(sqlite3.Error):
            if opening.connection.in_transaction:
                opening.connection.execute("ROLLBACK")
        opening.lock.release()
        if isinstance(error, of_file):
            raise store_error(opening.path, error) from error


def try_unlocked(
    opening: Opening, step: Callable[[int], T], name: str, call_id: str, scopes: Sequence[ScopeLimit]
) -> tuple[T] | Literal["conflict", "needs lock"]:
    """Takes a step without locking the file, but for the one statement that writes it; or says why nothing came of it.

    Between two statements of a transaction a thread may wait milliseconds for the interpreter, and every process waits
    for the file with it. So what nearly all steps do, one entry about what could be read at once, is read and decided
    first, and written only if nothing has changed since. Arguments are those of Transaction.
    """
    opening.enter()
    try:
        now_ms = int(opening.clock.time() * 1000)
        marked, records = opening.high_water.last, opening.records
        records.begin(call_id, [opening.core.key(scope, now_ms) for scope in scopes])
        opening.high_water.check(records.last, marked)
        if records.waiting or not records.registered:
            return "needs lock"
        with records.drafting() as entries:
            result = step(now_ms)
        if len(entries) > 1:
            return "needs lock"
        if entries:
            if name:
                failpoints.reach(f"before_{name}_commit")
            if not records.append_if_unchanged(entries[0]):
                return "conflict"
            opening.high_water.advance(records.last)
    except (NeedsLock, KeyError):
        return "needs lock"
    except sqlite3.Error as error:
        if isinstance(error, sqlite3.OperationalError) and is_busy(error):
            return "conflict"
        raise store_error(opening.path, error) from error
    finally:
        opening.lock.release()
    if name and entries:
        failpoints.reach(f"after_{name}_commit")
    return (result,)
