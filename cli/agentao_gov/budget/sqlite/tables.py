"""The tables of a ledger file as a ledger core's records: balances, reservations, queue, owners and journal."""
# ruff: noqa: S608 - statements are put together from constant column lists and placeholders only

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, cast

from agentao_gov.budget import journal
from agentao_gov.budget.balance import THOUSANDTHS, BalanceKey, BalanceRecord
from agentao_gov.budget.core import Waiter
from agentao_gov.budget.journal import DAY_MS, Checkpoint, Cut, Entry, Totals, over_by, piece, plan
from agentao_gov.budget.reservation import CallRecord, Holding, Price
from agentao_gov.budget.store import JournalRow
from agentao_gov.budget.types import ReservationState, ReserveRequest, Scope, ScopeKind
from agentao_gov.budget.waiting import decode_request, encode_request
from agentao_gov.errors import StoreError
from agentao_gov.process.owner import Owner

__all__ = ["SqliteRecords", "plan_cut", "read_balances", "read_calls", "read_checkpoint", "read_rows"]

_BALANCE = "id, kind, key, timezone, window, limit_tokens, granted, used, reserved, estimated, cost, unpriced, warned"
_FIND_BALANCE = f"SELECT {_BALANCE} FROM balances WHERE kind = ? AND key = ? AND timezone = ? AND window = ?"
_OPEN_BALANCE = "INSERT INTO balances (kind, key, timezone, window, limit_tokens) VALUES (?, ?, ?, ?, ?) RETURNING id"
_SAVE_BALANCE = """
UPDATE balances SET limit_tokens = ?, granted = ?, used = ?, reserved = ?, estimated = ?, cost = ?, unpriced = ?,
    warned = ? WHERE id = ?
"""
_CALL = (
    "id, owner, balances, state, held_prompt, held_output, used, estimated, cost, unpriced, price_prompt,"
    " price_completion"
)
_FIND_CALL = f"SELECT {_CALL} FROM reservations WHERE id = ?"
_NEW_CALL = f"INSERT INTO reservations ({_CALL}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
_SAVE_CALL = """
UPDATE reservations SET state = ?, held_output = ?, used = ?, estimated = ?, cost = ?, unpriced = ? WHERE id = ?
"""
_HELD = f"SELECT {_CALL} FROM reservations WHERE state IN ('reserved', 'dispatched')"
_STATE = """
SELECT number, at_ms, hash, EXISTS (SELECT 1 FROM waiters), EXISTS (SELECT 1 FROM owners WHERE id = ?)
FROM journal ORDER BY number DESC LIMIT 1
"""
#: Plain strings: the database adapter takes 4 µs to find out that a StrEnum is one.
_TEXT = {state: str(state) for state in ReservationState}
#: Stands for "the tenant itself" in the table of who was served; no user can be called that.
_TENANT = "\0"


