"""The Redis ledger's script, its answers as values, and its journal."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, cast

from agentao_gov.budget import journal
from agentao_gov.budget.admission import Answer
from agentao_gov.budget.balance import line_name, refusal
from agentao_gov.budget.journal import Checkpoint, Totals
from agentao_gov.budget.store import Crossing, JournalRow, Refused, Verification
from agentao_gov.budget.types import (
    Balance,
    Reservation,
    ReservationState,
    ReserveRequest,
    Scope,
    ScopeKind,
)

__all__ = [
    "SCRIPT",
    "balance_of",
    "crossings_of",
    "journal_rows",
    "link",
    "read_checkpoint",
    "refused",
    "reservation_of",
    "verify_records",
    "write_checkpoint",
]

SCRIPT = Path(__file__).with_name("redis_ledger.lua").read_text(encoding="utf-8")

#: The script can only compute SHA-1: enough to find damage and careless edits, not an adversary with the password.
_GENESIS = bytes(20)
_HASH_DIGITS = 40


def link(previous: bytes, text: str) -> bytes:
    """The hash of an entry in Redis."""
    return hashlib.sha1((previous.hex() + text).encode(), usedforsecurity=False).digest()


def reservation_of(answer: dict[str, Any]) -> Reservation:
    """A reservation as the script tells it."""
    return Reservation(
        answer["id"],
        int(answer["prompt"]),
        int(answer["output"]),
        tuple(answer["windows"]),
        ReservationState(answer["state"]),
    )


def balance_of(line: dict[str, Any]) -> Balance:
    """A line as the script tells it."""
    limit = line.get("limit")
    return Balance(
        Scope(cast("ScopeKind", line["kind"]), line["key"]),
        line["window"],
        line["timezone"],
        None if limit is None else int(limit),
        int(line["used"]),
        int(line["reserved"]),
        int(line["estimated"]),
        int(line["granted"]),
        int(line["cost"]),
        int(line["unpriced"]),
    )


def refused(answer: dict[str, Any], request: ReserveRequest, retry_after_s: float | None) -> Refused:
    """A refusal with the figures of the scope that says no."""
    return refusal(Answer(answer["answer"]), balance_of(answer["line"]), request, retry_after_s)


def crossings_of(answer: dict[str, Any]) -> tuple[Crossing, ...]:
    """Soft thresholds passed; Lua writes an empty list as an object."""
    found = []
    for line in answer.get("crossings") or ():
        balance = balance_of(line)
        found.append(Crossing(balance.scope, balance.window, line["threshold"], balance.used, balance.limit or 0))
    return tuple(found)


def read_checkpoint(text: str | None) -> Checkpoint:
    """What stands for the entries that are no longer there."""
    if text is None:
        return Checkpoint(hash=_GENESIS)
    number, digest, body = json.loads(text)
    return Checkpoint(number, bytes.fromhex(digest), body)


def write_checkpoint(checkpoint: Checkpoint) -> str:
    """What `read_checkpoint` reads."""
    return json.dumps([checkpoint.number, checkpoint.hash.hex(), checkpoint.body])


def journal_rows(texts: Iterable[str], after: int) -> Iterator[JournalRow]:
    """Entries as the list keeps them: hash, then text. `after` is the number of the checkpoint before them."""
    for number, entry in enumerate(texts, start=after + 1):
        yield number, entry[_HASH_DIGITS:], bytes.fromhex(entry[:_HASH_DIGITS])


def verify_records(
    checkpoint: Checkpoint,
    rows: Iterable[JournalRow],
    lines: dict[str, dict[str, str]],
    calls: dict[str, dict[str, str]],
) -> Verification:
    """Replays the journal and compares what stands in Redis. Records of turns long over have expired there."""
    result = journal.replay(rows, link, checkpoint.replay())
    problems = list(result.problems)
    if (changed := checkpoint.problem(result)) is not None:
        problems.append(changed)
    for name, record in lines.items():
        scope = Scope(cast("ScopeKind", record["kind"]), record["key"])
        if line_name((scope, record["timezone"], record["window"])) != name or name not in result.names:
            problems.append(f"line {name} is not in the journal")
        if result.limits.get(name) != (record["limit"] or "None"):
            problems.append(f"limit of {name} is {record['limit']}, the journal says {result.limits.get(name)}")
        fields = ("used", "reserved", "estimated", "granted", "cost", "unpriced")
        if int(record["reserved"]) < 0:
            problems.append(f"balance of {name}: {record['reserved']} tokens are reserved")
        stated = Totals(*(int(record[field]) for field in fields))
        if stated != (summed := result.lines.get(name, Totals())):
            problems.append(f"balance of {name}: the journal adds up to {summed}, the balance says {stated}")
    for call_id, record in calls.items():
        if call_id in result.calls and call_id not in result.notes:
            # It began before the checkpoint and was corrected after it.
            continue
        total = result.calls.get(call_id, Totals())
        is_open = record["state"] in ("reserved", "dispatched")
        held = int(record["held_prompt"]) + int(record["held_output"]) if is_open else 0
        if (total.used, total.reserved, total.cost) != (int(record["used"]), held, int(record["cost"])):
            problems.append(f"reservation {call_id} does not match the journal")
        if (record["owner"], int(record["held_output"])) != (result.owners.get(call_id), result.outputs.get(call_id)):
            problems.append(f"reservation {call_id} has another owner or output than the journal")
        last = result.steps.get(call_id)
        if is_open and not lines.keys() >= set(json.loads(record["lines"])):
            problems.append(f"reservation {call_id} holds tokens of a line that is not there")
        if last is None or list(last.lines) != json.loads(record["lines"]):
            problems.append(f"reservation {call_id} posts to other lines than the journal")
    for name, totals in result.lines.items():
        if name not in lines and name in result.names and (totals.reserved or not name.startswith("turn:")):
            problems.append(f"line {name} is in the journal only")
    return Verification(result.entries, len(lines), len(calls), result.head.hex(), tuple(problems))
