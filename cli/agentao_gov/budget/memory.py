"""The ledger in this process's memory: for `run` without a state directory, for tests, and as the others' model."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence

from agentao_gov.budget import journal
from agentao_gov.budget.book import Book
from agentao_gov.budget.checkpoint import Checkpoint, over_by, plan
from agentao_gov.budget.journal import Entry
from agentao_gov.budget.line import Line, line_name
from agentao_gov.budget.states import OPEN_STATES
from agentao_gov.budget.store import JournalRow, Refused, Settlement, StoreSettings, Verification, Waiting
from agentao_gov.budget.types import Balance, Reservation, ReservationState, ReserveRequest, ScopeLimit
from agentao_gov.clock import SYSTEM_CLOCK, Clock

__all__ = ["MemoryStore"]

#: There is only one owner, and it dies together with the store.
_OWNER = "memory"
#: Entries of the journal at which the older half is replaced by a checkpoint: nobody looks at them later, and they
#: would be all that a process remembers after a month.
_ROWS_MAX = 2_048
#: How long a turn's line is kept after its last call: longer than any turn pauses between two of them.
_TURN_S = 3_600.0


class MemoryStore:
    """A Book behind a lock. Nothing outlives the process."""

    def __init__(self, clock: Clock = SYSTEM_CLOCK, settings: StoreSettings | None = None) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        #: Journal rows in order, from the one after the checkpoint on; under the lock.
        self._rows: list[JournalRow] = []
        self._checkpoint = Checkpoint()
        self._settings = settings or StoreSettings()
        self._book = Book(self._append)
        self.settings = self._settings

    @property
    def settings(self) -> StoreSettings:
        """What the ledger told this store."""
        return self._settings

    @settings.setter
    def settings(self, settings: StoreSettings) -> None:
        self._settings = settings
        self._book.warn_at = settings.warn_at
        self._book.price = settings.price

    def reserve(self, request: ReserveRequest) -> Reservation | Refused | Waiting:
        """See Store."""
        with self._lock:
            result = self._book.reserve(request, _OWNER, self._clock.time())
            answered = self._collect()
        self._settings.notice(answered)
        return result

    def withdraw(self, reservation_id: str) -> None:
        """See Store."""
        with self._lock:
            self._book.withdraw(reservation_id, _OWNER, self._clock.time())
            answered = self._collect()
        self._settings.notice(answered)

    def dispatch(self, reservation_id: str) -> None:
        """See Store."""
        with self._lock:
            self._book.dispatch(reservation_id, _OWNER, self._clock.time())

    def extend(self, reservation_id: str, output_tokens: int) -> int:
        """See Store."""
        with self._lock:
            return self._book.extend(reservation_id, output_tokens, _OWNER, self._clock.time())

    def settle(self, reservation_id: str, prompt: int, completion: int, estimated: int) -> Settlement:
        """See Store."""
        with self._lock:
            crossings = self._book.settle(reservation_id, prompt, completion, estimated, _OWNER, self._clock.time())
            answered = self._collect()
        self._settings.notice(answered)
        return Settlement(crossings is not None, crossings or ())

    def charge(self, reservation_id: str, prompt: int, completion: int) -> Settlement:
        """See Store."""
        with self._lock:
            crossings = self._book.charge(reservation_id, prompt, completion, _OWNER, self._clock.time())
            answered = self._collect()
        self._settings.notice(answered)
        return Settlement(crossings is not None, crossings or ())

    def release(self, reservation_id: str) -> None:
        """See Store."""
        with self._lock:
            self._book.release(reservation_id, _OWNER, self._clock.time())
            answered = self._collect()
        self._settings.notice(answered)

    def grant(self, scope: ScopeLimit, tokens: int) -> Balance:
        """See Store."""
        with self._lock:
            balance = self._book.grant(scope, tokens, _OWNER, self._clock.time())
            answered = self._collect()
        self._settings.notice(answered)
        return balance

    def balances(self, scopes: Sequence[ScopeLimit]) -> tuple[Balance, ...]:
        """See Store."""
        with self._lock:
            return self._book.balances(scopes, self._clock.time())

    def all_balances(self, window: str | None = None) -> tuple[Balance, ...]:
        """See Store."""
        with self._lock:
            now_s = self._book.seen(self._clock.time())
            return tuple(
                line.balance
                for line in self._book.lines.values()
                if line.key[0].kind != "turn" and (window or self._today(line, now_s)) in ("all", line.key[2])
            )

    def answered(self, reservation_ids: Sequence[str]) -> list[str]:  # noqa: ARG002
        """See Store. Notices reach everyone here, so there is nothing to look up."""
        return []

    def serve_waiting(self) -> None:
        """See Store."""
        with self._lock:
            self._book.serve_waiting(self._clock.time())
            answered = self._collect()
        self._settings.notice(answered)

    def heartbeat(self) -> None:
        """See Store. The only owner is this process."""

    def journal(self) -> Iterable[JournalRow]:
        """See Store."""
        with self._lock:
            return list(self._rows)

    def verify(self) -> Verification:
        """See Store."""
        with self._lock:
            rows, lines = list(self._rows), {line_name(key): line for key, line in self._book.lines.items()}
            checkpoint = self._checkpoint
            sums = {name: _totals(line) for name, line in lines.items()}
            lost = [
                call.id
                for call in self._book.calls.values()
                if call.holding.state in OPEN_STATES and not self._book.lines.keys() >= set(call.lines)
            ]
            calls = {call.id: (call.holding.used, call.holding.held) for call in self._book.calls.values()}
        result = journal.replay(rows, base=checkpoint.replay())
        problems = list(result.problems)
        if (changed := checkpoint.problem(result)) is not None:
            problems.append(changed)
        for name, expected in sums.items():
            found = result.lines.get(name, journal.Totals())
            if found != expected:
                problems.append(f"balance of {name}: the journal adds up to {found}, the balance says {expected}")
        for call_id, expected_call in calls.items():
            total = result.calls.get(call_id, journal.Totals())
            if call_id not in result.notes:
                # It began before the checkpoint and was corrected after it.
                continue
            if (total.used, total.reserved) != expected_call:
                problems.append(f"reservation {call_id} does not match the journal")
        problems += [f"reservation {name} holds tokens of a line that is not there" for name in lost]
        problems += [
            f"balance of {name}: {total.reserved:,} tokens are reserved"
            for name, total in sums.items()
            if total.reserved < 0
        ]
        return Verification(result.entries, len(sums), len(calls), result.head.hex(), tuple(problems))

    def close(self) -> None:
        """See Store."""

    def _today(self, line: Line, now_s: float) -> str:
        scope, timezone, _ = line.key
        return self._book.line_key(ScopeLimit(scope, None, timezone), now_s)[2]

    def _append(self, entry: Entry) -> None:
        text = journal.encode(entry)
        previous = self._rows[-1][2] if self._rows else self._checkpoint.hash
        number = self._rows[-1][0] if self._rows else self._checkpoint.number
        self._rows.append((number + 1, text, journal.chain(previous, text)))

    def _cut_if_long(self) -> None:
        """Keeps a process that lives for months from remembering every call."""
        if len(self._rows) < _ROWS_MAX:
            return
        now_s = self._book.at(self._clock.time())
        keys = {line_name(key): key for key in self._book.lines}
        days_over = over_by(now_s * 1000)

        def over(name: str, touched_ms: int) -> bool:
            rested = now_s - self._book.lines[keys[name]].touched_s > _TURN_S
            return rested and (name.startswith("turn:") or days_over(name, touched_ms))

        half = len(self._rows) // 2
        # What may still be posted to: by calls that are open, and by corrections of those that were charged.
        kept = {
            line_name(key)
            for call in self._book.calls.values()
            if call.holding.state is not ReservationState.SETTLED
            for key in call.lines
        }
        planned = plan(self._checkpoint, self._rows[:half], over, kept)
        if planned is None:
            return
        self._checkpoint, self._rows = planned.after, self._rows[half:]
        self._book.forget(planned.calls, [keys[name] for name in planned.lines])
        self._append(Entry(int(now_s * 1000), "checkpoint", "", _OWNER, (), note=planned.after.note()))

    def _collect(self) -> list[str]:
        self._cut_if_long()
        answered, self._book.answered = self._book.answered, []
        return answered


def _totals(line: Line) -> journal.Totals:
    return journal.Totals(line.used, line.reserved, line.estimated, line.granted, line.cost, line.unpriced)
