"""The lines of a ledger file: one row per scope and window, opened by the first call that needs it."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace

from agentao_gov.budget import journal as checkpoints
from agentao_gov.budget.admission import Admission, Attempted, Ticket, admit, fair_order, serve
from agentao_gov.budget.balance import Line, LineKey, line_name
from agentao_gov.budget.journal import DAY_MS, Checkpoint, Cut, Entry, Totals, over_by, piece
from agentao_gov.budget.reservation import OPEN_STATES
from agentao_gov.budget.sqlite.rows import (
    CALL_COLUMNS,
    LINE_COLUMNS,
    THOUSANDTHS,
    StoredCall,
    call_of,
    line_of,
    placeholders,
    row_of_call,
    row_of_line,
)
from agentao_gov.budget.sqlite.transaction import Cache, Transaction
from agentao_gov.budget.types import Balance, ReserveRequest, ScopeLimit
from agentao_gov.budget.waiting import decode_request, encode_request
from agentao_gov.budget.windows import TURN_WINDOW, WindowCalendar
from agentao_gov.clock import Clock
from agentao_gov.process.owner import Liveness, Owner

__all__ = [
    "FOLD_ENTRIES",
    "LineTable",
    "OwnerTable",
    "WaitingTable",
    "cut",
    "fits",
    "fold",
    "held_calls",
    "plan_cut",
    "read_checkpoint",
]


# ruff: noqa: S608 - statements are put together from constant column lists only


#: Line ids remembered; every turn opens one of its own and is soon over, so a process's memory stops growing
#: within some hundred turns. Who is forgotten costs one look at an index.
_REMEMBERED_MAX = 512
_RECENT_MAX = 256

_FIND = "SELECT id FROM lines WHERE kind = ? AND key = ? AND timezone = ? AND window = ?"


def fits(lines: Iterable[Line], request: ReserveRequest) -> Admission:
    """Whether the request fits its lines as they are."""
    levels = [line.level for line in lines]
    return admit(levels, request.prompt_tokens, request.output_tokens_min, request.output_tokens_max)


class LineTable:
    """Finds, opens and reads lines. Under the store's lock."""

    def __init__(self, owner_id: str) -> None:
        self._owner_id = owner_id
        self.calendar = WindowCalendar()
        #: Committed lines only: an id from a transaction that was rolled back names nothing.
        self._ids: dict[LineKey, int] = {}
        #: By identity of the scope's object (kept, so that no other can have it): its window and line.
        self._recent: dict[int, tuple[ScopeLimit, int, int, int]] = {}

    def key(self, scope: ScopeLimit, now_s: float) -> LineKey:
        """Where a call reserved now posts to."""
        if scope.scope.kind == "turn":
            return (scope.scope, scope.timezone, TURN_WINDOW)
        return (scope.scope, scope.timezone, self.calendar.window(scope.timezone, now_s).name)

    def remember(self, opened: dict[LineKey, int]) -> None:
        """Keeps the ids of a committed transaction."""
        if len(self._ids) > _REMEMBERED_MAX:
            self._ids.clear()
        self._ids.update(opened)

    def forget(self) -> None:
        """Some lines are no longer there."""
        self._ids.clear()
        self._recent.clear()

    def admission(self, tx: Transaction, request: ReserveRequest) -> tuple[dict[int, Line], Admission]:
        """The request's lines in its order, with their current limits, and whether it fits them."""
        lines = tx.cache.load(tx.sql, [self._find(tx, scope) for scope in request.scopes])
        for (line_id, line), scope in zip(lines.items(), request.scopes, strict=True):
            if line.limit != scope.limit:
                self.set_limit(tx, line_id, line, scope.limit)
        return lines, fits(lines.values(), request)

    def known(self, cache: Cache, request: ReserveRequest, now_s: float) -> dict[int, Line] | None:
        """The request's lines in its order; None where one has to be looked up, or its limit to be stated anew."""
        lines = {}
        for scope in request.scopes:
            line_id = self._remembered(scope, now_s)
            line = None if line_id is None else cache.lines.get(line_id)
            if line_id is None or line is None or line.limit != scope.limit:
                return None
            lines[line_id] = line
        return lines

    def _find(self, tx: Transaction, scope: ScopeLimit) -> int:
        """The scope's line of today, opened if need be."""
        now_s = tx.at_ms / 1000
        line_id = self._remembered(scope, now_s)
        if line_id is not None:
            return line_id
        key = self.key(scope, now_s)
        return tx.opened.get(key) or self._open(tx, key, scope.limit)

    def _remembered(self, scope: ScopeLimit, now_s: float) -> int | None:
        """The scope's line of today. A turn asks with the same objects again and again."""
        recent = self._recent.get(id(scope))
        if recent is not None and recent[0] is scope and recent[1] <= now_s < recent[2]:
            return recent[3]
        line_id = self._ids.get(self.key(scope, now_s))
        if line_id is not None:
            window = self.calendar.window(scope.timezone, now_s)
            if len(self._recent) > _RECENT_MAX:
                self._recent.clear()
            self._recent[id(scope)] = (scope, window.start_s, window.end_s, line_id)
        return line_id

    def line(self, tx: Transaction, scope: ScopeLimit) -> tuple[int, Line]:
        """The scope's line of today, opened if need be."""
        line_id = self._find(tx, scope)
        line = tx.cache.load(tx.sql, [line_id])[line_id]
        if line.limit != scope.limit:
            self.set_limit(tx, line_id, line, scope.limit)
        return line_id, line

    def set_limit(self, tx: Transaction, line_id: int, line: Line, limit: int | None) -> None:
        """Notes a changed limit; the journal tells later which limit a call was admitted under."""
        tx.restated.append((line, line.limit))
        line.limit = limit
        tx.cache.changed_lines.add(line_id)
        tx.append(Entry(tx.at_ms, "limit", str(line_id), self._owner_id, (), note=str(limit)))

    def set_warned(self, tx: Transaction, line_id: int, line: Line) -> None:
        """Notes the soft threshold that was reported last."""
        tx.cache.changed_lines.add(line_id)
        note = str(round(line.warned * THOUSANDTHS))
        tx.append(Entry(tx.at_ms, "warn", str(line_id), self._owner_id, (), note=note))

    def _open(self, tx: Transaction, key: LineKey, limit: int | None) -> int:
        scope, timezone, window = key
        row = tx.sql.execute(_FIND, (scope.kind, scope.key, timezone, window)).fetchone()
        if row is None:
            row = tx.sql.execute(
                "INSERT INTO lines (kind, key, timezone, window, limit_tokens) VALUES (?, ?, ?, ?, ?) RETURNING id",
                (scope.kind, scope.key, timezone, window, limit),
            ).fetchone()
            tx.created.append(row[0])
            tx.append(Entry(tx.at_ms, "line", str(row[0]), self._owner_id, (), note=line_name(key)))
            tx.append(Entry(tx.at_ms, "limit", str(row[0]), self._owner_id, (), note=str(limit)))
        tx.opened[key] = row[0]
        return int(row[0])

    def balances(self, tx: Transaction, scopes: Iterable[ScopeLimit]) -> tuple[Balance, ...]:
        """What stands in the windows open now, under the limits the caller states."""
        result = []
        for scope in scopes:
            key = self.key(scope, tx.at_ms / 1000)
            row = tx.sql.execute(_FIND, (scope.scope.kind, scope.scope.key, key[1], key[2])).fetchone()
            line = replace(tx.cache.load(tx.sql, row)[row[0]] if row else Line(key), limit=scope.limit)
            result.append(line.balance)
        return tuple(result)

    def all_balances(self, tx: Transaction, window: str | None) -> tuple[Balance, ...]:
        """Every line but those of turns, of one window, or of the one open now in each zone."""
        zones = [row[0] for row in tx.sql.execute("SELECT DISTINCT timezone FROM lines WHERE kind != 'turn'")]
        result = []
        for timezone in zones:
            wanted = window or self.calendar.window(timezone, tx.at_ms / 1000).name
            rows = tx.sql.execute(
                f"SELECT {LINE_COLUMNS} FROM lines WHERE kind != 'turn' AND timezone = ?1 AND ?2 IN ('all', window)"
                " ORDER BY id",
                (timezone, wanted),
            )
            result += [(tx.cache.lines.get(row[0]) or line_of(row)).balance for row in rows]
        return tuple(result)


