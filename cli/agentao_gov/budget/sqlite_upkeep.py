"""Keeps a ledger file small and its tables true: when they are brought up to date, and what is let go of."""

from __future__ import annotations

import logging
import sqlite3
from typing import TYPE_CHECKING

from agentao_gov.budget.sqlite_fold import FOLD_ENTRIES, cut, fold, plan_cut
from agentao_gov.budget.sqlite_schema import store_error
from agentao_gov.budget.sqlite_tx import Transaction
from agentao_gov.errors import StoreError

if TYPE_CHECKING:
    from agentao_gov.budget.sqlite import SqliteStore

__all__ = ["Upkeep"]

_log = logging.getLogger(__name__)


class Upkeep:
    """Beside the calls of turns: after some of them, and with every heartbeat."""

    def __init__(self, store: SqliteStore) -> None:
        self._store = store

    def fold_if_due(self) -> None:
        """Folds once enough has changed. Never fails: the call before it is recorded."""
        cache = self._store.cache
        if cache.last - cache.folded < FOLD_ENTRIES:
            return
        try:
            self.fold()
        except StoreError as error:
            # The next call meets the same failure and fails closed.
            _log.warning("the ledger's tables could not be brought up to date: %s", error)

    def fold(self) -> None:
        """Brings the tables up to the journal's last entry."""
        try:
            with Transaction(self._store, "fold") as tx:
                if tx.last > tx.cache.folded:
                    fold(tx)
        except OverflowError as error:
            # More than a column holds, 9.2 million dollars a day: no provider's honest report leads there.
            raise store_error(self._store.path, error) from error

    def cut(self) -> None:
        """Replaces the oldest part of the journal by a checkpoint where it is older than is kept.

        The caller holds the lock of the file's second connection.
        """
        store = self._store
        try:
            planned = plan_cut(store.file.sql, store.clock.time() * 1000, store.retain_s * 1000)
            if planned is not None:
                with Transaction(store, "cut") as tx:
                    cut(tx, planned, store.owner.id)
            store.file.give_back()
        except sqlite3.Error as error:
            raise store_error(store.path, error) from error
