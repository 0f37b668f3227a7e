"""The owners of a ledger file: who lives, and what the dead left behind."""

from __future__ import annotations

from agentao_gov.budget.owner import Liveness, Owner
from agentao_gov.budget.sqlite_tx import Transaction
from agentao_gov.clock import Clock

__all__ = ["OwnerTable"]


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
        holders = tx.sql.execute(
            "SELECT owner FROM calls WHERE state IN ('reserved', 'dispatched') UNION SELECT owner FROM waiters"
        )
        return sorted(set(dead) | {row[0] for row in holders if row[0] not in alive})

    def forget(self, tx: Transaction, owner_id: str) -> None:
        """Removes an owner that holds nothing any more."""
        tx.sql.execute("DELETE FROM owners WHERE id = ?", (owner_id,))
        self._liveness.forget(owner_id)