# The owners of a ledger file: who lives, and what the dead left behind.

# ruff: noqa: S608 - statements are put together from constant column lists only


_HELD_CALLS = f"SELECT {CALL_COLUMNS}, id FROM calls WHERE state IN ('reserved', 'dispatched')"


class OwnerTable:
    """Registers this owner and finds dead ones. Under the store's lock."""

    def __init__(self, owner: Owner, lease_s: float, clock: Clock) -> None:
        self.owner = owner
        self._liveness = Liveness(owner, lease_s, clock)
        self._beats = 0

    def beat(self, tx: Transaction) -> None:
        """Says that this owner lives; says it anew where neighbours gave it up meanwhile."""
        self._beats += 1
        owner = self.owner
        tx.sql.execute(
            "INSERT INTO owners VALUES (?, ?, ?, ?, ?, ?)"
            " ON CONFLICT (id) DO UPDATE SET heartbeat = excluded.heartbeat",
            (owner.id, owner.pid, owner.started, owner.boot, owner.pid_namespace, self._beats),
        )
        tx.cache.known_owner = True

    def dead(self, tx: Transaction) -> list[str]:
        """Owners whose calls and waits have to be resolved, registered or not."""
        rows = tx.sql.execute("SELECT id, pid, started, boot, pid_namespace, heartbeat FROM owners").fetchall()
        dead = [row[0] for row in rows if self._liveness.dead(Owner(*row[:5]), row[5])]
        alive = {row[0] for row in rows}.difference(dead)
        waiting = {row[0] for row in tx.sql.execute("SELECT owner FROM waiters")}
        holders = {call.owner for call in held_calls(tx).values()}
        return sorted(set(dead) | (waiting | holders) - alive)

    @staticmethod
    def held_by(tx: Transaction, owner_id: str) -> dict[str, StoredCall]:
        """All reservations of an owner that still hold tokens."""
        return {name: call for name, call in held_calls(tx).items() if call.owner == owner_id}

    def forget(self, tx: Transaction, owner_id: str) -> None:
        """Removes an owner that holds nothing any more."""
        tx.sql.execute("DELETE FROM owners WHERE id = ?", (owner_id,))
        self._liveness.forget(owner_id)


