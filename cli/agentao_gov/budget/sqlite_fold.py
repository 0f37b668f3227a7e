"""Brings a ledger file's tables up to the journal's last entry, and lets go of what is older than it has to be."""
# ruff: noqa: S608 - statements are put together from constant column lists and placeholders only

from __future__ import annotations

import sqlite3

from agentao_gov.budget import checkpoint as checkpoints
from agentao_gov.budget.checkpoint import Checkpoint, Cut, over_by
from agentao_gov.budget.journal import Entry
from agentao_gov.budget.sqlite_rows import CALL_COLUMNS, placeholders, row_of_call, row_of_line
from agentao_gov.budget.sqlite_tx import Transaction

__all__ = ["FOLD_ENTRIES", "cut", "fold", "plan_cut", "read_checkpoint"]

#: Entries after which a process folds: some 3 ms of work for what would be 50 otherwise, rarer than the p99.
FOLD_ENTRIES = 1_024
#: Entries let go of at a time: the lock is held for some milliseconds.
_CUT_ENTRIES = 4_000

_OLD = "SELECT number, body, hash, at_ms FROM journal WHERE number <= ? AND at_ms < ? ORDER BY number"
_SET_LINE = """
UPDATE lines SET limit_tokens = ?, granted = ?, used = ?, reserved = ?, estimated = ?, cost = ?, unpriced = ?,
    warned = ? WHERE id = ?
"""
_SET_CALL = f"INSERT OR REPLACE INTO calls (id, {CALL_COLUMNS}) VALUES ({placeholders(12)})"


def fold(tx: Transaction) -> None:
    """Writes every line and reservation that changed since the last fold."""
    cache = tx.cache
    tx.sql.executemany(_SET_LINE, [(*row_of_line(cache.lines[n]), n) for n in cache.changed_lines])
    tx.sql.executemany(_SET_CALL, [row_of_call(name, cache.calls[name]) for name in cache.changed_calls])
    tx.sql.execute("UPDATE folded SET number = ?", (tx.last,))
    tx.folds = True


def read_checkpoint(sql: sqlite3.Connection) -> Checkpoint:
    """What stands for the entries that are no longer there."""
    return Checkpoint(*sql.execute("SELECT number, hash, body FROM checkpoint").fetchone())


def plan_cut(sql: sqlite3.Connection, before_ms: float) -> Cut | None:
    """Adds up the oldest entries where they are older than `before_ms`. Reads what never changes: without the lock."""
    checkpoint = read_checkpoint(sql)
    (folded,) = sql.execute("SELECT number FROM folded").fetchone()
    # The entry of the last fold stays: with it every process begins.
    last = min(checkpoint.number + _CUT_ENTRIES, folded - 1)
    rows = sql.execute(_OLD, (last, before_ms)).fetchall()
    return checkpoints.plan(checkpoint, (row[:3] for row in rows), over_by(rows[-1][3])) if rows else None


def cut(tx: Transaction, planned: Cut, owner_id: str) -> None:
    """Lets go of the entries, their reservations, and the lines of turns and days that are over."""
    if read_checkpoint(tx.sql).number != planned.before:
        # A neighbour was quicker.
        return
    after = planned.after
    tx.sql.execute("UPDATE checkpoint SET number = ?, hash = ?, body = ?", (after.number, after.hash, after.body))
    tx.sql.execute("DELETE FROM journal WHERE number <= ?", (after.number,))
    tx.sql.executemany("DELETE FROM calls WHERE id = ?", [(name,) for name in planned.calls])
    tx.sql.executemany("DELETE FROM lines WHERE id = ?", [(int(ref),) for ref in planned.lines])
    tx.append(Entry(tx.at_ms, "checkpoint", "", owner_id, (), note=after.note()))
    fold(tx)
    tx.cuts = True
