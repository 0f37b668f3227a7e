"""The tables of a ledger file as a ledger core's records: balances, reservations, queue, owners and journal."""
# ruff: noqa: S608 - statements are put together from constant column lists and placeholders only

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, cast

from agentao_gov.budget import journal
from agentao_gov.budget.balance import THOUSANDTHS, BalanceKey, BalanceRecord
from agentao_gov.budget.core import QueuedCall
from agentao_gov.budget.journal import DAY_MS, Checkpoint, Cut, JournalEntry, Totals, over_by, piece, plan
from agentao_gov.budget.reservation import CallRecord, Holding, Price
from agentao_gov.budget.store import JournalRow, decode_request, encode_request
from agentao_gov.budget.types import ReservationState, ReserveRequest, Scope, ScopeKind
from agentao_gov.errors import StoreError
from agentao_gov.process.owner import Owner

_BALANCE = "id, kind, key, timezone, window, limit_tokens, granted, used, reserved, estimated, cost, unpriced, warned"
_CALL = (
    "id, owner, balances, state, held_prompt, held_output, used, estimated, cost, unpriced, price_prompt,"
    " price_completion"
)
_HELD = f"SELECT {_CALL} FROM reservations WHERE state IN ('reserved', 'dispatched')"
#: Rows as one value. Each row that is fetched, and each statement, gives other threads the interpreter; where they want
#: it, it comes back milliseconds later, with the file locked all the while. So a step is four statements and one row.
_BALANCES_AS_ONE = f"json_group_array(json_array({_BALANCE}))"
_BY_REFS = f"(SELECT {_BALANCES_AS_ONE} FROM balances WHERE id IN (SELECT value FROM json_each(?)))"
_OF_CALL = f"""(
    SELECT {_BALANCES_AS_ONE} FROM balances WHERE id IN (
        SELECT value FROM json_each('[' || (SELECT balances FROM reservations WHERE id = ?2) || ']')))"""
_STATE = f"""
SELECT number, at_ms, hash, EXISTS (SELECT 1 FROM waiters), EXISTS (SELECT 1 FROM owners WHERE id = ?1),
    (SELECT json_array({_CALL}) FROM reservations WHERE id = ?2), %s
FROM journal ORDER BY number DESC LIMIT 1
"""


def _by_keys(count: int) -> str:
    """That many balances by kind, key, zone and window."""
    return (
        f"(SELECT {_BALANCES_AS_ONE} FROM (VALUES {','.join(['(?, ?, ?, ?)'] * count)}) AS wanted"
        " CROSS JOIN balances ON kind = column1 AND key = column2 AND timezone = column3 AND window = column4)"
    )


# Refused where there is an entry of that number, as after any other process's step; where the one before is not the
# one that is known; or when anybody waits or this owner was given up, which leave no entry. The condition stands in the
# hash, which must not be NULL: as a SELECT's it would cost a table of its own, and half as much again.
_APPEND_IF_UNCHANGED = """
INSERT INTO journal VALUES (?1, ?2, ?3, CASE
    WHEN (SELECT hash FROM journal WHERE number = ?1 - 1) = ?6
        AND NOT EXISTS (SELECT 1 FROM waiters)
        AND EXISTS (SELECT 1 FROM owners WHERE id = ?5)
    THEN ?4 END)
"""
#: Stands for "the tenant itself" in the table of who was served; no user can be called that.
_TENANT = "\0"


