"""The lines of a ledger file: one row per scope and window, opened by the first call that needs it."""
# ruff: noqa: S608 - statements are put together from constant column lists only

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from agentao_gov.budget.admission import Admission, admit
from agentao_gov.budget.balance import Line, LineKey, line_name
from agentao_gov.budget.journal import Entry
from agentao_gov.budget.sqlite_cache import Cache
from agentao_gov.budget.sqlite_rows import LINE_COLUMNS, THOUSANDTHS, line_of
from agentao_gov.budget.sqlite_tx import Transaction
from agentao_gov.budget.types import Balance, ReserveRequest, ScopeLimit
from agentao_gov.budget.windows import TURN_WINDOW, WindowCalendar

__all__ = ["LineTable", "fits"]

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
