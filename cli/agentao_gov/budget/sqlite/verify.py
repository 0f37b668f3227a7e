"""Replays a ledger file's journal and compares every line and every reservation with it."""
# ruff: noqa: S608 - statements are put together from constant column lists and placeholders only

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from agentao_gov.budget import journal
from agentao_gov.budget.balance import Line, line_name
from agentao_gov.budget.journal import STATE_AFTER, Replay, Totals
from agentao_gov.budget.memory import reserve_note
from agentao_gov.budget.reservation import OPEN_STATES
from agentao_gov.budget.sqlite.file import store_error
from agentao_gov.budget.sqlite.rows import CALL_COLUMNS, LINE_COLUMNS, THOUSANDTHS, StoredCall, call_of, line_of
from agentao_gov.budget.sqlite.tables import read_checkpoint
from agentao_gov.budget.sqlite.transaction import Cache
from agentao_gov.budget.store import JournalRow, Verification
from agentao_gov.errors import StoreError

__all__ = ["read_journal", "verify_file"]

_ROWS = "SELECT number, body, hash FROM journal"
#: What comes of a column that holds something else than it should.
_UNREADABLE = (TypeError, ValueError, AttributeError, LookupError, OverflowError)
#: Problems listed one by one; a broken file has thousands.
_PROBLEMS_MAX = 50


@contextmanager
def _snapshot(path: Path) -> Iterator[sqlite3.Connection]:
    """A connection of its own that sees one moment, while others go on writing."""
    try:
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, isolation_level=None)) as sql:
            sql.execute("BEGIN")
            yield sql
    except (sqlite3.Error, *_UNREADABLE) as error:
        raise store_error(path, error) from error


def read_journal(path: Path) -> Iterator[JournalRow]:
    """Every entry that is kept, from the first."""
    with _snapshot(path) as sql:
        yield from sql.execute("SELECT number, body, hash FROM journal ORDER BY number")


def verify_file(path: Path) -> Verification:
    """Checks the file's structure, the journal's chain, and everything that is derived from the journal."""
    with _snapshot(path) as sql:
        problems = [f"file: {row[0]}" for row in sql.execute("PRAGMA integrity_check(10)") if row[0] != "ok"]
        checkpoint = read_checkpoint(sql)
        result = journal.replay(sql.execute(f"{_ROWS} ORDER BY number"), base=checkpoint.replay())
        problems += result.problems
        problems += _times(sql)
        if (changed := checkpoint.problem(result)) is not None:
            problems.append(changed)
        if sql.execute("SELECT size FROM checkpoint").fetchone() != (len(checkpoint.body),):
            problems.append("journal: the checkpoint has another size than it says")
        if sql.execute("SELECT value FROM meta WHERE name = 'ledger_id'").fetchone() != (result.ledger,):
            problems.append("the ledger's identity is not the journal's")
        now = Cache()
        problems += _follow(sql, now)
        lines = [
            (row[0], now.lines.get(row[0]) or line_of(row))
            for row in sql.execute(f"SELECT {LINE_COLUMNS} FROM lines ORDER BY id")
        ]
        problems += _compare_lines(result, lines)
        there = {line_id for line_id, _ in lines}
        calls = len(now.calls)
        for name, call in now.calls.items():
            problems += _compare_call(result, name, call, there)
        for row in sql.execute(f"SELECT {CALL_COLUMNS}, id FROM calls"):
            if row[-1] not in now.calls:
                calls += 1
                problems += _compare_row(result, row, there)
        problems += [
            f"reservation {name} is in the journal only" for name in sorted(result.calls) if name in result.notes
        ]
    shown = problems[:_PROBLEMS_MAX]
    if len(problems) > len(shown):
        shown.append(f"and {len(problems) - len(shown)} more")
    return Verification(result.entries, len(lines), calls, result.head.hex(), tuple(shown))


def _follow(sql: sqlite3.Connection, now: Cache) -> Iterator[str]:
    """What whoever opens the file adds to its tables: the entries since the last fold."""
    (folded,) = sql.execute("SELECT number FROM folded").fetchone()
    now.begin(folded)
    rows = sql.execute(f"{_ROWS} WHERE number >= ? ORDER BY number", (folded,)).fetchall()
    if not rows or rows[0][0] != folded:
        yield f"journal: the tables stand at entry {folded}, which is missing"
    for number, body, _ in rows[1:]:
        try:
            now.follow(sql, journal.decode(body))
        except (ValueError, TypeError, KeyError, StoreError) as error:
            yield f"journal: entry {number} cannot be applied: {error}"


def _times(sql: sqlite3.Connection) -> list[str]:
    rows = sql.execute(
        "SELECT number FROM journal WHERE CASE WHEN json_valid(body) THEN json_extract(body, '$[0]') END"
        " IS NOT at_ms LIMIT 10"
    )
    return [f"journal: entry {number} was moved in time" for (number,) in rows]


def _compare_lines(result: Replay, lines: list[tuple[int, Line]]) -> list[str]:
    problems = []
    for line_id, line in lines:
        reference, name = str(line_id), line_name(line.key)
        if result.names.pop(reference, None) != name:
            problems.append(f"line {reference} is called {name}, but not in the journal")
        if result.limits.get(reference) != str(line.limit):
            problems.append(f"limit of {name} is {line.limit}, the journal says {result.limits.get(reference)}")
        if result.warned.get(reference, "0") != str(round(line.warned * THOUSANDTHS)):
            problems.append(f"the soft threshold of {name} is {line.warned}, the journal says otherwise")
        if line.reserved < 0:
            problems.append(f"balance of {name}: {line.reserved:,} tokens are reserved")
        stated = Totals(line.used, line.reserved, line.estimated, line.granted, line.cost, line.unpriced)
        summed = result.lines.get(reference, Totals())
        if stated != summed:
            problems.append(f"balance of {name}: the journal adds up to {summed}, the balance says {stated}")
    problems += [f"line {name} is in the journal only" for name in result.names.values()]
    return problems


def _compare_row(result: Replay, row: tuple[Any, ...], there: set[int]) -> Iterator[str]:
    name = str(row[-1])
    try:
        call = call_of(row[:-1])
    except StoreError as error:
        result.calls.pop(name, None)
        yield f"reservation {name} cannot be read: {error}"
        return
    yield from _compare_call(result, name, call, there)


def _compare_call(result: Replay, name: str, call: StoredCall, there: set[int]) -> Iterator[str]:
    if call.holding.state in OPEN_STATES and not there.issuperset(call.lines):
        yield f"reservation {name} holds tokens of a line that is not there"
    summed, last = result.calls.pop(name, None), result.steps.get(name)
    if summed is not None and name not in result.notes:
        # It began before the checkpoint and was corrected after it.
        return
    if summed is None or last is None:
        yield f"reservation {name} is not in the journal"
        return
    holding = call.holding
    stated = Totals(holding.used, holding.held, holding.estimated, 0, holding.cost, holding.unpriced)
    if stated != summed:
        yield f"reservation {name}: the journal adds up to {summed}, the reservation says {stated}"
    if STATE_AFTER[last.kind] != holding.state or last.lines != tuple(map(str, call.lines)):
        yield f"reservation {name} is {holding.state} on lines {call.lines}, the journal says otherwise"
    noted = result.notes[name].split(" ")
    if noted[:1] + noted[2:] != (own := reserve_note(holding).split(" "))[:1] + own[2:]:
        yield f"reservation {name} has another prompt or price than the journal"
    if (call.owner, holding.held_output) != (result.owners[name], result.outputs[name]):
        yield f"reservation {name} has another owner or output than the journal"
