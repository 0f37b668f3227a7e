"""One transaction on a ledger file: lock, checks that the file is the right one, journal, commit, notice."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterable, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, NamedTuple

from agentao_gov.budget import failpoints, journal
from agentao_gov.budget.balance import Line, LineKey
from agentao_gov.budget.journal import STATE_AFTER, Entry, Kind
from agentao_gov.budget.memory import after, reserve_note
from agentao_gov.budget.reservation import OPEN_STATES, Holding, Posting, Price
from agentao_gov.budget.sqlite.file import begin_immediate, patiently, store_error
from agentao_gov.budget.sqlite.rows import (
    CALL_COLUMNS,
    LINE_COLUMNS,
    THOUSANDTHS,
    StoredCall,
    call_of,
    limit_of_note,
    line_of,
    placeholders,
)
from agentao_gov.budget.types import Reservation, ReservationState, ReserveRequest
from agentao_gov.errors import StoreError

if TYPE_CHECKING:
    from agentao_gov.budget.sqlite.store import SqliteStore

__all__ = ["Cache", "Step", "Transaction", "following", "granted", "reserving"]


# One step of one reservation: the journal entry that states it, and what is known once that is written.


class Step(NamedTuple):
    """What is written, and what it leaves behind: the reservation as it is then, and what each line gets."""

    entry: Entry
    call: StoredCall
    posting: Posting


def reserving(
    request: ReserveRequest, output: int, price: Price | None, lines: tuple[int, ...], owner: str, at_ms: int
) -> Step:
    """The first step: `output` tokens were granted beside the prompt."""
    held = Holding(ReservationState.RESERVED, request.prompt_tokens, output, price=price)
    reserved = request.prompt_tokens + output
    entry = Entry(
        at_ms, "reserve", request.id, owner, tuple(map(str, lines)), 0, reserved, 0, 0, 0, 0, reserve_note(held)
    )
    return Step(entry, StoredCall(lines, held, owner), Posting(ReservationState.RESERVED, 0, reserved))


def granted(request: ReserveRequest, output: int, lines: Iterable[Line]) -> Reservation:
    """The reservation as its owner sees it; `lines` in the order of its scopes."""
    return Reservation(request.id, request.prompt_tokens, output, tuple([line.key[2] for line in lines]))


def following(kind: Kind, call_id: str, call: StoredCall, posting: Posting, owner: str, at_ms: int) -> Step:
    """The next step of a reservation. `owner` is who takes it, not always who holds the tokens."""
    _, used, reserved, estimated, cost, unpriced = posting
    refs = tuple(map(str, call.lines))
    entry = Entry(at_ms, kind, call_id, owner, refs, used, reserved, estimated, 0, cost, unpriced)
    now = StoredCall(call.lines, after(call.holding, posting, extends=kind == "extend"), call.owner)
    return Step(entry, now, posting)


_STATE = """
SELECT folded.number, checkpoint.number, EXISTS (SELECT 1 FROM waiters), EXISTS (SELECT 1 FROM owners WHERE id = ?)
FROM folded, checkpoint
"""
_NEWS = "SELECT number, at_ms, body, hash FROM journal WHERE number >= ? ORDER BY number"
_APPEND = "INSERT INTO journal VALUES (?, ?, ?, ?)"


class Transaction:
    """`with Transaction(store, "settle") as tx`: all of it happens, or nothing. Holds the store's lock meanwhile."""

    __slots__ = (
        "_checked",
        "_discarded",
        "_hash",
        "_name",
        "_store",
        "_write",
        "_written_ms",
        "answered",
        "at_ms",
        "cache",
        "created",
        "cuts",
        "folds",
        "last",
        "opened",
        "restated",
        "sql",
    )

    def __init__(self, store: SqliteStore, name: str = "", *, checked: bool = True, write: bool = True) -> None:
        self._store = store
        #: False only before the mark has been admitted.
        self._checked = checked
        #: Names the failure points around the commit; empty where there are none.
        self._name = name
        #: False: only looks, and holds up nobody.
        self._write = write
        self.sql = store.connection
        self.cache = store.cache
        self._discarded = False
        #: Ids that left the queue in this transaction.
        self.answered: list[str] = []
        #: Time of the last entry written, 0 before the first.
        self._written_ms = 0
        #: Lines found or made in this transaction: remembered by the store only once it is committed.
        self.opened: dict[LineKey, int] = {}
        #: Those that were made.
        self.created: list[int] = []
        #: Lines whose limit changed in this transaction, with the one before.
        self.restated: list[tuple[Line, int | None]] = []
        #: Whether the tables were brought up to the last entry; and whether lines were let go of.
        self.folds = self.cuts = False

    def __enter__(self) -> Transaction:
        store = self._store
        store.enter()
        marked: int | None = None
        try:
            if self._write:
                begin_immediate(self.sql, store.lock_wait_s)
            else:
                # Before the moment that is seen: neighbours go on, and the mark with them.
                marked = store.mark.last
                patiently(self._begin_reading, store.lock_wait_s)
            self._look()
            if self._checked:
                store.mark.check(self.last, marked)
        except BaseException as error:
            self._abandon()
            if isinstance(error, sqlite3.Error | TypeError | ValueError | KeyError):
                raise store_error(store.path, error) from error
            raise
        return self

    def _begin_reading(self) -> None:
        self.sql.execute("BEGIN")
        try:
            # The first look at the file fixes the moment that is seen.
            self.sql.execute("SELECT number FROM folded").fetchone()
        except BaseException:
            self.sql.execute("ROLLBACK")
            raise

    def _look(self) -> None:
        """Finds the journal's end, from memory where nobody else has written since."""
        cache = self.cache
        (version,) = self.sql.execute("PRAGMA data_version").fetchone()
        cache.alone = version == cache.version
        if not cache.alone:
            last = cache.last
            folded, cut, waiting, known = self.sql.execute(_STATE, (self._store.owner.id,)).fetchone()
            if cache.last == folded and cut == cache.cut:
                cache.fold()
            if cut != cache.cut:
                self._store.lines.forget()
            if cache.last < folded or cut != cache.cut or not self._follow():
                cache.begin(folded, cut)
                if not self._follow():
                    raise StoreError(
                        f"The token ledger {self._store.path} lacks entry {folded:,} of its journal.",
                        hint="Run `agentao-gov budget verify`, and put a sound copy back.",
                    )
            cache.waiting, cache.known_owner = bool(waiting), bool(known)
            cache.version = version
            cache.alone = cache.last == last
        self.last, self._hash = cache.last, cache.hash
        #: The ledger's time: never earlier than the last entry's.
        self.at_ms = max(int(self._store.clock.time() * 1000), cache.at_ms)

    def _follow(self) -> bool:
        """Takes in what others wrote; False where the journal is not the one that was followed so far."""
        cache = self.cache
        rows = self.sql.execute(_NEWS, (cache.last,)).fetchall()
        if not rows or rows[0][0] != cache.last or (cache.hash and rows[0][3] != cache.hash):
            return False
        for _, _, body, _ in rows[1:]:
            cache.follow(self.sql, journal.decode(body))
        cache.last, cache.at_ms, _, cache.hash = rows[-1]
        return True

    def discard(self) -> None:
        """Nothing of this transaction is to be kept. Only for one in which nothing was posted."""
        self._discarded = True

    def write(self, step: Step) -> dict[int, Line]:
        """Writes a reservation's step; returns its lines as they are then."""
        lines = self.cache.apply(self.sql, step)
        self.append(step.entry)
        return lines

    def append(self, entry: Entry) -> None:
        """Adds to the journal."""
        text = journal.encode(entry)
        self.last += 1
        self._hash = journal.chain(self._hash, text)
        self._written_ms = entry.at_ms
        self.sql.execute(_APPEND, (self.last, entry.at_ms, text, self._hash))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        store = self._store
        if error is None and self._discarded:
            self._undo()
            return
        if error is not None:
            self._abandon()
            if isinstance(error, sqlite3.Error | KeyError):
                raise store_error(store.path, error) from error
            return
        try:
            self._commit()
        except BaseException as failure:
            self._abandon()
            if isinstance(failure, sqlite3.Error):
                raise store_error(store.path, failure) from failure
            raise
        store.lock.release()
        if self._name:
            failpoints.reach(f"after_{self._name}_commit")
        if self.answered:
            store.settings.notice(self.answered)

    def _commit(self) -> None:
        if self._name:
            failpoints.reach(f"before_{self._name}_commit")
        self.sql.execute("COMMIT")
        cache = self.cache
        cache.last, cache.hash = self.last, self._hash
        cache.at_ms = max(cache.at_ms, self._written_ms)
        if self._write:
            self._store.mark.advance(self.last)
        if self.opened:
            self._store.lines.remember(self.opened)
        if self.folds:
            cache.fold()
        if self.cuts:
            # Lines that are no longer there may be remembered: everything is looked up anew.
            cache.forget()
            self._store.lines.forget()

    def _undo(self) -> None:
        """Takes back lines that were opened and limits that were restated, and keeps what was known before."""
        cache = self.cache
        for line_id in self.created:
            cache.lines.pop(line_id, None)
            cache.changed_lines.discard(line_id)
        for line, limit in reversed(self.restated):
            line.limit = limit
        # Whether anyone waits, and whether we are registered, may have been changed too.
        cache.version = -1
        self._rollback()

    def _abandon(self) -> None:
        self.cache.forget()
        self._rollback()

    def _rollback(self) -> None:
        # A file that is beyond even that led here by an error which the caller raises.
        with contextlib.suppress(sqlite3.Error):
            if self.sql.in_transaction:
                self.sql.execute("ROLLBACK")
        self._store.lock.release()


