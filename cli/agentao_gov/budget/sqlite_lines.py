"""The lines of a ledger file: one row per scope and window, opened by the first call that needs it."""
# ruff: noqa: S608 - statements are put together from constant column lists and placeholders only

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Sequence
from functools import cache

from agentao_gov.budget.admission import Admission, admit
from agentao_gov.budget.journal import Entry
from agentao_gov.budget.line import Line, LineKey, line_name
from agentao_gov.budget.sqlite_rows import LINE_COLUMNS, THOUSANDTHS, line_of, placeholders
from agentao_gov.budget.sqlite_tx import Transaction
from agentao_gov.budget.states import Posting
from agentao_gov.budget.types import Balance, ReserveRequest, ScopeLimit
from agentao_gov.budget.windows import TURN_WINDOW, WindowCalendar

__all__ = ["LineTable"]

#: Line ids remembered; every turn opens one of its own.
_REMEMBERED_MAX = 50_000
_RECENT_MAX = 4_000


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

    def admission(self, tx: Transaction, request: ReserveRequest) -> tuple[dict[int, Line], Admission]:
        """The request's lines in its order, with their current limits, and whether it fits them."""
        lines = self.load(tx, [self._find(tx, scope) for scope in request.scopes])
        ids = list(lines)
        for line_id, line, scope in zip(ids, lines.values(), request.scopes, strict=True):
            if line.limit != scope.limit:
                self.set_limit(tx, line_id, line, scope.limit)
        answer = admit(
            [line.level for line in lines.values()],
            request.prompt_tokens,
            request.output_tokens_min,
            request.output_tokens_max,
        )
        return lines, answer

    def _find(self, tx: Transaction, scope: ScopeLimit) -> int:
        """The scope's line of today. A turn asks with the same objects again and again."""
        now_s = tx.at_ms / 1000
        recent = self._recent.get(id(scope))
        if recent is not None and recent[0] is scope and recent[1] <= now_s < recent[2]:
            return recent[3]
        key = self.key(scope, now_s)
        line_id = self._ids.get(key)
        if line_id is None:
            return tx.opened.get(key) or self._open(tx, key, scope.limit)
        window = self.calendar.window(scope.timezone, now_s)
        if len(self._recent) > _RECENT_MAX:
            self._recent.clear()
        self._recent[id(scope)] = (scope, window.start_s, window.end_s, line_id)
        return line_id

    def line(self, tx: Transaction, scope: ScopeLimit) -> tuple[int, Line]:
        """The scope's line of today, opened if need be."""
        line_id = self._find(tx, scope)
        line = self.load(tx, [line_id])[line_id]
        if line.limit != scope.limit:
            self.set_limit(tx, line_id, line, scope.limit)
        return line_id, line

    def load(self, tx: Transaction, ids: Sequence[int]) -> dict[int, Line]:
        """Lines by id, in the order of `ids`. The caller changes them together with their rows."""
        known = tx.cache.lines
        try:
            return {line_id: known[line_id] for line_id in ids}
        except KeyError:
            rows = tx.sql.execute(f"SELECT {LINE_COLUMNS} FROM lines WHERE id IN ({placeholders(len(ids))})", ids)
            for row in rows.fetchall():
                known.setdefault(row[0], line_of(row))
        return {line_id: known[line_id] for line_id in ids}

    def post(self, tx: Transaction, ids: Sequence[int], posting: Posting) -> dict[int, Line]:
        """Adds a posting to each line; returns the lines as they are now."""
        lines = self.load(tx, ids)
        everything, held_only = _updates(len(ids))
        _, used, reserved, estimated, cost, unpriced = posting
        if used or estimated or cost or unpriced:
            tx.sql.execute(everything, (used, reserved, estimated, cost, unpriced, *ids))
        elif reserved:
            tx.sql.execute(held_only, (reserved, *ids))
        for line in lines.values():
            line.add(posting)
        return lines

    def set_limit(self, tx: Transaction, line_id: int, line: Line, limit: int | None) -> None:
        """Notes a changed limit; the journal tells later which limit a call was admitted under."""
        line.limit = limit
        tx.sql.execute("UPDATE lines SET limit_tokens = ? WHERE id = ?", (limit, line_id))
        tx.append(Entry(tx.at_ms, "limit", str(line_id), self._owner_id, (), note=str(limit)))

    @staticmethod
    def set_warned(tx: Transaction, line_id: int, line: Line) -> None:
        """Notes the soft threshold that was reported last."""
        tx.sql.execute("UPDATE lines SET warned = ? WHERE id = ?", (round(line.warned * THOUSANDTHS), line_id))

    def _open(self, tx: Transaction, key: LineKey, limit: int | None) -> int:
        scope, timezone, window = key
        row = tx.sql.execute(
            "SELECT id FROM lines WHERE kind = ? AND key = ? AND timezone = ? AND window = ?",
            (scope.kind, scope.key, timezone, window),
        ).fetchone()
        if row is None:
            row = tx.sql.execute(
                "INSERT INTO lines (kind, key, timezone, window, limit_tokens) VALUES (?, ?, ?, ?, ?) RETURNING id",
                (scope.kind, scope.key, timezone, window, limit),
            ).fetchone()
            tx.append(Entry(tx.at_ms, "line", str(row[0]), self._owner_id, (), note=line_name(key)))
            tx.append(Entry(tx.at_ms, "limit", str(row[0]), self._owner_id, (), note=str(limit)))
        tx.opened[key] = row[0]
        return int(row[0])

    def balances(self, sql: sqlite3.Connection, scopes: Iterable[ScopeLimit], now_s: float) -> tuple[Balance, ...]:
        """What stands in the windows open now, under the limits the caller states."""
        result = []
        for scope in scopes:
            key = self.key(scope, now_s)
            row = sql.execute(
                f"SELECT {LINE_COLUMNS} FROM lines WHERE kind = ? AND key = ? AND timezone = ? AND window = ?",
                (scope.scope.kind, scope.scope.key, key[1], key[2]),
            ).fetchone()
            line = line_of(row) if row else Line(key)
            line.limit = scope.limit
            result.append(line.balance)
        return tuple(result)

    def all_balances(self, sql: sqlite3.Connection, window: str | None, now_s: float) -> tuple[Balance, ...]:
        """Every line but those of turns, of one window, or of the one open now in each zone."""
        zones = [row[0] for row in sql.execute("SELECT DISTINCT timezone FROM lines WHERE kind != 'turn'")]
        result = []
        for timezone in zones:
            wanted = window or self.calendar.window(timezone, now_s).name
            rows = sql.execute(
                f"SELECT {LINE_COLUMNS} FROM lines WHERE kind != 'turn' AND timezone = ?1 AND ?2 IN ('all', window)"
                " ORDER BY id",
                (timezone, wanted),
            )
            result += [line_of(row).balance for row in rows]
        return tuple(result)


@cache
def _updates(count: int) -> tuple[str, str]:
    """The statements that post to that many lines: all amounts, and what is held alone."""
    where = f"WHERE id IN ({placeholders(count)})"
    everything = (
        "UPDATE lines SET used = used + ?, reserved = reserved + ?, estimated = estimated + ?, cost = cost + ?,"
        f" unpriced = unpriced + ? {where}"
    )
    return everything, f"UPDATE lines SET reserved = reserved + ? {where}"
