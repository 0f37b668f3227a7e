"""The waiting calls of a ledger file: one queue for all processes, served by whoever gives tokens back."""

from __future__ import annotations

from collections.abc import Callable

from agentao_gov.budget.admission import Attempted, Ticket, fair_order, serve
from agentao_gov.budget.sqlite_tx import Transaction
from agentao_gov.budget.types import ReserveRequest
from agentao_gov.budget.waiting import decode_request, encode_request

__all__ = ["WaitingTable"]

#: Stands for "the tenant itself" in the table of who was served; no user can be called that.
_TENANT = "\0"


class WaitingTable:
    """Waiting calls and who was served when. Under the store's lock."""

    def __init__(self) -> None:
        #: Decoded requests by number, so that serving 256 waiters does not parse 256 texts each time.
        self._requests: dict[int, ReserveRequest] = {}

    def add(self, tx: Transaction, request: ReserveRequest, owner_id: str) -> None:
        """Puts a call at the end of its user's line."""
        tx.sql.execute(
            "INSERT INTO waiters (id, owner, request) VALUES (?, ?, ?)",
            (request.id, owner_id, encode_request(request)),
        )
        tx.cache.waiting = True

    @staticmethod
    def has(tx: Transaction, call_id: str) -> bool:
        """Whether the call waits."""
        return tx.sql.execute("SELECT 1 FROM waiters WHERE id = ?", (call_id,)).fetchone() is not None

    @staticmethod
    def remove(tx: Transaction, call_id: str) -> bool:
        """Takes a call out; False when it does not wait."""
        return tx.sql.execute("DELETE FROM waiters WHERE id = ?", (call_id,)).rowcount > 0

    @staticmethod
    def remove_owner(tx: Transaction, owner_id: str) -> None:
        """Takes out whatever a dead owner waits for."""
        tx.sql.execute("DELETE FROM waiters WHERE owner = ?", (owner_id,))

    def serve(self, tx: Transaction, attempt: Callable[[ReserveRequest, str], Attempted]) -> None:
        """Lets everyone try in fair order; takes out who was answered."""
        rows = tx.sql.execute("SELECT number, id, owner FROM waiters ORDER BY number").fetchall()
        self._read(tx, {number: call_id for number, call_id, _ in rows})
        owners = {call_id: owner for _, call_id, owner in rows}
        tickets = [self._ticket(number, call_id) for number, call_id, _ in rows]
        served = {
            (tenant, None if user == _TENANT else user): number
            for tenant, user, number in tx.sql.execute("SELECT tenant, user, number FROM served")
        }
        answered: list[Ticket] = []

        def try_one(ticket: Ticket) -> Attempted:
            answer = attempt(self._requests[ticket.number], owners[ticket.id])
            if not isinstance(answer, tuple):
                answered.append(ticket)
            if answer == "served":
                self._note_served(tx, ticket)
            return answer

        serve(fair_order(tickets, served), try_one)
        for ticket in answered:
            tx.sql.execute("DELETE FROM waiters WHERE number = ?", (ticket.number,))
            tx.answered.append(ticket.id)
        if len(answered) == len(rows):
            # Nobody waits any more, so nobody's turn has to be remembered.
            tx.sql.execute("DELETE FROM served")
            tx.cache.waiting = False

    def _read(self, tx: Transaction, wanted: dict[int, str]) -> None:
        for gone in self._requests.keys() - wanted.keys():
            del self._requests[gone]
        for number, call_id in wanted.items():
            known = self._requests.get(number)
            # A number given in a transaction that was rolled back is given again.
            if known is None or known.id != call_id:
                (text,) = tx.sql.execute("SELECT request FROM waiters WHERE number = ?", (number,)).fetchone()
                self._requests[number] = decode_request(text)

    def _ticket(self, number: int, call_id: str) -> Ticket:
        request = self._requests[number]
        return Ticket(call_id, number, request.tenant, request.user, tuple(s.scope for s in request.scopes))

    @staticmethod
    def _note_served(tx: Transaction, ticket: Ticket) -> None:
        for user in (_TENANT, ticket.user):
            tx.sql.execute(
                "INSERT INTO served VALUES (?1, ?2, (SELECT coalesce(max(number), 0) + 1 FROM served))"
                " ON CONFLICT (tenant, user) DO UPDATE SET number = excluded.number",
                (ticket.tenant, user),
            )
