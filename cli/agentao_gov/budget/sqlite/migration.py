"""Takes over a ledger file of layout 3, whose journal ran ahead of its tables.

There a step wrote its journal entry alone, and the tables were brought up to date by a "fold", some hundred entries at
a time; the table `folded` says up to which entry. Now the tables are the truth: the entries after the last fold are
posted once more, tables and columns get their names of today, and every process of the older version that still has
the file open is refused by its next step, because the tables that it names are gone.
"""

from __future__ import annotations

import sqlite3

from agentao_gov.budget.journal import STATE_AFTER, Entry, decode
from agentao_gov.errors import StoreError

__all__ = ["FROM_LAYOUT", "take_over"]

#: The one older layout that is taken over.
FROM_LAYOUT = 3

_RENAMES = (
    "ALTER TABLE lines RENAME TO balances",
    "ALTER TABLE calls RENAME TO reservations",
    "ALTER TABLE reservations RENAME COLUMN lines TO balances",
    "DROP INDEX open_calls",
    "CREATE INDEX held_reservations ON reservations (owner) WHERE state IN ('reserved', 'dispatched')",
    "DROP TABLE folded",
)
_POST = """
UPDATE balances SET used = used + ?, reserved = reserved + ?, estimated = estimated + ?, granted = granted + ?,
    cost = cost + ?, unpriced = unpriced + ? WHERE id = ?
"""
_RESERVE = """
INSERT INTO reservations (id, owner, balances, state, held_prompt, held_output, price_prompt, price_completion)
    VALUES (?, ?, ?, 'reserved', ?, ?, ?, ?)
"""
_STEP = """
UPDATE reservations SET state = coalesce(?, state), held_output = held_output + ?, used = used + ?,
    estimated = estimated + ?, cost = cost + ?, unpriced = unpriced + ? WHERE id = ?
"""


def take_over(sql: sqlite3.Connection) -> None:
    """Turns the file into one of today's layout, inside the caller's transaction; the caller sets the layout's number.

    Raises StoreError for a file that its own journal does not bear out; then the caller rolls back, and the file is
    what it was.
    """
    (folded,) = sql.execute("SELECT number FROM folded").fetchone()
    rows = sql.execute("SELECT number, body FROM journal WHERE number >= ? ORDER BY number", (folded,)).fetchall()
    if [number for number, _ in rows] != list(range(folded, folded + len(rows))) or not rows:
        raise _refused(f"its journal lacks an entry after number {folded:,}")
    for statement in _RENAMES:
        sql.execute(statement)
    for number, body in rows[1:]:
        try:
            _post(sql, decode(body))
        except (ValueError, TypeError, LookupError, sqlite3.IntegrityError) as error:
            raise _refused(f"entry {number:,} of its journal cannot be posted: {error}") from error


def _post(sql: sqlite3.Connection, entry: Entry) -> None:
    """Adds one entry to the tables. Raises LookupError where what it is about is not there."""
    amounts = (entry.used, entry.reserved, entry.estimated, entry.granted, entry.cost, entry.unpriced)
    for ref in entry.refs:
        _one(sql, _POST, (*amounts, ref))
    if entry.kind == "limit":
        limit = None if entry.note == "None" else int(entry.note)
        _one(sql, "UPDATE balances SET limit_tokens = ? WHERE id = ?", (limit, entry.id))
    elif entry.kind == "warn":
        _one(sql, "UPDATE balances SET warned = ? WHERE id = ?", (int(entry.note), entry.id))
    elif entry.kind == "reserve":
        prompt, output, *prices = entry.note.split(" ")
        priced = tuple(map(int, prices)) if len(prices) == 2 else (None, None)
        refs = ",".join(entry.refs)
        sql.execute(_RESERVE, (entry.id, entry.owner, refs, int(prompt), int(output), *priced))
    elif entry.kind in STATE_AFTER or entry.kind == "extend":
        extended = entry.reserved if entry.kind == "extend" else 0
        state = None if entry.kind == "extend" else str(STATE_AFTER[entry.kind])
        values = (state, extended, entry.used, entry.estimated, entry.cost, entry.unpriced, entry.id)
        _one(sql, _STEP, values)


def _one(sql: sqlite3.Connection, statement: str, values: tuple[object, ...]) -> None:
    if sql.execute(statement, values).rowcount != 1:
        raise LookupError(f"{values[-1]} is not there")


def _refused(why: str) -> StoreError:
    return StoreError(
        f"The token ledger was written by an older agentao-gov and cannot be taken over: {why}.",
        hint="Put a sound copy back, or run `agentao-gov budget verify` of the version that wrote it.",
    )