class SqliteRecords:
    """Implements Records over one connection, for one owner. Everything happens inside the caller's transaction."""

    def __init__(self, sql: sqlite3.Connection, owner: Owner) -> None:
        self.sql = sql
        self._owner = owner
        self._beats = 0
        #: As of the transaction's begin, and of what was written in it.
        self.last = 0
        self.last_ms = 0
        self._hash = b""
        self.waiting = False
        #: Whether this owner is in the table of those that live.
        self.registered = False
        #: `SELECT … WHERE id IN (?, …)` by the number of ids.
        self._loads: dict[int, str] = {}
        #: Decoded requests by number, so that serving 256 waiters does not parse 256 texts each time.
        self._requests: dict[int, ReserveRequest] = {}

    def begin(self) -> None:
        """Looks where the ledger stands; the first statement of each transaction."""
        row = self.sql.execute(_STATE, (self._owner.id,)).fetchone()
        if row is None:
            raise StoreError("The token ledger has no journal.", hint="Put a sound copy back.")
        self.last, self.last_ms, self._hash, waiting, registered = row
        self.waiting, self.registered = bool(waiting), bool(registered)

    # ── reservations ──────────────────────────────────────────────────────────────────────────────

    def call(self, call_id: str) -> CallRecord | None:
        row = self.sql.execute(_FIND_CALL, (call_id,)).fetchone()
        return None if row is None else _call(row)

    def put(self, call: CallRecord, *, new: bool) -> None:
        held = call.holding
        state = _TEXT[held.state]
        if new:
            prices = held.price or (None, None)
            amounts = (held.held_prompt, held.held_output, held.used, held.estimated, held.cost, held.unpriced)
            self.sql.execute(_NEW_CALL, (call.id, call.owner, ",".join(call.refs), state, *amounts, *prices))
        else:
            values = (state, held.held_output, held.used, held.estimated, held.cost, held.unpriced, call.id)
            self.sql.execute(_SAVE_CALL, values)

    def held_by(self, owner: str) -> list[CallRecord]:
        return [_call(row) for row in self.sql.execute(f"{_HELD} AND owner = ?", (owner,)).fetchall()]

    # ── balances ──────────────────────────────────────────────────────────────────────────────────

    def balance(self, key: BalanceKey) -> BalanceRecord | None:
        scope, timezone, window = key
        row = self.sql.execute(_FIND_BALANCE, (scope.kind, scope.key, timezone, window)).fetchone()
        return None if row is None else _balance(row)

    def load(self, refs: Sequence[str]) -> list[BalanceRecord]:
        statement = self._loads.get(len(refs))
        if statement is None:
            marks = ",".join("?" * len(refs))
            statement = self._loads[len(refs)] = f"SELECT {_BALANCE} FROM balances WHERE id IN ({marks})"
        found = {balance.ref: balance for balance in map(_balance, self.sql.execute(statement, refs))}
        return [found[ref] for ref in refs]

    def open(self, balance: BalanceRecord) -> None:
        scope, timezone, window = balance.key
        values = (scope.kind, scope.key, timezone, window, balance.limit)
        (number,) = self.sql.execute(_OPEN_BALANCE, values).fetchone()
        balance.ref = str(number)

    def save(self, balances: Sequence[BalanceRecord]) -> None:
        self.sql.executemany(
            _SAVE_BALANCE,
            [
                (
                    b.limit,
                    b.granted,
                    b.used,
                    b.reserved,
                    b.estimated,
                    b.cost,
                    b.unpriced,
                    round(b.warned * THOUSANDTHS),
                    b.ref,
                )
                for b in balances
            ],
        )

    def timezones(self) -> list[str]:
        rows = self.sql.execute("SELECT DISTINCT timezone FROM balances WHERE kind != 'turn'")
        return [row[0] for row in rows.fetchall()]

    def daily(self, timezone: str, window: str | None) -> Iterable[BalanceRecord]:
        rows = self.sql.execute(
            f"SELECT {_BALANCE} FROM balances WHERE kind != 'turn' AND timezone = ?1 AND (?2 IS NULL OR window = ?2)"
            " ORDER BY id",
            (timezone, window),
        )
        return [_balance(row) for row in rows.fetchall()]

    # ── the journal ───────────────────────────────────────────────────────────────────────────────

    def append(self, entry: Entry) -> None:
        text = journal.encode(entry)
        self.last += 1
        self.last_ms = entry.at_ms
        self._hash = journal.chain(self._hash, text)
        self.sql.execute("INSERT INTO journal VALUES (?, ?, ?, ?)", (self.last, entry.at_ms, text, self._hash))

    def cut(self, planned: Cut) -> None:
        """Lets go of the entries, their reservations, and the balances of turns and days that are over."""
        held = {ref for call in map(_call, self.sql.execute(_HELD)) for ref in call.refs}
        (number,) = self.sql.execute("SELECT number FROM checkpoint").fetchone()
        if number != planned.before or not held.isdisjoint(planned.over) or _moved(self.sql, planned.over):
            # A neighbour was quicker, or a call has come to one of the balances meanwhile: the next beat plans anew.
            return
        after = planned.after
        self.sql.execute(
            "UPDATE checkpoint SET number = ?, hash = ?, body = ?, size = ?",
            (after.number, after.hash, after.body, len(after.body)),
        )
        self.sql.execute("DELETE FROM journal WHERE number <= ?", (after.number,))
        self.sql.executemany("DELETE FROM reservations WHERE id = ?", [(name,) for name in planned.calls])
        self.sql.executemany("DELETE FROM balances WHERE id = ?", [(ref,) for ref in planned.over])
        # At the time of the last entry: upkeep is no event that could move the ledger into another day.
        self.append(Entry(self.last_ms, "checkpoint", "", self._owner.id, (), note=after.note()))

    # ── the queue ─────────────────────────────────────────────────────────────────────────────────

    def waiters(self) -> list[Waiter]:
        rows = self.sql.execute("SELECT number, id, owner FROM waiters ORDER BY number").fetchall()
        known, self._requests = self._requests, {}
        for number, call_id, _ in rows:
            request = known.get(number)
            # A number given in a transaction that was rolled back is given again.
            if request is None or request.id != call_id:
                (text,) = self.sql.execute("SELECT request FROM waiters WHERE number = ?", (number,)).fetchone()
                request = decode_request(text)
            self._requests[number] = request
        return [Waiter(number, self._requests[number], owner) for number, _, owner in rows]

    def waits(self, call_id: str) -> bool:
        return self.sql.execute("SELECT 1 FROM waiters WHERE id = ?", (call_id,)).fetchone() is not None

    def enqueue(self, request: ReserveRequest, owner: str) -> None:
        self.sql.execute(
            "INSERT INTO waiters (id, owner, request) VALUES (?, ?, ?)", (request.id, owner, encode_request(request))
        )
        self.waiting = True

    def dequeue(self, call_id: str) -> bool:
        if not self.waiting:
            return False
        found = self.sql.execute("DELETE FROM waiters WHERE id = ?", (call_id,)).rowcount > 0
        self._after_leaving()
        return found

    def dequeue_owner(self, owner: str) -> None:
        if self.waiting:
            self.sql.execute("DELETE FROM waiters WHERE owner = ?", (owner,))
            self._after_leaving()

    def _after_leaving(self) -> None:
        self.waiting = self.sql.execute("SELECT 1 FROM waiters LIMIT 1").fetchone() is not None
        if not self.waiting:
            # Nobody waits any more, so nobody's turn has to be remembered.
            self.sql.execute("DELETE FROM served")

    def served(self) -> dict[tuple[str, str | None], int]:
        return {
            (tenant, None if user == _TENANT else user): number
            for tenant, user, number in self.sql.execute("SELECT tenant, user, number FROM served").fetchall()
        }

    def note_served(self, tenant: str, user: str) -> None:
        for name in (_TENANT, user):
            self.sql.execute(
                "INSERT INTO served VALUES (?1, ?2, (SELECT coalesce(max(number), 0) + 1 FROM served))"
                " ON CONFLICT (tenant, user) DO UPDATE SET number = excluded.number",
                (tenant, name),
            )

    # ── owners ────────────────────────────────────────────────────────────────────────────────────

    def beat(self) -> None:
        """Says that this owner lives; says it anew where neighbours gave it up meanwhile."""
        self._beats += 1
        owner = self._owner
        self.sql.execute(
            "INSERT INTO owners VALUES (?, ?, ?, ?, ?, ?)"
            " ON CONFLICT (id) DO UPDATE SET heartbeat = excluded.heartbeat",
            (owner.id, owner.pid, owner.started, owner.boot, owner.pid_namespace, self._beats),
        )
        self.registered = True

    def owners(self) -> list[tuple[Owner, int]]:
        """Every registered owner with its count of beats."""
        rows = self.sql.execute("SELECT id, pid, started, boot, pid_namespace, heartbeat FROM owners").fetchall()
        return [(Owner(*row[:5]), row[5]) for row in rows]

    def holders(self) -> set[str]:
        """Ids of all owners that hold tokens or wait for some, registered or not."""
        waiting = {row[0] for row in self.sql.execute("SELECT owner FROM waiters").fetchall()}
        return waiting.union(call.owner for call in map(_call, self.sql.execute(_HELD).fetchall()))

    def forget_owner(self, owner_id: str) -> None:
        """Removes an owner that holds nothing any more."""
        self.sql.execute("DELETE FROM owners WHERE id = ?", (owner_id,))