class NeedsLock(Exception):
    """Raised where a step that was tried without the file's lock turns out to need it. Nobody outside meets it."""


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
        #: Entries of a step that is tried without the file's lock; None where entries are written as they come.
        self._draft: list[JournalEntry] | None = None
        #: What `begin` read; true until something is written.
        self._calls: dict[str, CallRecord | None] = {}
        self._balances: dict[BalanceKey, BalanceRecord] = {}
        #: Decoded requests by number, so that serving 256 waiters does not parse 256 texts each time.
        self._requests: dict[int, ReserveRequest] = {}

    def begin(self, call_id: str = "", keys: Sequence[BalanceKey] = ()) -> None:
        """Looks where the ledger stands, and what it says of that reservation and its balances, or of those `keys`."""
        values: list[object] = [self._owner.id, call_id]
        for scope, timezone, window in keys:
            values += (scope.kind, scope.key, timezone, window)
        row = self.sql.execute(_STATE % (_by_keys(len(keys)) if keys else _OF_CALL), values).fetchone()
        if row is None:
            raise StoreError("The token ledger has no journal.", hint="Put a sound copy back.")
        self.last, self.last_ms, self._hash, waiting, registered, call, balances = row
        self.waiting, self.registered = bool(waiting), bool(registered)
        self._calls = {call_id: None if call is None else _call(json.loads(call))}
        self._balances = {balance.key: balance for balance in _balances(balances)}
        for key in keys:
            self._balances.setdefault(key, BalanceRecord(key))

    @contextmanager
    def drafting(self) -> Iterator[list[JournalEntry]]:
        """Meanwhile entries are only collected, and whatever `begin` has not read raises NeedsLock."""
        self._draft = []
        try:
            yield self._draft
        finally:
            self._draft = None

    def append_if_unchanged(self, entry: JournalEntry) -> bool:
        """Adds an entry in a transaction of its own, if all that `begin` read is still so; says whether it was added.

        This one statement is all that the file is locked for.
        """
        text = journal.encode(entry)
        digest = journal.chain(self._hash, text)
        values = (self.last + 1, entry.at_ms, text, digest, self._owner.id, self._hash)
        try:
            self.sql.execute(_APPEND_IF_UNCHANGED, values)
        except sqlite3.IntegrityError as error:
            if error.sqlite_errorcode in (sqlite3.SQLITE_CONSTRAINT_PRIMARYKEY, sqlite3.SQLITE_CONSTRAINT_NOTNULL):
                return False
            raise
        self.last, self.last_ms, self._hash = self.last + 1, entry.at_ms, digest
        return True

    def _locked(self) -> None:
        """Called before anything that a draft cannot do."""
        if self._draft is not None:
            raise NeedsLock

    # ── reservations ──────────────────────────────────────────────────────────────────────────────

    def call(self, call_id: str) -> CallRecord | None:
        if call_id in self._calls:
            return self._calls[call_id]
        self._locked()
        row = self.sql.execute(f"SELECT {_CALL} FROM reservations WHERE id = ?", (call_id,)).fetchone()
        return None if row is None else _call(row)

    def held_by(self, owner: str) -> list[CallRecord]:
        return [_call(row) for row in self.sql.execute(f"{_HELD} AND owner = ?", (owner,)).fetchall()]

    # ── balances ──────────────────────────────────────────────────────────────────────────────────

    def find(self, keys: Sequence[BalanceKey]) -> list[BalanceRecord]:
        try:
            return [self._balances[key] for key in keys]
        except KeyError:
            self._locked()
            values = [value for scope, timezone, window in keys for value in (scope.kind, scope.key, timezone, window)]
            (text,) = self.sql.execute(f"SELECT {_by_keys(len(keys))}", values).fetchone()
            found = {balance.key: balance for balance in _balances(text)}
            return [found.get(key) or BalanceRecord(key) for key in keys]

    def load(self, refs: Sequence[str]) -> list[BalanceRecord]:
        known = {balance.ref: balance for balance in self._balances.values()}
        if not known.keys() >= set(refs):
            self._locked()
            (text,) = self.sql.execute(f"SELECT {_BY_REFS}", (f"[{','.join(refs)}]",)).fetchone()
            known = {balance.ref: balance for balance in _balances(text)}
        return [known[ref] for ref in refs]

    def open(self, key: BalanceKey) -> str:
        self._locked()
        scope, timezone, window = key
        row = self.sql.execute(
            "INSERT INTO balances (kind, key, timezone, window) VALUES (?, ?, ?, ?) RETURNING id",
            (scope.kind, scope.key, timezone, window),
        ).fetchone()
        return str(row[0])

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

    def append(self, entry: JournalEntry) -> None:
        """The connection's triggers post it, see `let_entries_post`."""
        if self._draft is not None:
            self._draft.append(entry)
            return
        text = journal.encode(entry)
        self._calls.clear()
        self._balances.clear()
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
        self.append(JournalEntry(self.last_ms, "checkpoint", "", self._owner.id, (), note=after.note()))

    # ── the queue ─────────────────────────────────────────────────────────────────────────────────

    def waiters(self) -> list[QueuedCall]:
        rows = self.sql.execute("SELECT number, id, owner FROM waiters ORDER BY number").fetchall()
        known, self._requests = self._requests, {}
        for number, call_id, _ in rows:
            request = known.get(number)
            # A number given in a transaction that was rolled back is given again.
            if request is None or request.id != call_id:
                (text,) = self.sql.execute("SELECT request FROM waiters WHERE number = ?", (number,)).fetchone()
                request = decode_request(text)
            self._requests[number] = request
        return [QueuedCall(number, self._requests[number], owner) for number, _, owner in rows]

    def waits(self, call_id: str) -> bool:
        return self.sql.execute("SELECT 1 FROM waiters WHERE id = ?", (call_id,)).fetchone() is not None

    def enqueue(self, request: ReserveRequest, owner: str) -> None:
        self._locked()
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


