"""The ledger in this process's memory: for `run` without a state directory, and for tests."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import TypeVar

from agentao_gov.budget import journal
from agentao_gov.budget.balance import THOUSANDTHS, BalanceKey, BalanceRecord, balance_name
from agentao_gov.budget.core import LedgerCore, LocalStore, QueuedCall
from agentao_gov.budget.journal import STATE_AFTER, Checkpoint, JournalEntry, over_by, plan, verify_records
from agentao_gov.budget.reservation import OPEN_STATES, CallRecord, Posting, after, held_by_note
from agentao_gov.budget.store import JournalRow, StoreSettings, Verification
from agentao_gov.budget.types import ReservationState, ReserveRequest, ScopeLimit
from agentao_gov.clock import SYSTEM_CLOCK, Clock

T = TypeVar("T")

#: There is only one owner, and it dies together with the store.
_OWNER = "memory"
#: Entries of the journal at which the older half is replaced by a checkpoint: nobody looks at them later, and they
#: would be all that a process remembers after a month.
_ROWS_MAX = 2_048
#: How long a turn's balance is kept after its last call: longer than any turn pauses between two of them.
_TURN_MS = 3_600_000


class MemoryRecords:
    """Implements Records as plain values. One thread at a time."""

    def __init__(self) -> None:
        #: By reference, which is the balance's name.
        self.kept: dict[str, BalanceRecord] = {}
        self.calls: dict[str, CallRecord] = {}
        self.queue: dict[str, QueuedCall] = {}
        #: Journal rows in order, from the one after the checkpoint on.
        self.rows: list[JournalRow] = []
        self.checkpoint = Checkpoint()
        self.last_ms = 0
        #: Time of the last entry about each balance, Unix milliseconds.
        self._touched: dict[str, int] = {}
        self._served: dict[tuple[str, str | None], int] = {}
        self._arrivals = 0

    @property
    def waiting(self) -> bool:
        return bool(self.queue)

    def call(self, call_id: str) -> CallRecord | None:
        return self.calls.get(call_id)

    def held_by(self, owner: str) -> list[CallRecord]:
        return [call for call in self.calls.values() if call.owner == owner and call.holding.state in OPEN_STATES]

    def find(self, keys: Sequence[BalanceKey]) -> list[BalanceRecord]:
        return [self.kept.get(balance_name(key)) or BalanceRecord(key) for key in keys]

    def load(self, refs: Sequence[str]) -> list[BalanceRecord]:
        return [self.kept[ref] for ref in refs]

    def open(self, key: BalanceKey) -> str:
        ref = balance_name(key)
        self.kept[ref] = BalanceRecord(key, ref)
        return ref

    def timezones(self) -> list[str]:
        return list({balance.key[1]: None for balance in self.kept.values() if balance.key[0].kind != "turn"})

    def daily(self, timezone: str, window: str | None) -> Iterable[BalanceRecord]:
        return [
            balance
            for balance in self.kept.values()
            if balance.key[0].kind != "turn" and balance.key[1] == timezone and window in (None, balance.key[2])
        ]

    def append(self, entry: JournalEntry) -> None:
        balances = self.load(entry.refs)
        text = journal.encode(entry)
        number, _, digest = self.rows[-1] if self.rows else (self.checkpoint.number, "", self.checkpoint.hash)
        self.rows.append((number + 1, text, journal.chain(digest, text)))
        self.last_ms = entry.at_ms
        for balance in balances:
            self._touched[balance.ref] = entry.at_ms
            balance.used += entry.used
            balance.reserved += entry.reserved
            balance.estimated += entry.estimated
            balance.granted += entry.granted
            balance.cost += entry.cost
            balance.unpriced += entry.unpriced
        if entry.kind == "limit":
            self.kept[entry.id].limit = None if entry.note == "None" else int(entry.note)
        elif entry.kind == "warn":
            self.kept[entry.id].warned = int(entry.note) / THOUSANDTHS
        elif entry.kind == "reserve":
            self.calls[entry.id] = CallRecord(entry.id, entry.owner, entry.refs, held_by_note(entry.note))
        elif (call := self.calls.get(entry.id)) is not None:
            state = STATE_AFTER.get(entry.kind, call.holding.state)
            posting = Posting(state, entry.used, entry.reserved, entry.estimated, entry.cost, entry.unpriced)
            self.calls[entry.id] = call._replace(holding=after(call.holding, posting, extends=entry.kind == "extend"))

    def waiters(self) -> list[QueuedCall]:
        return list(self.queue.values())

    def waits(self, call_id: str) -> bool:
        return call_id in self.queue

    def enqueue(self, request: ReserveRequest, owner: str) -> None:
        self._arrivals += 1
        self.queue[request.id] = QueuedCall(self._arrivals, request, owner)

    def dequeue(self, call_id: str) -> bool:
        found = self.queue.pop(call_id, None) is not None
        if not self.queue:
            # Nobody waits any more, so nobody's turn has to be remembered.
            self._served.clear()
        return found

    def dequeue_owner(self, owner: str) -> None:
        for call_id in [call_id for call_id, waiter in self.queue.items() if waiter.owner == owner]:
            self.dequeue(call_id)

    def served(self) -> dict[tuple[str, str | None], int]:
        return self._served

    def note_served(self, tenant: str, user: str) -> None:
        number = max(self._served.values(), default=0) + 1
        self._served[(tenant, None)] = self._served[(tenant, user)] = number

    def cut_if_long(self) -> None:
        """Replaces the older half of a long journal by a checkpoint: a process may live for months."""
        if len(self.rows) < _ROWS_MAX:
            return
        days_over = over_by(self.last_ms)

        def over(name: str, _: int) -> bool:
            # By the last entry of all, not of those that are cut.
            touched_ms = self._touched.get(name, 0)
            rested = self.last_ms - touched_ms > _TURN_MS
            return rested and (name.startswith("turn:") or days_over(name, touched_ms))

        half = len(self.rows) // 2
        # What may still be posted to: by calls that are open, and by corrections of those that were charged.
        held = {
            ref
            for call in self.calls.values()
            if call.holding.state is not ReservationState.SETTLED
            for ref in call.refs
        }
        planned = plan(self.checkpoint, self.rows[:half], over, held)
        if planned is None:
            return
        self.checkpoint, self.rows = planned.after, self.rows[half:]
        for call_id in planned.calls:
            self.calls.pop(call_id, None)
        for ref in planned.over:
            self.kept.pop(ref, None)
            self._touched.pop(ref, None)
        self.append(JournalEntry(self.last_ms, "checkpoint", "", _OWNER, (), note=planned.after.note()))


class MemoryStore(LocalStore):
    """A ledger's core over plain values, behind a lock. Nothing outlives the process. Methods are described in Store.

    `clock` tells the time of entries; `settings` are what the ledger sets later.
    """

    owner_id = _OWNER

    def __init__(self, clock: Clock = SYSTEM_CLOCK, settings: StoreSettings | None = None) -> None:
        self._clock = clock
        #: One step at a time; everything below is under it.
        self._lock = threading.Lock()
        self._records = MemoryRecords()
        self.core = LedgerCore(self._records, settings or StoreSettings())

    def _perform(
        self,
        step: Callable[[int], T],
        name: str = "",  # noqa: ARG002
        *,
        call_id: str = "",  # noqa: ARG002
        scopes: Sequence[ScopeLimit] = (),  # noqa: ARG002
        write: bool = True,
    ) -> T:
        with self._lock:
            result = step(int(self._clock.time() * 1000))
            if write:
                self._records.cut_if_long()
            answered = self.core.take_answered()
        if answered:
            self.settings.notice(answered)
        return result

    def answered(self, reservation_ids: Sequence[str]) -> list[str]:  # noqa: ARG002
        # Notices reach everyone here, so there is nothing to look up.
        return []

    def heartbeat(self) -> None:
        """The only owner is this process."""

    def journal(self) -> Iterable[JournalRow]:
        with self._lock:
            return list(self._records.rows)

    def verify(self) -> Verification:
        with self._lock:
            records = self._records
            rows, checkpoint, calls = list(records.rows), records.checkpoint, list(records.calls.values())
            balances = [replace(balance) for balance in records.kept.values()]
        return verify_records(journal.replay(rows, base=checkpoint.replay()), checkpoint, balances, calls)

    def close(self) -> None:
        """Lets go of nothing: there is nothing outside the process."""
