"""The ledger in a SQLite file, shared by all processes of one machine: the default."""

from __future__ import annotations

import contextlib
import sqlite3
import threading
from collections.abc import Iterable, Sequence
from pathlib import Path

from agentao_gov.budget import failpoints, reservation
from agentao_gov.budget.admission import Answer, Attempted, extendable
from agentao_gov.budget.balance import Line, crossed, lower_warned, refusal, within_window
from agentao_gov.budget.high_water import Mark
from agentao_gov.budget.journal import Entry, Kind
from agentao_gov.budget.owner import this_process
from agentao_gov.budget.reservation import Posting
from agentao_gov.budget.sqlite_append import Appender
from agentao_gov.budget.sqlite_cache import Cache
from agentao_gov.budget.sqlite_file import LedgerFile
from agentao_gov.budget.sqlite_lines import LineTable
from agentao_gov.budget.sqlite_owners import OwnerTable
from agentao_gov.budget.sqlite_queue import WaitingTable
from agentao_gov.budget.sqlite_reading import SqliteReader
from agentao_gov.budget.sqlite_rows import StoredCall
from agentao_gov.budget.sqlite_schema import LOCKED_HINT, Synchronous, connect, create, store_error
from agentao_gov.budget.sqlite_step import following, granted, reserving
from agentao_gov.budget.sqlite_tx import Transaction
from agentao_gov.budget.sqlite_upkeep import Upkeep
from agentao_gov.budget.sqlite_verify import read_journal, verify_file
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

__all__ = ["SqliteStore"]


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
