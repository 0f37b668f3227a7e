"""What a process knows of the ledger file without reading it: lines and calls as the last entry left them.

A step writes one journal entry and nothing else; the tables of lines and calls are brought up to date by a fold, some
hundred entries at a time. What others wrote meanwhile is read from the journal and followed here. So a step costs one
page of the file instead of four.
"""
# ruff: noqa: S608 - statements are put together from constant column lists and placeholders only

from __future__ import annotations

import sqlite3
from collections.abc import Sequence

from agentao_gov.budget.balance import Line
from agentao_gov.budget.journal import STATE_AFTER, Entry
from agentao_gov.budget.memory import after
from agentao_gov.budget.reservation import OPEN_STATES, Holding, Posting, Price
from agentao_gov.budget.sqlite_rows import (
    CALL_COLUMNS,
    LINE_COLUMNS,
    THOUSANDTHS,
    StoredCall,
    call_of,
    limit_of_note,
    line_of,
    placeholders,
)
from agentao_gov.budget.sqlite_step import Step

__all__ = ["Cache"]

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