def held_calls(tx: Transaction) -> dict[str, StoredCall]:
    """Every reservation that holds tokens: as the tables have them, and as the journal went on."""
    calls = {row[-1]: call_of(row[:-1]) for row in tx.sql.execute(_HELD_CALLS)} | tx.cache.calls
    return {name: call for name, call in calls.items() if call.holding.state in OPEN_STATES}


# Brings a ledger file's tables up to the journal's last entry, and lets go of what is older than it has to be.

# ruff: noqa: S608 - statements are put together from constant column lists and placeholders only


#: Entries after which a process folds: some 3 ms of work for what would be 50 otherwise, rarer than the p99.
FOLD_ENTRIES = 1_024

_OLD = "SELECT number, body, hash, at_ms FROM journal WHERE number <= ? AND at_ms < ? ORDER BY number"
_AT = "SELECT at_ms FROM journal WHERE number = ?"
_HELD = "SELECT lines FROM calls WHERE state IN ('reserved', 'dispatched')"
_FIGURES = "SELECT used, reserved, estimated, granted FROM lines WHERE id = ?"
_SET_LINE = """
UPDATE lines SET limit_tokens = ?, granted = ?, used = ?, reserved = ?, estimated = ?, cost = ?, unpriced = ?,
    warned = ? WHERE id = ?
"""
_SET_CALL = f"INSERT OR REPLACE INTO calls (id, {CALL_COLUMNS}) VALUES ({placeholders(12)})"


