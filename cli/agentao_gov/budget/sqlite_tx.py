"""One transaction on a ledger file: lock, checks that the file is the right one, journal, commit, notice."""

from __future__ import annotations

import contextlib
import sqlite3
from types import TracebackType
from typing import TYPE_CHECKING

from agentao_gov.budget import failpoints, journal
from agentao_gov.budget.balance import Line, LineKey
from agentao_gov.budget.journal import Entry
from agentao_gov.budget.sqlite_schema import begin_immediate, patiently, store_error
from agentao_gov.budget.sqlite_step import Step
from agentao_gov.errors import StoreError

if TYPE_CHECKING:
    from agentao_gov.budget.sqlite import SqliteStore

__all__ = ["Transaction"]

_STATE = """
SELECT folded.number, checkpoint.number, EXISTS (SELECT 1 FROM waiters), EXISTS (SELECT 1 FROM owners WHERE id = ?)
FROM folded, checkpoint
"""
_NEWS = "SELECT number, at_ms, body, hash FROM journal WHERE number >= ? ORDER BY number"
_APPEND = "INSERT INTO journal VALUES (?, ?, ?, ?)"


class Transaction:
    """`with Transaction(store, "settle") as tx`: all of it happens, or nothing. Holds the store's lock meanwhile."""

    __slots__ = (
        "_checked",
        "_discarded",
        "_hash",
        "_name",
        "_store",
        "_write",
        "_written_ms",
        "answered",
        "at_ms",
        "cache",
        "created",
        "cuts",
        "folds",
        "last",
        "opened",
        "restated",
        "sql",
    )

    def __init__(self, store: SqliteStore, name: str = "", *, checked: bool = True, write: bool = True) -> None:
        self._store = store
        #: False only before the mark has been admitted.
        self._checked = checked
        #: Names the failure points around the commit; empty where there are none.
        self._name = name
        #: False: only looks, and holds up nobody.
        self._write = write
        self.sql = store.connection
        self.cache = store.cache
        self._discarded = False
        #: Ids that left the queue in this transaction.
        self.answered: list[str] = []
        #: Time of the last entry written, 0 before the first.
        self._written_ms = 0
        #: Lines found or made in this transaction: remembered by the store only once it is committed.
        self.opened: dict[LineKey, int] = {}
        #: Those that were made.
        self.created: list[int] = []
        #: Lines whose limit changed in this transaction, with the one before.
        self.restated: list[tuple[Line, int | None]] = []
        #: Whether the tables were brought up to the last entry; and whether lines were let go of.
        self.folds = self.cuts = False

    def __enter__(self) -> Transaction:
        store = self._store
        store.enter()
        marked: int | None = None
        try:
            if self._write:
                begin_immediate(self.sql, store.lock_wait_s)
            else:
                # Before the moment that is seen: neighbours go on, and the mark with them.
                marked = store.mark.last
                patiently(self._begin_reading, store.lock_wait_s)
            self._look()
            if self._checked:
                store.mark.check(self.last, marked)
        except BaseException as error:
            self._abandon()
            if isinstance(error, sqlite3.Error | TypeError | ValueError | KeyError):
                raise store_error(store.path, error) from error
            raise
        return self

    def _begin_reading(self) -> None:
        self.sql.execute("BEGIN")
        try:
            # The first look at the file fixes the moment that is seen.
            self.sql.execute("SELECT number FROM folded").fetchone()
        except BaseException:
            self.sql.execute("ROLLBACK")
            raise

    def _look(self) -> None:
        """Finds the journal's end, from memory where nobody else has written since."""
        cache = self.cache
        (version,) = self.sql.execute("PRAGMA data_version").fetchone()
        cache.alone = version == cache.version
        if not cache.alone:
            last = cache.last
            folded, cut, waiting, known = self.sql.execute(_STATE, (self._store.owner.id,)).fetchone()
            if cache.last == folded and cut == cache.cut:
                cache.fold()
            if cut != cache.cut:
                self._store.lines.forget()
            if cache.last < folded or cut != cache.cut or not self._follow():
                cache.begin(folded, cut)
                if not self._follow():
                    raise StoreError(
                        f"The token ledger {self._store.path} lacks entry {folded:,} of its journal.",
                        hint="Run `agentao-gov budget verify`, and put a sound copy back.",
                    )
            cache.waiting, cache.known_owner = bool(waiting), bool(known)
            cache.version = version
            cache.alone = cache.last == last
        self.last, self._hash = cache.last, cache.hash
        #: The ledger's time: never earlier than the last entry's.
        self.at_ms = max(int(self._store.clock.time() * 1000), cache.at_ms)

    def _follow(self) -> bool:
        """Takes in what others wrote; False where the journal is not the one that was followed so far."""
        cache = self.cache
        rows = self.sql.execute(_NEWS, (cache.last,)).fetchall()
        if not rows or rows[0][0] != cache.last or (cache.hash and rows[0][3] != cache.hash):
            return False
        for _, _, body, _ in rows[1:]:
            cache.follow(self.sql, journal.decode(body))
        cache.last, cache.at_ms, _, cache.hash = rows[-1]
        return True

    def discard(self) -> None:
        """Nothing of this transaction is to be kept. Only for one in which nothing was posted."""
        self._discarded = True

    def write(self, step: Step) -> dict[int, Line]:
        """Writes a reservation's step; returns its lines as they are then."""
        lines = self.cache.apply(self.sql, step)
        self.append(step.entry)
        return lines

    def append(self, entry: Entry) -> None:
        """Adds to the journal."""
        text = journal.encode(entry)
        self.last += 1
        self._hash = journal.chain(self._hash, text)
        self._written_ms = entry.at_ms
        self.sql.execute(_APPEND, (self.last, entry.at_ms, text, self._hash))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        store = self._store
        if error is None and self._discarded:
            self._undo()
            return
        if error is not None:
            self._abandon()
            if isinstance(error, sqlite3.Error | KeyError):
                raise store_error(store.path, error) from error
            return
        try:
            self._commit()
        except BaseException as failure:
            self._abandon()
            if isinstance(failure, sqlite3.Error):
                raise store_error(store.path, failure) from failure
            raise
        store.lock.release()
        if self._name:
            failpoints.reach(f"after_{self._name}_commit")
        if self.answered:
            store.settings.notice(self.answered)

    def _commit(self) -> None:
        if self._name:
            failpoints.reach(f"before_{self._name}_commit")
        self.sql.execute("COMMIT")
        cache = self.cache
        cache.last, cache.hash = self.last, self._hash
        cache.at_ms = max(cache.at_ms, self._written_ms)
        if self._write:
            self._store.mark.advance(self.last)
        if self.opened:
            self._store.lines.remember(self.opened)
        if self.folds:
            cache.fold()
        if self.cuts:
            # Lines that are no longer there may be remembered: everything is looked up anew.
            cache.forget()
            self._store.lines.forget()

    def _undo(self) -> None:
        """Takes back lines that were opened and limits that were restated, and keeps what was known before."""
        cache = self.cache
        for line_id in self.created:
            cache.lines.pop(line_id, None)
            cache.changed_lines.discard(line_id)
        for line, limit in reversed(self.restated):
            line.limit = limit
        # Whether anyone waits, and whether we are registered, may have been changed too.
        cache.version = -1
        self._rollback()

    def _abandon(self) -> None:
        self.cache.forget()
        self._rollback()

    def _rollback(self) -> None:
        # A file that is beyond even that led here by an error which the caller raises.
        with contextlib.suppress(sqlite3.Error):
            if self.sql.in_transaction:
                self.sql.execute("ROLLBACK")
        self._store.lock.release()
