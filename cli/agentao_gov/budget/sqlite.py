"""The ledger in a SQLite file, shared by all processes of one machine: the default."""
# ruff: noqa: S608 - statements are put together from constant column lists and placeholders only

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from agentao_gov.budget import failpoints, states
from agentao_gov.budget.admission import Answer, extendable
from agentao_gov.budget.book import Line, after, crossed, lower_warned, refusal, reserve_note, within_window
from agentao_gov.budget.errors import ReservationLostError
from agentao_gov.budget.journal import Entry, Kind
from agentao_gov.budget.mark import Mark
from agentao_gov.budget.owner import this_process
from agentao_gov.budget.queue import Attempted
from agentao_gov.budget.sqlite_lines import LineTable
from agentao_gov.budget.sqlite_owners import OwnerTable
from agentao_gov.budget.sqlite_queue import WaitingTable
from agentao_gov.budget.sqlite_rows import CALL_COLUMNS, LINE_COLUMNS, holding_of, line_of, placeholders
from agentao_gov.budget.sqlite_schema import Synchronous, connect, create, store_error
from agentao_gov.budget.sqlite_tx import Transaction
from agentao_gov.budget.sqlite_verify import read_journal, verify_file
from agentao_gov.budget.states import Holding, Posting
from agentao_gov.budget.store import (
    Crossing,
    JournalRow,
    Refused,
    Settlement,
    StoreSettings,
    Verification,
    Waiting,
)
from agentao_gov.budget.types import Balance, Reservation, ReservationState, ReserveRequest, ScopeLimit
from agentao_gov.clock import SYSTEM_CLOCK, Clock
from agentao_gov.errors import StoreError

__all__ = ["SqliteStore"]