def fold(tx: Transaction) -> None:
    """Writes every line and reservation that changed since the last fold."""
    cache = tx.cache
    tx.sql.executemany(_SET_LINE, [(*row_of_line(cache.lines[n]), n) for n in cache.changed_lines])
    tx.sql.executemany(_SET_CALL, [row_of_call(name, cache.calls[name]) for name in cache.changed_calls])
    tx.sql.execute("UPDATE folded SET number = ?", (tx.last,))
    tx.folds = True


def read_checkpoint(sql: sqlite3.Connection) -> Checkpoint:
    """What stands for the entries that are no longer there."""
    return Checkpoint(*sql.execute("SELECT number, hash, body FROM checkpoint").fetchone())


def plan_cut(sql: sqlite3.Connection, now_ms: float, retain_ms: float) -> Cut | None:
    """Adds up the oldest entries where enough are older than is kept. Reads what never changes: without the lock."""
    # By the ledger's own time: a clock that is ahead for a moment makes nothing old.
    (last_ms,) = sql.execute("SELECT at_ms FROM journal ORDER BY number DESC LIMIT 1").fetchone()
    before_ms = min(now_ms, last_ms) - retain_ms
    number, size = sql.execute("SELECT number, size FROM checkpoint").fetchone()
    count = piece(size)
    if not (_old(sql, number + count, before_ms) or _old(sql, number + 1, before_ms - DAY_MS)):
        return None
    checkpoint = read_checkpoint(sql)
    (folded,) = sql.execute("SELECT number FROM folded").fetchone()
    # The entry of the last fold stays: with it every process begins.
    rows = sql.execute(_OLD, (min(number + count, folded - 1), before_ms)).fetchall()
    if not rows:
        return None
    open_lines = {line for (lines,) in sql.execute(_HELD) for line in lines.split(",")}
    older = (row[:3] for row in rows)
    return checkpoints.plan(checkpoint, older, over_by(rows[-1][3]), open_lines, moved=lambda sums: _moved(sql, sums))


def _moved(sql: sqlite3.Connection, sums: Mapping[str, Totals]) -> set[str]:
    """Lines that something was posted to after these sums."""
    return {
        ref
        for ref, then in sums.items()
        if sql.execute(_FIGURES, (int(ref),)).fetchone() != (then.used, then.reserved, then.estimated, then.granted)
    }


def _old(sql: sqlite3.Connection, number: int, before_ms: float) -> bool:
    row = sql.execute(_AT, (number,)).fetchone()
    return row is not None and row[0] < before_ms


def cut(tx: Transaction, planned: Cut, owner_id: str) -> None:
    """Lets go of the entries, their reservations, and the lines of turns and days that are over."""
    held = {str(line) for call in held_calls(tx).values() for line in call.lines}
    (number,) = tx.sql.execute("SELECT number FROM checkpoint").fetchone()
    held.update(map(str, tx.cache.changed_lines))
    if number != planned.before or not held.isdisjoint(planned.lines):
        # A neighbour was quicker, or a call has come to one of the lines meanwhile: the next beat plans anew.
        return
    after = planned.after
    tx.sql.execute(
        "UPDATE checkpoint SET number = ?, hash = ?, body = ?, size = ?",
        (after.number, after.hash, after.body, len(after.body)),
    )
    tx.sql.execute("DELETE FROM journal WHERE number <= ?", (after.number,))
    tx.sql.executemany("DELETE FROM calls WHERE id = ?", [(name,) for name in planned.calls])
    tx.sql.executemany("DELETE FROM lines WHERE id = ?", [(int(ref),) for ref in planned.lines])
    # At the time of the last entry: upkeep is no event that could move the ledger into another day.
    tx.append(Entry(tx.cache.at_ms, "checkpoint", "", owner_id, (), note=after.note()))
    fold(tx)
    tx.cuts = True


# The waiting calls of a ledger file: one queue for all processes, served by whoever gives tokens back.

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
