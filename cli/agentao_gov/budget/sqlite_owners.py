"""The owners of a ledger file: who lives, and what the dead left behind."""
# ruff: noqa: S608 - statements are put together from constant column lists only

from __future__ import annotations

from agentao_gov.budget.owner import Liveness, Owner
from agentao_gov.budget.reservation import OPEN_STATES
from agentao_gov.budget.sqlite_rows import CALL_COLUMNS, StoredCall, call_of
from agentao_gov.budget.sqlite_tx import Transaction
from agentao_gov.clock import Clock

__all__ = ["OwnerTable", "held_calls"]

_HELD = f"SELECT {CALL_COLUMNS}, id FROM calls WHERE state IN ('reserved', 'dispatched')"


class OwnerTable:
    """Registers this owner and finds dead ones. Under the store's lock."""

    def __init__(self, owner: Owner, lease_s: float, clock: Clock) -> None:
        self.owner = owner
        self._liveness = Liveness(owner, lease_s, clock)
        self._beats = 0

    def beat(self, tx: Transaction) -> None:
        """Says that this owner lives; says it anew where neighbours gave it up meanwhile."""
        self._beats += 1
        owner = self.owner
        tx.sql.execute(
            "INSERT INTO owners VALUES (?, ?, ?, ?, ?, ?)"
            " ON CONFLICT (id) DO UPDATE SET heartbeat = excluded.heartbeat",
            (owner.id, owner.pid, owner.started, owner.boot, owner.pid_namespace, self._beats),
        )
        tx.cache.known_owner = True

    def dead(self, tx: Transaction) -> list[str]:
        """Owners whose calls and waits have to be resolved, registered or not."""
        rows = tx.sql.execute("SELECT id, pid, started, boot, pid_namespace, heartbeat FROM owners").fetchall()
        dead = [row[0] for row in rows if self._liveness.dead(Owner(*row[:5]), row[5])]
        alive = {row[0] for row in rows}.difference(dead)
        waiting = {row[0] for row in tx.sql.execute("SELECT owner FROM waiters")}
        holders = {call.owner for call in held_calls(tx).values()}
        return sorted(set(dead) | (waiting | holders) - alive)

    @staticmethod
    def held_by(tx: Transaction, owner_id: str) -> dict[str, StoredCall]:
        """All reservations of an owner that still hold tokens."""
        return {name: call for name, call in held_calls(tx).items() if call.owner == owner_id}

    def forget(self, tx: Transaction, owner_id: str) -> None:
        """Removes an owner that holds nothing any more."""
        tx.sql.execute("DELETE FROM owners WHERE id = ?", (owner_id,))
        self._liveness.forget(owner_id)


def held_calls(tx: Transaction) -> dict[str, StoredCall]:
    """Every reservation that holds tokens: as the tables have them, and as the journal went on."""
    calls = {row[-1]: call_of(row[:-1]) for row in tx.sql.execute(_HELD)} | tx.cache.calls
    return {name: call for name, call in calls.items() if call.holding.state in OPEN_STATES}
