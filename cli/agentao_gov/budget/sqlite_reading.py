"""Looks at a ledger file without writing: balances, and which waiting calls were answered by other processes."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from agentao_gov.budget.sqlite_schema import patiently, store_error
from agentao_gov.budget.sqlite_tx import Transaction
from agentao_gov.budget.types import Balance, ScopeLimit

if TYPE_CHECKING:
    from agentao_gov.budget.sqlite import SqliteStore

__all__ = ["SqliteReader"]


class SqliteReader:
    """Uses the store's connection, under the store's lock."""

    def __init__(self, store: SqliteStore) -> None:
        self._store = store
        #: What the file looked like when `answered` was asked last, and for whom; under the store's lock.
        self._seen_version = -1
        self._asked: frozenset[str] = frozenset()

    def answered(self, reservation_ids: Sequence[str]) -> list[str]:
        """See Store."""
        self._store.file.check_process()
        with self._store.lock:
            try:
                ((version,),) = self._read("PRAGMA data_version")
                if version == self._seen_version and self._asked.issuperset(reservation_ids):
                    return []
                waiting = {row[0] for row in self._read("SELECT id FROM waiters")}
                # One who was not asked for then may have been answered in the same state of the file.
                self._seen_version, self._asked = version, frozenset(reservation_ids)
            except sqlite3.Error as error:
                raise store_error(self._store.path, error) from error
        return [call_id for call_id in reservation_ids if call_id not in waiting]

    def balances(self, scopes: Sequence[ScopeLimit]) -> tuple[Balance, ...]:
        """See Store."""
        with Transaction(self._store, write=False) as tx:
            return self._store.lines.balances(tx, scopes)

    def all_balances(self, window: str | None) -> tuple[Balance, ...]:
        """See Store."""
        with Transaction(self._store, write=False) as tx:
            return self._store.lines.all_balances(tx, window)

    def _read(self, statement: str) -> list[tuple[Any, ...]]:
        """Rows; waits where someone opens or closes the file."""
        store = self._store
        return patiently(lambda: store.connection.execute(statement).fetchall(), store.lock_wait_s)
