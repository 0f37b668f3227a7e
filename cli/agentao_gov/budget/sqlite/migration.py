"""Takes over a ledger file of layout 3, whose journal ran ahead of its tables.

There a step wrote its journal entry alone, and the tables were brought up to date by a "fold", some hundred entries at
a time; the table `folded` says up to which entry. Here an entry posts itself: those after the last fold are taken out
and put in again. Tables and columns get their names of today, so every process of the older version that still has the
file open is refused by its next step: the tables that it names are gone.
"""

from __future__ import annotations

import sqlite3

from agentao_gov.budget.journal import STATE_AFTER, decode
from agentao_gov.budget.sqlite.tables import let_entries_post
from agentao_gov.errors import StoreError

#: The one older layout that is taken over.
FROM_LAYOUT = 3

_OF_CALLS = frozenset({*STATE_AFTER, "extend"})
_RENAMES = (
    "ALTER TABLE lines RENAME TO balances",
    "ALTER TABLE calls RENAME TO reservations",
    "ALTER TABLE reservations RENAME COLUMN lines TO balances",
    "DROP INDEX open_calls",
    "CREATE INDEX held_reservations ON reservations (owner) WHERE state IN ('reserved', 'dispatched')",
    "DROP TABLE folded",
)


def take_over(sql: sqlite3.Connection) -> None:
    """Turns the file into one of today's layout, inside the caller's transaction; the caller sets the layout's number.

    Raises StoreError for a file that its own journal does not bear out; then the caller rolls back, and the file is
    what it was.
    """
    (folded,) = sql.execute("SELECT number FROM folded").fetchone()
    after = sql.execute("SELECT * FROM journal WHERE number > ? ORDER BY number", (folded,)).fetchall()
    last = sql.execute("SELECT max(number) FROM journal WHERE number <= ?", (folded,)).fetchone()
    if [*last, *(row[0] for row in after)] != list(range(folded, folded + len(after) + 1)):
        raise _refused(f"its journal lacks an entry after number {folded - 1:,}")
    sql.execute("DELETE FROM journal WHERE number > ?", (folded,))
    for statement in _RENAMES:
        sql.execute(statement)
    let_entries_post(sql)
    for row in after:
        try:
            entry = decode(row[2])
            about = () if entry.kind == "reserve" or entry.kind not in _OF_CALLS else (entry.id,)
            for table, ids in (("balances", entry.refs), ("reservations", about)):
                for name in ids:
                    _require(sql, table, name)
            sql.execute("INSERT INTO journal VALUES (?, ?, ?, ?)", row)
        except (ValueError, TypeError, LookupError, sqlite3.DatabaseError) as error:
            raise _refused(f"entry {row[0]:,} of its journal cannot be posted: {error}") from error


def _require(sql: sqlite3.Connection, table: str, name: str) -> None:
    if sql.execute(f"SELECT 1 FROM {table} WHERE id = ?", (name,)).fetchone() is None:  # noqa: S608 - a constant
        raise LookupError(f"{name} is not there")


def _refused(why: str) -> StoreError:
    return StoreError(
        f"The token ledger was written by an older agentao-gov and cannot be taken over: {why}.",
        hint="Put a sound copy back, or run `agentao-gov budget verify` of the version that wrote it.",
    )