# ── reading without a transaction of the core ─────────────────────────────────────────────────────


def read_checkpoint(sql: sqlite3.Connection) -> Checkpoint:
    """What stands for the entries that are no longer there."""
    return Checkpoint(*sql.execute("SELECT number, hash, body FROM checkpoint").fetchone())


def read_rows(sql: sqlite3.Connection) -> Iterator[JournalRow]:
    """Every entry that is kept, from the first."""
    return sql.execute("SELECT number, body, hash FROM journal ORDER BY number")


def read_balances(sql: sqlite3.Connection) -> Iterator[BalanceRecord]:
    """Every balance. Raises StoreError for one that cannot be read."""
    return map(_balance, sql.execute(f"SELECT {_BALANCE} FROM balances ORDER BY id"))


def read_calls(sql: sqlite3.Connection, problems: list[str]) -> Iterator[CallRecord]:
    """Every reservation; one that cannot be read is added to `problems` instead."""
    for row in sql.execute(f"SELECT {_CALL} FROM reservations"):
        try:
            yield _call(row)
        except StoreError as error:
            problems.append(f"reservation {row[0]} cannot be read: {error}")


def plan_cut(sql: sqlite3.Connection, now_ms: float, retain_ms: float) -> Cut | None:
    """Adds up the oldest entries where enough are older than is kept; reads what never changes, without the lock.

    `now_ms` is Unix milliseconds, `retain_ms` how long entries are kept. None where there is nothing to let go of.
    """
    # By the ledger's own time: a clock that is ahead for a moment makes nothing old.
    last, last_ms = sql.execute("SELECT number, at_ms FROM journal ORDER BY number DESC LIMIT 1").fetchone()
    before_ms = min(now_ms, last_ms) - retain_ms
    number, size = sql.execute("SELECT number, size FROM checkpoint").fetchone()
    count = piece(size)
    if not (_old(sql, number + count, before_ms) or _old(sql, number + 1, before_ms - DAY_MS)):
        return None
    checkpoint = read_checkpoint(sql)
    rows = sql.execute(
        "SELECT number, body, hash, at_ms FROM journal WHERE number <= ? AND at_ms < ? ORDER BY number",
        # The last entry stays: with it the chain goes on.
        (min(number + count, last - 1), before_ms),
    ).fetchall()
    if not rows:
        return None
    held = {ref for call in map(_call, sql.execute(_HELD)) for ref in call.refs}
    older = (row[:3] for row in rows)
    return plan(checkpoint, older, over_by(rows[-1][3]), held, moved=lambda sums: _moved(sql, sums))