class SqliteStore:
    """Implements Store. One connection behind a lock: SQLite has one writer anyway, and waiting here is fair and cheap.

    `synchronous="NORMAL"` survives every crash of a process; a power cut may lose the last moments, `"FULL"` does
    not and costs a disk sync per transaction. Not usable after a fork: open it in the child.
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
    ) -> None:
        self.path = path
        self.clock = clock
        self.settings = settings or StoreSettings()
        self.lock_wait_s = lock_wait_s
        #: One thread in the file at a time; everything below is under it.
        self.lock = threading.Lock()
        self.owner = this_process()
        self.lines = LineTable(self.owner.id)
        self._owners = OwnerTable(self.owner, lease_s)
        self._queue = WaitingTable()
        #: What the file looked like when `answered` was asked last.
        self._seen_version = -1
        self._closed = False
        try:
            create(path, int(clock.time() * 1000), lock_wait_s)
            self.connection = connect(path, synchronous)
            status = path.stat()
            self._file = (status.st_dev, status.st_ino)
            self.mark = Mark(path.with_name(path.name + ".mark"))
        except (sqlite3.Error, OSError) as error:
            raise store_error(path, error) from error
        try:
            self._admit()
            self.heartbeat()
        except BaseException:
            self.connection.close()
            raise

    # ── calls ─────────────────────────────────────────────────────────────────────────────────────

    def reserve(self, request: ReserveRequest) -> Reservation | Refused | Waiting:
        """See Store."""
        failpoints.reach("before_reserve")
        with Transaction(self, "reserve") as tx:
            if not tx.known_owner:
                self._owners.beat(tx)
            if tx.waiting:
                return self._reserve_behind(tx, request)
            return self._attempt(tx, request)

    def _attempt(self, tx: Transaction, request: ReserveRequest) -> Reservation | Refused | Waiting:
        lines, admission = self.lines.admission(tx, request)
        if admission.answer is Answer.GRANTED:
            try:
                return self._hold(tx, request, self.owner.id, lines, admission.output_tokens)
            except sqlite3.IntegrityError:
                # The same id again; found only now because the first time is the usual case.
                pass
        if (known := self._find(tx, request.id)) is not None:
            return known
        position = admission.blocking[0]
        line = list(lines.values())[position]
        if admission.answer is Answer.WAIT:
            self._queue.add(tx, request, self.owner.id)
            return Waiting(line.key[0])
        return refusal(
            admission.answer, line.balance, request, within_window(self.lines.calendar, line.key, tx.at_ms / 1000)
        )

    def _reserve_behind(self, tx: Transaction, request: ReserveRequest) -> Reservation | Refused | Waiting:
        if (known := self._find(tx, request.id)) is not None:
            return known
        if not self._queue.has(tx, request.id):
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
        held = Holding(ReservationState.RESERVED, request.prompt_tokens, output, price=price)
        ids = tuple(map(str, lines))
        tx.sql.execute(
            "INSERT INTO calls (id, owner, lines, state, held_prompt, held_output, price_prompt, price_completion)"
            " VALUES (?, ?, ?, 'reserved', ?, ?, ?, ?)",
            (
                request.id,
                owner,
                ",".join(ids),
                held.held_prompt,
                output,
                price.prompt if price else None,
                price.completion if price else None,
            ),
        )
        tx.sql.execute(
            f"UPDATE lines SET reserved = reserved + ? WHERE id IN ({placeholders(len(ids))})", (held.held, *lines)
        )
        posting = Posting(ReservationState.RESERVED, reserved=held.held)
        note = reserve_note(held)
        tx.append(Entry.of(posting, at_ms=tx.at_ms, kind="reserve", id=request.id, owner=owner, lines=ids, note=note))
        windows = tuple(line.key[2] for line in lines.values())
        return Reservation(request.id, held.held_prompt, output, windows)

    def dispatch(self, reservation_id: str) -> None:
        """See Store."""
        with Transaction(self, "dispatch") as tx:
            ids, held, _ = self._call(tx, reservation_id)
            if held.state is ReservationState.DISPATCHED:
                return
            if held.state is not ReservationState.RESERVED:
                raise ReservationLostError(f"Reservation {reservation_id} is {held.state} and cannot be sent.")
            self._post(tx, reservation_id, ids, held, "dispatch", Posting(ReservationState.DISPATCHED))

    def extend(self, reservation_id: str, output_tokens: int) -> int:
        """See Store."""
        with Transaction(self) as tx:
            ids, held, _ = self._call(tx, reservation_id)
            if held.state not in states.OPEN_STATES or output_tokens <= 0:
                return 0
            lines = self.lines.load(tx, ids)
            more = extendable([line.level for line in lines.values()], output_tokens)
            if more:
                self._post(tx, reservation_id, ids, held, "extend", Posting(held.state, reserved=more))
            return more

    def settle(self, reservation_id: str, prompt: int, completion: int, estimated: int) -> Settlement:
        """See Store."""
        failpoints.reach("before_settle")
        with Transaction(self, "settle") as tx:
            ids, held, _ = self._call(tx, reservation_id)
            kind: Kind = "settle" if held.state in states.OPEN_STATES else "correct"
            posting = states.settle(held, prompt, completion, estimated)
            return self._finish(tx, reservation_id, ids, held, kind, posting)

    def charge(self, reservation_id: str, prompt: int, completion: int) -> Settlement:
        """See Store."""
        with Transaction(self) as tx:
            ids, held, _ = self._call(tx, reservation_id)
            return self._finish(tx, reservation_id, ids, held, "charge", states.charge(held, prompt, completion))

    def release(self, reservation_id: str) -> None:
        """See Store."""
        with Transaction(self) as tx:
            ids, held, _ = self._call(tx, reservation_id)
            self._finish(tx, reservation_id, ids, held, "release", states.release(held))

    def withdraw(self, reservation_id: str) -> None:
        """See Store."""
        with Transaction(self) as tx:
            gone = tx.sql.execute("DELETE FROM waiters WHERE id = ?", (reservation_id,)).rowcount
            if gone:
                self._serve_waiting(tx)
                return
            row = self._row(tx, reservation_id)
            if row is not None and (held := holding_of(row)).state is ReservationState.RESERVED:
                self._finish(tx, reservation_id, _ids(row), held, "release", states.release(held))

    def _finish(
        self,
        tx: Transaction,
        call_id: str,
        ids: tuple[int, ...],
        held: Holding,
        kind: Kind,
        posting: Posting | None,
    ) -> Settlement:
        if posting is None:
            return Settlement(posted=False)
        crossings = self._post(tx, call_id, ids, held, kind, posting)
        if tx.waiting and posting.used + posting.reserved < 0:
            self._serve_waiting(tx)
        return Settlement(posted=True, crossings=crossings)

    def _post(
        self, tx: Transaction, call_id: str, ids: tuple[int, ...], held: Holding, kind: Kind, posting: Posting
    ) -> tuple[Crossing, ...]:
        now = after(held, posting, extends=kind == "extend")
        tx.sql.execute(
            "UPDATE calls SET state = ?, held_output = ?, used = ?, estimated = ?, cost = ?, unpriced = ? WHERE id = ?",
            (now.state, now.held_output, now.used, now.estimated, now.cost, now.unpriced, call_id),
        )
        rows: list[tuple[Any, ...]] = []
        if posting.used or posting.reserved or posting.estimated:
            rows = tx.sql.execute(
                "UPDATE lines SET used = used + ?, reserved = reserved + ?, estimated = estimated + ?,"
                f" cost = cost + ?, unpriced = unpriced + ? WHERE id IN ({placeholders(len(ids))})"
                f" RETURNING {LINE_COLUMNS}",
                (posting.used, posting.reserved, posting.estimated, posting.cost, posting.unpriced, *ids),
            ).fetchall()
        names = tuple(map(str, ids))
        tx.append(Entry.of(posting, at_ms=tx.at_ms, kind=kind, id=call_id, owner=self.owner.id, lines=names))
        return self._crossings(tx, rows) if posting.used else ()

    def _crossings(self, tx: Transaction, rows: list[tuple[Any, ...]]) -> tuple[Crossing, ...]:
        found = []
        for row in rows:
            line = line_of(row)
            if (crossing := crossed(line, self.settings.warn_at)) is not None:
                found.append(crossing)
                self.lines.set_warned(tx, row[0], line)
        return tuple(found)

    def _find(self, tx: Transaction, call_id: str) -> Reservation | None:
        row = self._row(tx, call_id)
        if row is None:
            return None
        held = holding_of(row)
        windows = tuple(line.key[2] for line in self.lines.load(tx, _ids(row)).values())
        return Reservation(call_id, held.held_prompt, held.held_output, windows, held.state)

    def _call(self, tx: Transaction, call_id: str) -> tuple[tuple[int, ...], Holding, str]:
        row = self._row(tx, call_id)
        if row is None:
            raise ReservationLostError(f"There is no reservation {call_id}.")
        return _ids(row), holding_of(row), row[-1]

    @staticmethod
    def _row(tx: Transaction, call_id: str) -> tuple[Any, ...] | None:
        row: tuple[Any, ...] | None = tx.sql.execute(
            f"SELECT {CALL_COLUMNS} FROM calls WHERE id = ?", (call_id,)
        ).fetchone()
        return row

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
        with self.lock:
            try:
                (version,) = self.connection.execute("PRAGMA data_version").fetchone()
                if version == self._seen_version:
                    return []
                self._seen_version = version
                waiting = {row[0] for row in self.connection.execute("SELECT id FROM waiters")}
            except sqlite3.Error as error:
                raise store_error(self.path, error) from error
        return [call_id for call_id in reservation_ids if call_id not in waiting]

    def serve_waiting(self) -> None:
        """See Store."""
        with Transaction(self) as tx:
            if tx.waiting:
                self._serve_waiting(tx)

    # ── owners ────────────────────────────────────────────────────────────────────────────────────

    def _admit(self) -> None:
        """Makes sure that this file is the one the mark was kept for, before anything is written."""
        with Transaction(self, checked=False) as tx:
            (ledger_id,) = tx.sql.execute("SELECT value FROM meta WHERE name = 'ledger_id'").fetchone()
            self.mark.admit(ledger_id, tx.last)

    def heartbeat(self) -> None:
        """See Store. Then syncs what was written, so that the mark may rely on it."""
        with Transaction(self) as tx:
            self._owners.beat(tx)
            for owner_id in self._owners.dead(tx):
                self._resolve(tx, owner_id)
        self._sync()

    def _resolve(self, tx: Transaction, owner_id: str) -> None:
        """What a dead owner had not sent is given back; what it had sent is charged its bound."""
        failpoints.reach("during_recovery")
        tx.sql.execute("DELETE FROM waiters WHERE owner = ?", (owner_id,))
        rows = tx.sql.execute(
            f"SELECT {CALL_COLUMNS}, id FROM calls WHERE owner = ? AND state IN ('reserved', 'dispatched')",
            (owner_id,),
        ).fetchall()
        for *columns, call_id in rows:
            row = tuple(columns)
            held = holding_of(row)
            if held.state is ReservationState.RESERVED:
                self._finish(tx, call_id, _ids(row), held, "release", states.release(held))
            else:
                posting = states.charge(held, held.held_prompt, held.held_output)
                self._finish(tx, call_id, _ids(row), held, "charge", posting)
        self._owners.forget(tx, owner_id)
        if tx.waiting:
            self._serve_waiting(tx)

    def _sync(self) -> None:
        """Moves the log into the file, off the path of any turn. A reader in the way only puts it off."""
        with self.lock:
            try:
                (last,) = self.connection.execute("SELECT max(number) FROM journal").fetchone()
                busy, pages, moved = self.connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
            except sqlite3.Error as error:
                raise store_error(self.path, error) from error
        if not busy and pages == moved:
            self.mark.on_disk(last)

    def check_file(self) -> None:
        """Raises StoreError when the path no longer leads to the file that is open, or after a fork."""
        if os.getpid() != self.owner.pid:
            raise StoreError("The token ledger was opened before a fork.", hint="Open it in the child process.")
        try:
            status = os.stat(self.path)  # noqa: PTH116 - twice as fast, in every transaction
        except OSError as error:
            raise store_error(self.path, error) from error
        if (status.st_dev, status.st_ino) != self._file:
            raise StoreError(
                f"The token ledger {self.path} was replaced while it was open.", hint="Restart to use the new file."
            )

    # ── balances ──────────────────────────────────────────────────────────────────────────────────

    def grant(self, scope: ScopeLimit, tokens: int) -> Balance:
        """See Store."""
        with Transaction(self) as tx:
            line_id, line = self.lines.line(tx, scope)
            line.granted += tokens
            lower_warned(line, self.settings.warn_at)
            tx.sql.execute("UPDATE lines SET granted = granted + ? WHERE id = ?", (tokens, line_id))
            self.lines.set_warned(tx, line_id, line)
            tx.append(Entry(tx.at_ms, "grant", "", self.owner.id, (str(line_id),), granted=tokens))
            if tx.waiting:
                self._serve_waiting(tx)
            return line.balance

    def balances(self, scopes: Sequence[ScopeLimit]) -> tuple[Balance, ...]:
        """See Store."""
        with self.lock:
            now_s = self._look()
            try:
                return self.lines.balances(self.connection, scopes, now_s)
            except sqlite3.Error as error:
                raise store_error(self.path, error) from error

    def all_balances(self, window: str | None = None) -> tuple[Balance, ...]:
        """See Store."""
        with self.lock:
            now_s = self._look()
            try:
                return self.lines.all_balances(self.connection, window, now_s)
            except sqlite3.Error as error:
                raise store_error(self.path, error) from error

    def _look(self) -> float:
        """The ledger's time, after the same checks as before writing. Under the lock."""
        self.check_file()
        try:
            last, seen_ms = self.connection.execute(
                "SELECT number, at_ms FROM journal ORDER BY number DESC LIMIT 1"
            ).fetchone()
        except (sqlite3.Error, TypeError) as error:
            raise store_error(self.path, error) from error
        self.mark.check(last)
        return float(max(self.clock.time() * 1000, seen_ms) / 1000)

    def journal(self) -> Iterable[JournalRow]:
        """See Store."""
        return read_journal(self.path)

    def verify(self) -> Verification:
        """See Store."""
        return verify_file(self.path)

    def close(self) -> None:
        """See Store. Idempotent."""
        with self.lock:
            if self._closed:
                return
            self._closed = True
            self.connection.close()
            self.mark.close()


def _ids(row: tuple[Any, ...]) -> tuple[int, ...]:
    """The lines a call posts to, in the order of its scopes."""
    return tuple(map(int, row[0].split(",")))
