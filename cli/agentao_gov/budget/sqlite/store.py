"""The ledger in a SQLite file, shared by all processes of one machine: the default."""

from __future__ import annotations

import contextlib
import logging
import sqlite3
import threading
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from agentao_gov.budget import failpoints, journal, reservation
from agentao_gov.budget.admission import Answer, Attempted, extendable
from agentao_gov.budget.balance import Line, crossed, crosses, lower_warned, refusal, within_window
from agentao_gov.budget.high_water import Mark
from agentao_gov.budget.journal import Entry, Kind
from agentao_gov.budget.reservation import OPEN_STATES, Posting
from agentao_gov.budget.sqlite.file import (
    LOCKED_HINT,
    LedgerFile,
    Synchronous,
    connect,
    create,
    is_busy,
    patiently,
    store_error,
)
from agentao_gov.budget.sqlite.rows import StoredCall
from agentao_gov.budget.sqlite.tables import (
    FOLD_ENTRIES,
    LineTable,
    OwnerTable,
    WaitingTable,
    cut,
    fits,
    fold,
    plan_cut,
)
from agentao_gov.budget.sqlite.transaction import Cache, Step, Transaction, following, granted, reserving
from agentao_gov.budget.sqlite.verify import read_journal, verify_file
from agentao_gov.budget.store import (
    Crossing,
    JournalRow,
    Refused,
    Settlement,
    StoreSettings,
    Verification,
    Waiting,
)
from agentao_gov.budget.types import (
    Balance,
    Reservation,
    ReservationLostError,
    ReservationState,
    ReserveRequest,
    ScopeLimit,
)
from agentao_gov.clock import SYSTEM_CLOCK, Clock
from agentao_gov.errors import StoreError
from agentao_gov.process.owner import this_process

__all__ = ["Appender", "SqliteReader", "SqliteStore", "Upkeep"]


# The short way of a step: one statement that appends its journal entry, provided that nothing has changed.
#
# What a turn's calls do is nearly always one entry about lines that this process knows. It is decided on what is known,
# and appended only if the journal still ends where it is known to end: one statement instead of five, which is also all
# that the file is locked for. Whatever is not as expected is left to the long way, which looks first.

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


# Looks at a ledger file without writing: balances, and which waiting calls were answered by other processes.


class SqliteReader:
    """Uses the store's connection, under the store's lock."""

    def __init__(self, store: SqliteStore) -> None:
        self._store = store
        #: What the file looked like when `answered` was asked last, and for whom; under the store's lock.
        self._seen_version = -1
        self._asked: frozenset[str] = frozenset()

    def answered(self, reservation_ids: Sequence[str]) -> list[str]:
        """See Store."""
        self._store.file.check_process()
        with self._store.lock:
            try:
                ((version,),) = self._read("PRAGMA data_version")
                if version == self._seen_version and self._asked.issuperset(reservation_ids):
                    return []
                waiting = {row[0] for row in self._read("SELECT id FROM waiters")}
                # One who was not asked for then may have been answered in the same state of the file.
                self._seen_version, self._asked = version, frozenset(reservation_ids)
            except sqlite3.Error as error:
                raise store_error(self._store.path, error) from error
        return [call_id for call_id in reservation_ids if call_id not in waiting]

    def balances(self, scopes: Sequence[ScopeLimit]) -> tuple[Balance, ...]:
        """See Store."""
        with Transaction(self._store, write=False) as tx:
            return self._store.lines.balances(tx, scopes)

    def all_balances(self, window: str | None) -> tuple[Balance, ...]:
        """See Store."""
        with Transaction(self._store, write=False) as tx:
            return self._store.lines.all_balances(tx, window)

    def _read(self, statement: str) -> list[tuple[Any, ...]]:
        """Rows; waits where someone opens or closes the file."""
        store = self._store
        return patiently(lambda: store.connection.execute(statement).fetchall(), store.lock_wait_s)


# Keeps a ledger file small and its tables true: when they are brought up to date, and what is let go of.

_log = logging.getLogger(__name__)


class Upkeep:
    """Beside the calls of turns: after some of them, and with every heartbeat."""

    def __init__(self, store: SqliteStore) -> None:
        self._store = store

    def fold_if_due(self) -> None:
        """Folds once enough has changed. Never fails: the call before it is recorded."""
        cache = self._store.cache
        if cache.last - cache.folded < FOLD_ENTRIES:
            return
        try:
            self.fold()
        except StoreError as error:
            # The next call meets the same failure and fails closed.
            _log.warning("the ledger's tables could not be brought up to date: %s", error)

    def fold(self) -> None:
        """Brings the tables up to the journal's last entry."""
        try:
            with Transaction(self._store, "fold") as tx:
                if tx.last > tx.cache.folded:
                    fold(tx)
        except OverflowError as error:
            # More than a column holds, 9.2 million dollars a day: no provider's honest report leads there.
            raise store_error(self._store.path, error) from error

    def cut(self) -> None:
        """Replaces the oldest part of the journal by a checkpoint where it is older than is kept.

        The caller holds the lock of the file's second connection.
        """
        store = self._store
        try:
            planned = plan_cut(store.file.sql, store.clock.time() * 1000, store.retain_s * 1000)
            if planned is not None:
                with Transaction(store, "cut") as tx:
                    cut(tx, planned, store.owner.id)
            store.file.give_back()
        except sqlite3.Error as error:
            raise store_error(store.path, error) from error