def _moved(sql: sqlite3.Connection, sums: Mapping[str, Totals]) -> set[str]:
    """Balances that something was posted to after these sums."""
    figures = "SELECT used, reserved, estimated, granted FROM balances WHERE id = ?"
    return {
        ref
        for ref, then in sums.items()
        if sql.execute(figures, (ref,)).fetchone() != (then.used, then.reserved, then.estimated, then.granted)
    }


def _old(sql: sqlite3.Connection, number: int, before_ms: float) -> bool:
    row = sql.execute("SELECT at_ms FROM journal WHERE number = ?", (number,)).fetchone()
    return row is not None and row[0] < before_ms


# ── rows as the core's values ─────────────────────────────────────────────────────────────────────


def _balance(row: tuple[Any, ...]) -> BalanceRecord:
    number, kind, key, timezone, window, limit, granted, used, reserved, estimated, cost, unpriced, warned = row
    name = (Scope(cast("ScopeKind", kind), key), timezone, window)
    try:
        return BalanceRecord(
            name, str(number), limit, granted, used, reserved, estimated, cost, unpriced, warned / THOUSANDTHS
        )
    except TypeError as error:
        raise _unreadable(f"Balance {number}", error) from error


def _call(row: tuple[Any, ...]) -> CallRecord:
    call_id, owner, refs, state, prompt, output, used, estimated, cost, unpriced, price_prompt, price_completion = row
    try:
        price = None if price_prompt is None else Price(price_prompt, price_completion)
        holding = Holding(ReservationState(state), prompt, output, used, estimated, cost, unpriced, price)
        return CallRecord(call_id, owner, tuple([str(int(ref)) for ref in refs.split(",")]), holding)
    except (ValueError, TypeError, AttributeError) as error:
        raise _unreadable(f"Reservation {call_id}", error) from error


def _unreadable(what: str, error: Exception) -> StoreError:
    return StoreError(
        f"{what} of the token ledger cannot be read: {str(error).rstrip('.')}.",
        hint="Run `agentao-gov budget verify`, and put a sound copy back.",
    )