# What a process knows of the ledger file without reading it: lines and calls as the last entry left them.
#
# A step writes one journal entry and nothing else; the tables of lines and calls are brought up to date by a fold, some
# hundred entries at a time. What others wrote meanwhile is read from the journal and followed here. So a step costs one
# page of the file instead of four.

# ruff: noqa: S608 - statements are put together from constant column lists and placeholders only


#: Lines remembered beside those not folded yet. A turn opens one of its own and never asks for it again.
_LINES_MAX = 256

_FIND_CALL = f"SELECT {CALL_COLUMNS} FROM calls WHERE id = ?"


class Cache:
    """Under the store's lock. What is not here stands in the tables as it was folded, and has not changed since."""

    def __init__(self) -> None:
        #: SQLite's `data_version` that the file was last looked at under; -1: it has to be looked at.
        self.version = -1
        #: Whether nobody else wrote between the last two looks.
        self.alone = False
        #: The journal's last entry that is followed here; -1: nothing is known.
        self.last = -1
        self.hash = b""
        self.at_ms = 0
        #: The entry up to which the tables are true.
        self.folded = 0
        #: The checkpoint's number: what is older is not there any more.
        self.cut = 0
        #: Whether any call waits, and whether this owner is registered.
        self.waiting = False
        self.known_owner = False
        self.lines: dict[int, Line] = {}
        self.calls: dict[str, StoredCall] = {}
        #: What has changed since the last fold.
        self.changed_lines: set[int] = set()
        self.changed_calls: set[str] = set()

    @property
    def sure(self) -> bool:
        """Whether the next step can well be decided without a look at the file, and appended if that was right."""
        return self.alone and self.known_owner and not self.waiting and self.version != -1

    def forget(self) -> None:
        """Nothing is known any more."""
        self.version = self.last = -1

    def begin(self, folded: int, cut: int = 0) -> None:
        """Starts anew from the tables."""
        self.folded = self.last = folded
        self.cut = cut
        self.hash = b""
        self.lines.clear()
        self.calls.clear()
        self.changed_lines.clear()
        self.changed_calls.clear()

    def fold(self) -> None:
        """The tables were brought up to the last entry: only what holds tokens, and some lines, stay at hand."""
        self.folded = self.last
        self.changed_lines.clear()
        self.changed_calls.clear()
        self.calls = {name: call for name, call in self.calls.items() if call.holding.state in OPEN_STATES}
        if len(self.lines) > _LINES_MAX:
            self.lines.clear()

    # ── lines and calls as they are now ───────────────────────────────────────────────────────────

    def load(self, sql: sqlite3.Connection, ids: Sequence[int]) -> dict[int, Line]:
        """Lines by id, in the order of `ids`. Raises KeyError for one that is not there."""
        known = self.lines
        try:
            return {line_id: known[line_id] for line_id in ids}
        except KeyError:
            rows = sql.execute(f"SELECT {LINE_COLUMNS} FROM lines WHERE id IN ({placeholders(len(ids))})", ids)
            for row in rows.fetchall():
                known.setdefault(row[0], line_of(row))
        return {line_id: known[line_id] for line_id in ids}

    def find(self, sql: sqlite3.Connection, call_id: str) -> StoredCall | None:
        """The reservation of that id."""
        known = self.calls.get(call_id)
        if known is not None:
            return known
        row = sql.execute(_FIND_CALL, (call_id,)).fetchone()
        return None if row is None else call_of(row)

    def put(self, call_id: str, call: StoredCall) -> None:
        """A reservation's next step."""
        self.calls[call_id] = call
        self.changed_calls.add(call_id)

    def post(self, sql: sqlite3.Connection, ids: Sequence[int], posting: Posting) -> dict[int, Line]:
        """Adds a posting to each line; returns the lines as they are now."""
        lines = self.load(sql, ids)
        for line in lines.values():
            line.add(posting)
        self.changed_lines.update(ids)
        return lines

    def apply(self, sql: sqlite3.Connection, step: Step) -> dict[int, Line]:
        """Takes in a step of this process; returns the lines as they are now."""
        self.put(step.entry.id, step.call)
        return self.post(sql, step.call.lines, step.posting)

    # ── what other processes wrote ────────────────────────────────────────────────────────────────

    def follow(self, sql: sqlite3.Connection, entry: Entry) -> None:
        """Takes in an entry of the journal."""
        if entry.kind in ("limit", "warn"):
            line_id = int(entry.id)
            line = self.load(sql, [line_id])[line_id]
            if entry.kind == "limit":
                line.limit = limit_of_note(entry.note)
            else:
                line.warned = int(entry.note) / THOUSANDTHS
            self.changed_lines.add(line_id)
        elif entry.kind == "grant":
            for line_id, line in self.load(sql, _ids(entry)).items():
                line.granted += entry.granted
                self.changed_lines.add(line_id)
        elif entry.kind == "reserve":
            self._follow_reserve(sql, entry)
        elif entry.kind in STATE_AFTER or entry.kind == "extend":
            self._follow_step(sql, entry)

    def _follow_reserve(self, sql: sqlite3.Connection, entry: Entry) -> None:
        prompt, output, *prices = entry.note.split(" ")
        price = Price(*map(int, prices)) if len(prices) == 2 else None
        holding = Holding(STATE_AFTER["reserve"], int(prompt), int(output), price=price)
        self.put(entry.id, StoredCall(_ids(entry), holding, entry.owner))
        self.post(sql, _ids(entry), Posting(holding.state, reserved=entry.reserved))

    def _follow_step(self, sql: sqlite3.Connection, entry: Entry) -> None:
        call = self.find(sql, entry.id)
        if call is None:
            raise KeyError(f"reservation {entry.id}")
        state = STATE_AFTER.get(entry.kind, call.holding.state)
        posting = Posting(state, entry.used, entry.reserved, entry.estimated, entry.cost, entry.unpriced)
        now = after(call.holding, posting, extends=entry.kind == "extend")
        self.put(entry.id, call._replace(holding=now))
        self.post(sql, call.lines, posting)


def _ids(entry: Entry) -> tuple[int, ...]:
    return tuple(map(int, entry.lines))
