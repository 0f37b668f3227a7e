"""The short way of a step: one statement that appends its journal entry, provided that nothing has changed.

What a turn's calls do is nearly always one entry about lines that this process knows. It is decided on what is known,
and appended only if the journal still ends where it is known to end: one statement instead of five, which is also all
that the file is locked for. Whatever is not as expected is left to the long way, which looks first.
"""

from __future__ import annotations

import sqlite3
from typing import TYPE_CHECKING

from agentao_gov.budget import failpoints, journal, reservation
from agentao_gov.budget.admission import Answer
from agentao_gov.budget.balance import crosses
from agentao_gov.budget.journal import Kind
from agentao_gov.budget.reservation import OPEN_STATES, Posting
from agentao_gov.budget.sqlite_lines import fits
from agentao_gov.budget.sqlite_rows import StoredCall
from agentao_gov.budget.sqlite_schema import is_busy, store_error
from agentao_gov.budget.sqlite_step import Step, following, granted, reserving
from agentao_gov.budget.store import Settlement
from agentao_gov.budget.types import Reservation, ReservationState, ReserveRequest

if TYPE_CHECKING:
    from agentao_gov.budget.sqlite import SqliteStore

__all__ = ["Appender"]

# No row is added where there is one of that number, as after any other process's step; where the one before is not the
# one that is known, as in a copy that was put back through SQLite itself; when anybody waits or this owner was given
# up, which leave no entry; or when the reservation that is to be made was made before the last fold. The condition
# stands in the hash, which must not be NULL: as a SELECT's it would cost a table of its own, and half as much again.
_APPEND = """
INSERT OR IGNORE INTO journal VALUES (?1, ?2, ?3, CASE
    WHEN (SELECT hash FROM journal WHERE number = ?1 - 1) = ?7
        AND NOT EXISTS (SELECT 1 FROM waiters)
        AND EXISTS (SELECT 1 FROM owners WHERE id = ?5)
        AND NOT EXISTS (SELECT 1 FROM calls WHERE id = ?6)
    THEN ?4 END)
"""


_DISPATCHED = Posting(ReservationState.DISPATCHED)
_SETTLED = Settlement(posted=True)


class Appender:
    """Each method returns None when the step has to go the long way; then nothing was changed."""

    def __init__(self, store: SqliteStore) -> None:
        self._store = store
        self._owner_id = store.owner.id

    def reserve(self, request: ReserveRequest) -> Reservation | None:
        """Reserves what fits at once, in lines that are known, under limits that are."""
        store, cache = self._store, self._store.cache
        store.enter()
        try:
            at_ms = self._at_ms()
            if at_ms is None or request.id in cache.calls:
                return None
            lines = store.lines.known(cache, request, at_ms / 1000)
            if lines is None:
                return None
            answer, output, _ = fits(lines.values(), request)
            if answer is not Answer.GRANTED:
                return None
            price = store.settings.price(request.model)
            step = reserving(request, output, price, tuple(lines), self._owner_id, at_ms)
            if not self._append("reserve", step, new_id=request.id):
                return None
        finally:
            store.lock.release()
        failpoints.reach("after_reserve_commit")
        return granted(request, output, lines.values())

    def dispatch(self, call_id: str) -> bool:
        """Reserved → dispatched. False: by the long way."""
        store = self._store
        store.enter()
        try:
            call = store.cache.calls.get(call_id)
            if call is None or call.holding.state is not ReservationState.RESERVED:
                return False
            if not self._follow("dispatch", call_id, call, _DISPATCHED):
                return False
        finally:
            store.lock.release()
        failpoints.reach("after_dispatch_commit")
        return True

    def settle(self, call_id: str, prompt: int, completion: int, estimated: int) -> Settlement | None:
        """Replaces what is held by what was used, where that passes no soft threshold."""
        store = self._store
        store.enter()
        try:
            call = store.cache.calls.get(call_id)
            if call is None or call.holding.state not in OPEN_STATES:
                return None
            posting = reservation.settle(call.holding, prompt, completion, estimated)
            if posting is None or not self._follow("settle", call_id, call, posting):
                return None
        finally:
            store.lock.release()
        failpoints.reach("after_settle_commit")
        return _SETTLED

    def _follow(self, kind: Kind, call_id: str, call: StoredCall, posting: Posting) -> bool:
        known, warn_at = self._store.cache.lines, self._store.settings.warn_at
        for number in call.lines:
            line = known.get(number)
            if line is None or (posting.used and crosses(line, line.used + posting.used, warn_at)):
                return False
        at_ms = self._at_ms()
        return at_ms is not None and self._append(kind, following(kind, call_id, call, posting, self._owner_id, at_ms))

    def _at_ms(self) -> int | None:
        """The ledger's time; None where something may have been written that is not known here."""
        store, cache = self._store, self._store.cache
        if not cache.sure or store.mark.last > cache.last:
            return None
        return max(int(store.clock.time() * 1000), cache.at_ms)

    def _append(self, name: Kind, step: Step, new_id: str | None = None) -> bool:
        store, cache = self._store, self._store.cache
        text = journal.encode(step.entry)
        digest = journal.chain(cache.hash, text)
        number = cache.last + 1
        failpoints.reach(f"before_{name}_commit")
        values = (number, step.entry.at_ms, text, digest, self._owner_id, new_id, cache.hash)
        try:
            if store.connection.execute(_APPEND, values).rowcount != 1:
                cache.version = -1
                return False
            cache.last, cache.hash, cache.at_ms = number, digest, step.entry.at_ms
            store.mark.advance(number)
            cache.apply(store.connection, step)
        except sqlite3.Error as error:
            if isinstance(error, sqlite3.OperationalError) and is_busy(error):
                # Another process writes at this moment: what is known here will not be the journal's end.
                cache.alone = False
                return False
            cache.forget()
            raise store_error(store.path, error) from error
        except BaseException:
            # Ctrl-C between the entry and what is known of it, say: the file is read anew.
            cache.forget()
            raise
        return True
