"""One transaction on a ledger file: lock, check that the file is the right one, step, commit, notice."""

from __future__ import annotations

import contextlib
import sqlite3
import threading
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from agentao_gov.budget import failpoints
from agentao_gov.budget.core import LedgerCore
from agentao_gov.budget.high_water import HighWater
from agentao_gov.budget.sqlite.file import LOCKED_HINT, LedgerFile, begin_immediate, patiently, store_error
from agentao_gov.budget.sqlite.tables import SqliteRecords
from agentao_gov.clock import Clock
from agentao_gov.errors import StoreError

__all__ = ["Opening", "Transaction"]


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
        """Takes the lock, of this process and on the file that is still at the path; raises StoreError otherwise."""
        self.file.check_process()
        if not self.lock.acquire(timeout=self.lock_wait_s):
            # Whoever has it waits for the file: all who stand behind would else wait so long one after the other.
            raise StoreError(f"The token ledger {self.path} cannot be used: it is locked.", hint=LOCKED_HINT)
        try:
            self.file.check()
        except BaseException:
            self.lock.release()
            raise


class Transaction:
    """`with Transaction(opening, "settle") as now_ms`: all of it happens, or nothing. Holds the lock meanwhile.

    `name` names the failure points around the commit; empty where there are none. `write` False: it only looks, and
    holds up nobody. `checked` False only before the high-water mark has been admitted.
    """

    __slots__ = ("_checked", "_name", "_opening", "_write")

    def __init__(self, opening: Opening, name: str = "", *, write: bool = True, checked: bool = True) -> None:
        self._opening = opening
        self._name = name
        self._write = write
        self._checked = checked

    def __enter__(self) -> int:
        opening = self._opening
        opening.enter()
        try:
            marked: int | None = None
            if self._write:
                begin_immediate(opening.connection, opening.lock_wait_s)
                opening.records.begin()
            else:
                # Before the moment that is seen: neighbours go on, and the mark with them.
                marked = opening.high_water.last
                patiently(self._begin_reading, opening.lock_wait_s)
            if self._checked:
                opening.high_water.check(opening.records.last, marked)
        except BaseException as error:
            self._abandon(error, (sqlite3.Error, TypeError, ValueError, KeyError))
            raise
        return int(opening.clock.time() * 1000)

    def _begin_reading(self) -> None:
        self._opening.connection.execute("BEGIN")
        try:
            # The first look at the file fixes the moment that is seen.
            self._opening.records.begin()
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
