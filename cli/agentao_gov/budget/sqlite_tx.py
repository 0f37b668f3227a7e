"""One write transaction on a ledger file: lock, checks that the file is the right one, journal, commit, notice."""

from __future__ import annotations

import sqlite3
from types import TracebackType
from typing import TYPE_CHECKING

from agentao_gov.budget import failpoints, journal
from agentao_gov.budget.journal import Entry
from agentao_gov.budget.line import LineKey
from agentao_gov.budget.sqlite_schema import begin_immediate, store_error

if TYPE_CHECKING:
    from agentao_gov.budget.sqlite import SqliteStore

__all__ = ["Transaction"]

_HEAD = """
SELECT number, hash, at_ms, EXISTS (SELECT 1 FROM waiters), EXISTS (SELECT 1 FROM owners WHERE id = ?)
FROM journal ORDER BY number DESC LIMIT 1
"""
_APPEND = "INSERT INTO journal VALUES (?, ?, ?, ?)"


class Transaction:
    """`with Transaction(store, "settle") as tx`: all of it happens, or nothing. Holds the store's lock meanwhile."""

    __slots__ = (
        "_checked",
        "_discarded",
        "_hash",
        "_name",
        "_store",
        "_written_ms",
        "answered",
        "at_ms",
        "cache",
        "last",
        "opened",
        "sql",
    )

    def __init__(self, store: SqliteStore, name: str = "", *, checked: bool = True) -> None:
        self._store = store
        #: False only before the mark has been admitted.
        self._checked = checked
        #: Names the failure points around the commit; empty where there are none.
        self._name = name
        self.sql = store.connection
        self.cache = store.cache
        self._discarded = False
        #: Ids that left the queue in this transaction.
        self.answered: list[str] = []
        #: Time of the last entry written, 0 before the first.
        self._written_ms = 0
        #: Lines made in this transaction: remembered by the store only once it is committed.
        self.opened: dict[LineKey, int] = {}

    def __enter__(self) -> Transaction:
        store = self._store
        store.lock.acquire()
        try:
            store.check_file()
            begin_immediate(self.sql, store.lock_wait_s)
            self._look()
            if self._checked:
                store.mark.check(self.last)
        except BaseException as error:
            self._abandon()
            if isinstance(error, sqlite3.Error | TypeError):
                raise store_error(store.path, error) from error
            raise
        return self

    def _look(self) -> None:
        """Finds the journal's end, from memory where nobody else has written since."""
        cache = self.cache
        (version,) = self.sql.execute("PRAGMA data_version").fetchone()
        if version != cache.version:
            cache.forget()
            row = self.sql.execute(_HEAD, (self._store.owner.id,)).fetchone()
            cache.last, cache.hash, cache.at_ms, waiting, known = row
            cache.waiting, cache.known_owner = bool(waiting), bool(known)
            cache.version = version
        cache.trim()
        self.last, self._hash = cache.last, cache.hash
        #: The ledger's time: never earlier than the last entry's.
        self.at_ms = max(int(self._store.clock.time() * 1000), cache.at_ms)

    def discard(self) -> None:
        """Nothing of this transaction is to be kept."""
        self._discarded = True

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
        if self._discarded and error is None:
            self._abandon()
            return
        if error is not None:
            self._abandon()
            if isinstance(error, sqlite3.Error):
                raise store_error(store.path, error) from error
            return
        try:
            if self._name:
                failpoints.reach(f"before_{self._name}_commit")
            self.sql.execute("COMMIT")
            self.cache.last, self.cache.hash = self.last, self._hash
            self.cache.at_ms = max(self.cache.at_ms, self._written_ms)
            store.mark.advance(self.last)
            if self.opened:
                store.lines.remember(self.opened)
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

    def _abandon(self) -> None:
        self.cache.forget()
        try:
            if self.sql.in_transaction:
                self.sql.execute("ROLLBACK")
        except sqlite3.Error:
            # The file is beyond even that; what led here is raised by the caller.
            return
        finally:
            self._store.lock.release()