class SqliteStore:
    """Implements Store. One connection behind a lock: SQLite has one writer anyway, and waiting here is fair and cheap.

    `synchronous="NORMAL"` survives every crash of a process; a power cut may lose the last moments, `"FULL"` does
    not and costs a disk sync per transaction. Not usable after a fork: open it in the child. Nor for a
    thread that signal handlers raise in, which is the main one: raised at the wrong moment it would leave this locked.
    """

    def __init__(
        self,
        path: Path,
        clock: Clock = SYSTEM_CLOCK,
        settings: StoreSettings | None = None,
        *,
        synchronous: Synchronous = "NORMAL",
        lock_wait_s: float = 5.0,
        lease_s: float = 30.0,
        retain_s: float = 30 * 86_400.0,
    ) -> None:
        self.path = path
        self.clock = clock
        self.settings = settings or StoreSettings()
        self.lock_wait_s = lock_wait_s
        #: How long entries of the journal are kept; a settled call older than that is in the balances alone.
        self.retain_s = retain_s
        #: One thread in the file at a time; everything below is under it.
        self.lock = threading.Lock()
        self.cache = Cache()
        self.owner = this_process()
        self._owner_id = self.owner.id
        self.lines = LineTable(self.owner.id)
        self._owners = OwnerTable(self.owner, lease_s, clock)
        self._queue = WaitingTable()
        self._reader = SqliteReader(self)
        self._upkeep = Upkeep(self)
        self._appender = Appender(self)
        self._closed = False
        try:
            create(path, int(clock.time() * 1000), lock_wait_s)
            self.connection = connect(path, synchronous, lock_wait_s)
            self.file = LedgerFile(path, synchronous, lock_wait_s)
            self.mark = Mark(path.with_name(path.name + ".mark"))
        except (sqlite3.Error, OSError) as error:
            raise store_error(path, error) from error
        try:
            self._admit()
            self.heartbeat()
        except BaseException:
            self.connection.close()
            self.file.sql.close()
            raise

    def enter(self) -> None:
        """Takes the lock, of this process and on the file that is still at the path; raises StoreError otherwise."""
        self.file.check_process()
        if not self.lock.acquire(timeout=self.lock_wait_s):
            # Whoever has it waits for the file: all who stand behind would else wait so long one after the other.
            raise StoreError(f"The token ledger {self.path} cannot be used: it is locked.", hint=LOCKED_HINT)
        try:
            self.file.check()
        except BaseException:
            self.lock.release()
            raise

    # ── calls ─────────────────────────────────────────────────────────────────────────────────────

    def reserve(self, request: ReserveRequest) -> Reservation | Refused | Waiting:
        """See Store."""
        failpoints.reach("before_reserve")
        answer = self._appender.reserve(request) or self._reserve(request)
        self._upkeep.fold_if_due()
        return answer

    def _reserve(self, request: ReserveRequest) -> Reservation | Refused | Waiting:
        with Transaction(self, "reserve") as tx:
            if not tx.cache.known_owner:
                self._owners.beat(tx)
            answer = self._reserve_behind(tx, request) if tx.cache.waiting else self._attempt(tx, request)
            if isinstance(answer, Refused) and not tx.answered:
                # A refusal leaves no trace: whoever asks a thousand times fills nothing.
                tx.discard()
        return answer

    def _attempt(self, tx: Transaction, request: ReserveRequest) -> Reservation | Refused | Waiting:
        if (known := self._find(tx, request.id)) is not None:
            return known
        lines, admission = self.lines.admission(tx, request)
        if admission.answer is Answer.GRANTED:
            return self._hold(tx, request, self._owner_id, lines, admission.output_tokens)
        line = list(lines.values())[admission.blocking[0]]
        if admission.answer is Answer.WAIT:
            self._queue.add(tx, request, self.owner.id)
            return Waiting(line.key[0])
        left_s = within_window(self.lines.calendar, line.key, tx.at_ms / 1000)
        return refusal(admission.answer, line.balance, request, left_s)

    def _reserve_behind(self, tx: Transaction, request: ReserveRequest) -> Reservation | Refused | Waiting:
        if (known := self._find(tx, request.id)) is not None:
            return known
        if not self._queue.has(tx, request.id):
            _, (answer, _, _) = self.lines.admission(tx, request)
            if answer in (Answer.EXHAUSTED, Answer.IMPOSSIBLE):
                # Waiting cannot help: the call is told so at once, however many wait.
                return self._attempt(tx, request)
            self._queue.add(tx, request, self.owner.id)
        self._serve_waiting(tx)
        if (served := self._find(tx, request.id)) is not None:
            return served
        if self._queue.has(tx, request.id):
            return Waiting(request.scopes[0].scope)
        return self._attempt(tx, request)

    def _hold(
        self, tx: Transaction, request: ReserveRequest, owner: str, lines: dict[int, Line], output: int
    ) -> Reservation:
        price = self.settings.price(request.model)
        tx.write(reserving(request, output, price, tuple(lines), owner, tx.at_ms))
        return granted(request, output, lines.values())

    def dispatch(self, reservation_id: str) -> None:
        """See Store."""
        if self._appender.dispatch(reservation_id):
            return
        with Transaction(self, "dispatch") as tx:
            call = self._call(tx, reservation_id)
            state = call.holding.state
            if state is ReservationState.DISPATCHED:
                return
            if state is not ReservationState.RESERVED:
                raise ReservationLostError(f"Reservation {reservation_id} is {state} and cannot be sent.")
            self._post(tx, "dispatch", reservation_id, call, Posting(ReservationState.DISPATCHED))

    def extend(self, reservation_id: str, output_tokens: int) -> int:
        """See Store."""
        with Transaction(self) as tx:
            call = self._call(tx, reservation_id)
            state = call.holding.state
            if state not in reservation.OPEN_STATES or output_tokens <= 0:
                return 0
            lines = tx.cache.load(tx.sql, call.lines)
            more = extendable([line.level for line in lines.values()], output_tokens)
            if more:
                self._post(tx, "extend", reservation_id, call, Posting(state, reserved=more))
            return more

    def settle(self, reservation_id: str, prompt: int, completion: int, estimated: int) -> Settlement:
        """See Store."""
        failpoints.reach("before_settle")
        settlement = self._appender.settle(reservation_id, prompt, completion, estimated) or self._settle(
            reservation_id, prompt, completion, estimated
        )
        self._upkeep.fold_if_due()
        return settlement

    def _settle(self, reservation_id: str, prompt: int, completion: int, estimated: int) -> Settlement:
        with Transaction(self, "settle") as tx:
            call = self._call(tx, reservation_id)
            kind: Kind = "settle" if call.holding.state in reservation.OPEN_STATES else "correct"
            posting = reservation.settle(call.holding, prompt, completion, estimated)
            return self._finish(tx, kind, reservation_id, call, posting)

    def charge(self, reservation_id: str, prompt: int, completion: int) -> Settlement:
        """See Store."""
        with Transaction(self) as tx:
            call = self._call(tx, reservation_id)
            return self._finish(
                tx, "charge", reservation_id, call, reservation.charge(call.holding, prompt, completion)
            )

    def release(self, reservation_id: str) -> None:
        """See Store."""
        with Transaction(self) as tx:
            call = self._call(tx, reservation_id)
            self._finish(tx, "release", reservation_id, call, reservation.release(call.holding))

    def withdraw(self, reservation_id: str) -> None:
        """See Store."""
        with Transaction(self) as tx:
            if self._queue.remove(tx, reservation_id):
                self._serve_waiting(tx)
                return
            call = tx.cache.find(tx.sql, reservation_id)
            if call is not None and call.holding.state is ReservationState.RESERVED:
                self._finish(tx, "release", reservation_id, call, reservation.release(call.holding))

    def _finish(
        self, tx: Transaction, kind: Kind, call_id: str, call: StoredCall, posting: Posting | None
    ) -> Settlement:
        if posting is None:
            return Settlement(posted=False)
        crossings = self._post(tx, kind, call_id, call, posting)
        if tx.cache.waiting and min(posting.used, posting.reserved) < 0:
            self._serve_waiting(tx)
        return Settlement(posted=True, crossings=crossings)

    def _post(
        self, tx: Transaction, kind: Kind, call_id: str, call: StoredCall, posting: Posting
    ) -> tuple[Crossing, ...]:
        lines = tx.write(following(kind, call_id, call, posting, self._owner_id, tx.at_ms))
        if not posting.used:
            return ()
        crossings = []
        for line_id, line in lines.items():
            if (crossing := crossed(line, self.settings.warn_at)) is not None:
                crossings.append(crossing)
                self.lines.set_warned(tx, line_id, line)
        return tuple(crossings)

    @staticmethod
    def _find(tx: Transaction, call_id: str) -> Reservation | None:
        call = tx.cache.find(tx.sql, call_id)
        if call is None:
            return None
        held = call.holding
        windows = tuple(line.key[2] for line in tx.cache.load(tx.sql, call.lines).values())
        return Reservation(call_id, held.held_prompt, held.held_output, windows, held.state)

    @staticmethod
    def _call(tx: Transaction, call_id: str) -> StoredCall:
        call = tx.cache.find(tx.sql, call_id)
        if call is None:
            raise ReservationLostError(f"There is no reservation {call_id}.")
        return call

    # ── waiting ───────────────────────────────────────────────────────────────────────────────────

    def _serve_waiting(self, tx: Transaction) -> None:
        def attempt(request: ReserveRequest, owner: str) -> Attempted:
            lines, admission = self.lines.admission(tx, request)
            if admission.answer is Answer.WAIT:
                scopes = [line.key[0] for line in lines.values()]
                return tuple(scopes[position] for position in admission.blocking)
            if admission.answer is not Answer.GRANTED:
                return "refused"
            self._hold(tx, request, owner, lines, admission.output_tokens)
            return "served"

        self._queue.serve(tx, attempt)

    def answered(self, reservation_ids: Sequence[str]) -> list[str]:
        """See Store."""
        return self._reader.answered(reservation_ids)

    def serve_waiting(self) -> None:
        """See Store."""
        with Transaction(self) as tx:
            if tx.cache.waiting:
                self._serve_waiting(tx)

    # ── owners ────────────────────────────────────────────────────────────────────────────────────

    def _admit(self) -> None:
        """Makes sure that this file is the one the mark was kept for, before anything is written."""
        with Transaction(self, checked=False) as tx:
            (ledger_id,) = tx.sql.execute("SELECT value FROM meta WHERE name = 'ledger_id'").fetchone()
            self.mark.admit(ledger_id, tx.last)

    def heartbeat(self) -> None:
        """See Store. Then syncs what was written, so that the mark may rely on it, and lets go of what is old."""
        self.file.check_process()
        with self.lock:
            # Once per beat the journal's end is looked at in the file itself, and compared with the mark.
            self.cache.version = -1
        with Transaction(self) as tx:
            self._owners.beat(tx)
            for owner_id in self._owners.dead(tx):
                failpoints.reach("during_recovery")
                self._resolve(tx, owner_id)
        self._upkeep.fold()
        with self.file.lock:
            if not self._closed:
                self._upkeep.cut()
                self.file.sync(self.mark)

    def _resolve(self, tx: Transaction, owner_id: str) -> None:
        """What a dead owner had not sent is given back; what it had sent is charged its bound."""
        self._queue.remove_owner(tx, owner_id)
        for call_id, call in self._owners.held_by(tx, owner_id).items():
            held = call.holding
            if held.state is ReservationState.RESERVED:
                self._finish(tx, "release", call_id, call, reservation.release(held))
            else:
                posting = reservation.charge(held, held.held_prompt, held.held_output)
                self._finish(tx, "charge", call_id, call, posting)
        self._owners.forget(tx, owner_id)
        if tx.cache.waiting:
            self._serve_waiting(tx)

    # ── balances ──────────────────────────────────────────────────────────────────────────────────

    def grant(self, scope: ScopeLimit, tokens: int) -> Balance:
        """See Store."""
        with Transaction(self) as tx:
            line_id, line = self.lines.line(tx, scope)
            line.granted += tokens
            tx.cache.changed_lines.add(line_id)
            warned = line.warned
            lower_warned(line, self.settings.warn_at)
            if line.warned != warned:
                self.lines.set_warned(tx, line_id, line)
            tx.append(Entry(tx.at_ms, "grant", "", self.owner.id, (str(line_id),), granted=tokens))
            if tx.cache.waiting:
                self._serve_waiting(tx)
            return line.balance

    def balances(self, scopes: Sequence[ScopeLimit]) -> tuple[Balance, ...]:
        """See Store."""
        return self._reader.balances(scopes)

    def all_balances(self, window: str | None = None) -> tuple[Balance, ...]:
        """See Store."""
        return self._reader.all_balances(window)

    def journal(self) -> Iterable[JournalRow]:
        """See Store."""
        return read_journal(self.path)

    def verify(self) -> Verification:
        """See Store."""
        return verify_file(self.path)

    def close(self) -> None:
        """See Store. Idempotent."""
        if self.file.forked:
            # It is the parent's to close.
            return
        with self.file.lock:
            if self._closed:
                return
            self._closed = True
            # A file that fails now is no reason not to close it: then a neighbour resolves what is left.
            with contextlib.suppress(StoreError):
                with Transaction(self) as tx:
                    self._resolve(tx, self.owner.id)
                self._upkeep.fold()
            with self.lock:
                self.cache.forget()
                self.file.sql.close()
                self.connection.close()
                self.mark.close()
