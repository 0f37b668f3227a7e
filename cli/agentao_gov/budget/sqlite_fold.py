"""Brings a ledger file's tables up to the journal's last entry, and lets go of what is older than it has to be."""
# ruff: noqa: S608 - statements are put together from constant column lists and placeholders only

from __future__ import annotations

import sqlite3
from collections.abc import Mapping

from agentao_gov.budget import journal as checkpoints
from agentao_gov.budget.journal import DAY_MS, Checkpoint, Cut, Entry, Totals, over_by, piece
from agentao_gov.budget.sqlite_owners import held_calls
from agentao_gov.budget.sqlite_rows import CALL_COLUMNS, placeholders, row_of_call, row_of_line
from agentao_gov.budget.sqlite_tx import Transaction

__all__ = ["FOLD_ENTRIES", "cut", "fold", "plan_cut", "read_checkpoint"]

#: Entries after which a process folds: some 3 ms of work for what would be 50 otherwise, rarer than the p99.
FOLD_ENTRIES = 1_024

_OLD = "SELECT number, body, hash, at_ms FROM journal WHERE number <= ? AND at_ms < ? ORDER BY number"
_AT = "SELECT at_ms FROM journal WHERE number = ?"
_HELD = "SELECT lines FROM calls WHERE state IN ('reserved', 'dispatched')"
_FIGURES = "SELECT used, reserved, estimated, granted FROM lines WHERE id = ?"
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


def plan_cut(sql: sqlite3.Connection, now_ms: float, retain_ms: float) -> Cut | None:
    """Adds up the oldest entries where enough are older than is kept. Reads what never changes: without the lock."""
    # By the ledger's own time: a clock that is ahead for a moment makes nothing old.
    (last_ms,) = sql.execute("SELECT at_ms FROM journal ORDER BY number DESC LIMIT 1").fetchone()
    before_ms = min(now_ms, last_ms) - retain_ms
    number, size = sql.execute("SELECT number, size FROM checkpoint").fetchone()
    count = piece(size)
    if not (_old(sql, number + count, before_ms) or _old(sql, number + 1, before_ms - DAY_MS)):
        return None
    checkpoint = read_checkpoint(sql)
    (folded,) = sql.execute("SELECT number FROM folded").fetchone()
    # The entry of the last fold stays: with it every process begins.
    rows = sql.execute(_OLD, (min(number + count, folded - 1), before_ms)).fetchall()
    if not rows:
        return None
    open_lines = {line for (lines,) in sql.execute(_HELD) for line in lines.split(",")}
    older = (row[:3] for row in rows)
    return checkpoints.plan(checkpoint, older, over_by(rows[-1][3]), open_lines, moved=lambda sums: _moved(sql, sums))


def _moved(sql: sqlite3.Connection, sums: Mapping[str, Totals]) -> set[str]:
    """Lines that something was posted to after these sums."""
    return {
        ref
        for ref, then in sums.items()
        if sql.execute(_FIGURES, (int(ref),)).fetchone() != (then.used, then.reserved, then.estimated, then.granted)
    }


def _old(sql: sqlite3.Connection, number: int, before_ms: float) -> bool:
    row = sql.execute(_AT, (number,)).fetchone()
    return row is not None and row[0] < before_ms


def cut(tx: Transaction, planned: Cut, owner_id: str) -> None:
    """Lets go of the entries, their reservations, and the lines of turns and days that are over."""
    held = {str(line) for call in held_calls(tx).values() for line in call.lines}
    (number,) = tx.sql.execute("SELECT number FROM checkpoint").fetchone()
    held.update(map(str, tx.cache.changed_lines))
    if number != planned.before or not held.isdisjoint(planned.lines):
        # A neighbour was quicker, or a call has come to one of the lines meanwhile: the next beat plans anew.
        return
    after = planned.after
    tx.sql.execute(
        "UPDATE checkpoint SET number = ?, hash = ?, body = ?, size = ?",
        (after.number, after.hash, after.body, len(after.body)),
    )
    tx.sql.execute("DELETE FROM journal WHERE number <= ?", (after.number,))
    tx.sql.executemany("DELETE FROM calls WHERE id = ?", [(name,) for name in planned.calls])
    tx.sql.executemany("DELETE FROM lines WHERE id = ?", [(int(ref),) for ref in planned.lines])
    # At the time of the last entry: upkeep is no event that could move the ledger into another day.
    tx.append(Entry(tx.cache.at_ms, "checkpoint", "", owner_id, (), note=after.note()))
    fold(tx)
    tx.cuts = True