# ── what an entry posts ───────────────────────────────────────────────────────────────────────────


def _post(kinds: str, statement: str) -> str:
    """What an entry of those kinds does as soon as it is in the journal; `{n}` is its field of that number."""
    name = "_".join(kinds.split())
    wanted = ", ".join(f"'{kind}'" for kind in kinds.split())
    fields = {str(number): f"json_extract(NEW.body, '$[{number}]')" for number in range(12)}
    for number, field in fields.items():
        statement = statement.replace(f"{{{number}}}", field)
    when = f"json_extract(NEW.body, '$[1]') IN ({wanted})"
    return f"CREATE TEMP TRIGGER post_{name} AFTER INSERT ON journal WHEN {when} BEGIN {statement}; END"


# Fields of an entry:
# 2 id, 3 owner, 4 references, 5 used, 6 reserved, 7 estimated, 8 granted, 9 cost, 10 unpriced, 11 note.
_TRIGGERS = (
    _post(
        "reserve extend settle charge release correct grant",
        "UPDATE balances SET used = used + {5}, reserved = reserved + {6}, estimated = estimated + {7},"
        " granted = granted + {8}, cost = cost + {9}, unpriced = unpriced + {10}"
        " WHERE id IN (SELECT CAST(value AS INTEGER) FROM json_each(NEW.body, '$[4]'))",
    ),
    _post(
        "dispatch extend settle charge release correct",
        "UPDATE reservations SET used = used + {5}, estimated = estimated + {7}, cost = cost + {9},"
        " unpriced = unpriced + {10}, held_output = held_output + iif({1} = 'extend', {6}, 0),"
        " state = CASE {1} WHEN 'extend' THEN state WHEN 'dispatch' THEN 'dispatched' WHEN 'release' THEN 'released'"
        " WHEN 'charge' THEN 'charged_estimate' ELSE 'settled' END WHERE id = {2}",
    ),
    _post(
        "reserve",
        # The note is `prompt output price price`, or `prompt output unpriced`.
        "INSERT INTO reservations"
        " (id, owner, balances, state, held_prompt, held_output, price_prompt, price_completion)"
        " SELECT {2}, {3}, (SELECT group_concat(value) FROM json_each(NEW.body, '$[4]')), 'reserved',"
        " json_extract(note, '$[0]'), json_extract(note, '$[1]'),"
        " json_extract(note, '$[2]'), json_extract(note, '$[3]')"
        " FROM (SELECT '[' || replace(replace({11}, 'unpriced', 'null null'), ' ', ',') || ']' AS note)",
    ),
    _post("limit", "UPDATE balances SET limit_tokens = CAST(nullif({11}, 'None') AS INTEGER) WHERE id = {2}"),
    _post("warn", "UPDATE balances SET warned = CAST({11} AS INTEGER) WHERE id = {2}"),
)


def let_entries_post(connection: sqlite3.Connection) -> None:
    """From now on an entry that this connection appends posts itself to balances and reservations.

    So the tables cannot say anything else than the journal, and a step is one statement. The triggers are the
    connection's own, not the file's: they are part of the program that writes.
    """
    for trigger in _TRIGGERS:
        connection.execute(trigger)


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


def _balances(text: str) -> list[BalanceRecord]:
    return [_balance(row) for row in json.loads(text)]


def _balance(row: Sequence[Any]) -> BalanceRecord:
    number, kind, key, timezone, window, limit, granted, used, reserved, estimated, cost, unpriced, warned = row
    name = (Scope(cast("ScopeKind", kind), key), timezone, window)
    try:
        return BalanceRecord(
            name, str(number), limit, granted, used, reserved, estimated, cost, unpriced, warned / THOUSANDTHS
        )
    except TypeError as error:
        raise _unreadable(f"Balance {number}", error) from error


def _call(row: Sequence[Any]) -> CallRecord:
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
