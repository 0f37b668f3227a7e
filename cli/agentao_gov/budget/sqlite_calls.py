"""The reservations of a ledger file: rows with an id, an owner, lines, amounts and a state."""

# ruff: noqa: S608 - statements are put together from constant column lists only
from __future__ import annotations

from agentao_gov.budget.sqlite_cache import StoredCall
from agentao_gov.budget.sqlite_rows import CALL_COLUMNS, holding_of
from agentao_gov.budget.sqlite_tx import Transaction
from agentao_gov.budget.states import OPEN_STATES, Holding
from agentao_gov.budget.types import ReservationState

__all__ = ["CallTable"]

_FIND = f"SELECT {CALL_COLUMNS} FROM calls WHERE id = ?"
_HELD_BY = f"SELECT {CALL_COLUMNS}, id FROM calls WHERE owner = ? AND state IN ('reserved', 'dispatched')"
_INSERT = """
INSERT INTO calls (id, owner, lines, state, held_prompt, held_output, price_prompt, price_completion)
VALUES (?, ?, ?, ?, ?, ?, ?, ?)
"""
_UPDATE = "UPDATE calls SET state = ?, held_output = ?, used = ?, estimated = ?, cost = ?, unpriced = ? WHERE id = ?"


#: Plain strings: the database adapter takes 4 µs to find out that a StrEnum is one.
_TEXT = {state: str(state) for state in ReservationState}


class CallTable:
    """Finds, adds and moves on reservations. Under the store's lock; each method only inside a transaction."""

    @staticmethod
    def find(tx: Transaction, call_id: str) -> StoredCall | None:
        """The reservation of that id."""
        known = tx.cache.calls.get(call_id)
        if known is not None:
            return known
        row = tx.sql.execute(_FIND, (call_id,)).fetchone()
        return None if row is None else StoredCall(_ids(row[0]), holding_of(row), row[-1])

    @staticmethod
    def held_by(tx: Transaction, owner_id: str) -> dict[str, StoredCall]:
        """All reservations of an owner that still hold tokens."""
        rows = tx.sql.execute(_HELD_BY, (owner_id,)).fetchall()
        return {row[-1]: StoredCall(_ids(row[0]), holding_of(row[:-1]), owner_id) for row in rows}

    @staticmethod
    def add(tx: Transaction, call_id: str, call: StoredCall) -> None:
        """A new reservation. Raises sqlite3.IntegrityError when the id is taken."""
        held = call.holding
        prompt, completion = held.price or (None, None)
        lines = ",".join(map(str, call.lines))
        tx.sql.execute(
            _INSERT,
            (call_id, call.owner, lines, _TEXT[held.state], held.held_prompt, held.held_output, prompt, completion),
        )
        tx.cache.calls[call_id] = call

    @staticmethod
    def move(tx: Transaction, call_id: str, call: StoredCall, now: Holding) -> None:
        """The next step of a reservation."""
        tx.sql.execute(
            _UPDATE, (_TEXT[now.state], now.held_output, now.used, now.estimated, now.cost, now.unpriced, call_id)
        )
        if now.state in OPEN_STATES:
            tx.cache.calls[call_id] = call._replace(holding=now)
        else:
            tx.cache.calls.pop(call_id, None)


def _ids(text: str) -> tuple[int, ...]:
    return tuple(map(int, text.split(",")))
