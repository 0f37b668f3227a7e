"""Replays a ledger file's journal and compares every line and every reservation with it."""
# ruff: noqa: S608 - statements are put together from constant column lists and placeholders only

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from agentao_gov.budget import journal
from agentao_gov.budget.book import reserve_note
from agentao_gov.budget.journal import Replay, Totals
from agentao_gov.budget.line import line_name
from agentao_gov.budget.sqlite_rows import CALL_COLUMNS, LINE_COLUMNS, holding_of, line_of
from agentao_gov.budget.sqlite_schema import store_error
from agentao_gov.budget.store import JournalRow, Verification

__all__ = ["read_journal", "verify_file"]

_STATE_AFTER = {
    "reserve": "reserved",
    "dispatch": "dispatched",
    "settle": "settled",
    "correct": "settled",
    "charge": "charged_estimate",
    "release": "released",
}
#: Problems listed one by one; a broken file has thousands.
_PROBLEMS_MAX = 50


@contextmanager
def _snapshot(path: Path) -> Iterator[sqlite3.Connection]:
    """A connection of its own that sees one moment, while others go on writing."""
    try:
        with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True, isolation_level=None)) as sql:
            sql.execute("BEGIN")
            yield sql
    except sqlite3.Error as error:
        raise store_error(path, error) from error


def read_journal(path: Path) -> Iterator[JournalRow]:
    """Every entry from the first."""
    with _snapshot(path) as sql:
        yield from sql.execute("SELECT number, body, hash FROM journal ORDER BY number")


def verify_file(path: Path) -> Verification:
    """Checks the file's structure, the journal's chain, and everything that is derived from the journal."""
    with _snapshot(path) as sql:
        problems = [f"file: {row[0]}" for row in sql.execute("PRAGMA integrity_check(10)") if row[0] != "ok"]
        result = journal.replay(sql.execute("SELECT number, body, hash FROM journal ORDER BY number"))
        problems += result.problems
        problems += _times(sql)
        lines = sql.execute(f"SELECT {LINE_COLUMNS} FROM lines ORDER BY id").fetchall()
        problems += _compare_lines(result, lines)
        calls = 0
        for row in sql.execute(f"SELECT {CALL_COLUMNS}, id FROM calls"):
            calls += 1
            problems += _compare_call(result, row)
        for call_id in sorted(result.calls):
            problems.append(f"reservation {call_id} is in the journal only")
    shown = problems[:_PROBLEMS_MAX]
    if len(problems) > len(shown):
        shown.append(f"and {len(problems) - len(shown)} more")
    return Verification(result.entries, len(lines), calls, result.head.hex(), tuple(shown))


def _times(sql: sqlite3.Connection) -> list[str]:
    rows = sql.execute(
        "SELECT number FROM journal WHERE CASE WHEN json_valid(body) THEN json_extract(body, '$[0]') END"
        " IS NOT at_ms LIMIT 10"
    )
    return [f"journal: entry {number} was moved in time" for (number,) in rows]


def _compare_lines(result: Replay, rows: list[tuple[object, ...]]) -> list[str]:
    problems = []
    for row in rows:
        line, reference = line_of(row), str(row[0])
        name = line_name(line.key)
        if result.names.pop(reference, None) != name:
            problems.append(f"line {reference} is called {name}, but not in the journal")
        if result.limits.get(reference) != str(line.limit):
            problems.append(f"limit of {name} is {line.limit}, the journal says {result.limits.get(reference)}")
        stated = Totals(line.used, line.reserved, line.estimated, line.granted, line.cost, line.unpriced)
        summed = result.lines.get(reference, Totals())
        if stated != summed:
            problems.append(f"balance of {name}: the journal adds up to {summed}, the balance says {stated}")
    problems += [f"line {name} is in the journal only" for name in result.names.values()]
    return problems


def _compare_call(result: Replay, row: tuple[object, ...]) -> Iterator[str]:
    *columns, call_id = row
    name = str(call_id)
    try:
        holding = holding_of(tuple(columns))
    except (ValueError, TypeError) as error:
        result.calls.pop(name, None)
        yield f"reservation {name} cannot be read: {error}"
        return
    summed, last = result.calls.pop(name, None), result.steps.get(name)
    if summed is None or last is None:
        yield f"reservation {name} is not in the journal"
        return
    stated = Totals(holding.used, holding.held, holding.estimated, 0, holding.cost, holding.unpriced)
    if stated != summed:
        yield f"reservation {name}: the journal adds up to {summed}, the reservation says {stated}"
    if _STATE_AFTER[last.kind] != holding.state or ",".join(last.lines) != columns[0]:
        yield f"reservation {name} is {holding.state} on lines {columns[0]}, the journal says otherwise"
    noted = result.notes.get(name, "").split(" ")
    if noted[:1] + noted[2:] != (own := reserve_note(holding).split(" "))[:1] + own[2:]:
        yield f"reservation {name} has another prompt or price than the journal"
