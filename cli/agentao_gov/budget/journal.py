"""The journal: every change of a balance as one entry, chained by hashes; its replay, its checkpoints, its proof."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Literal, NamedTuple

from agentao_gov.budget.balance import THOUSANDTHS, BalanceRecord, balance_name
from agentao_gov.budget.reservation import OPEN_STATES, CallRecord, reserve_note
from agentao_gov.budget.store import JournalRow, Verification
from agentao_gov.budget.types import ReservationState
from agentao_gov.errors import StoreError

Kind = Literal[
    "open",
    "line",
    "limit",
    "warn",
    "reserve",
    "dispatch",
    "extend",
    "settle",
    "charge",
    "release",
    "correct",
    "grant",
    "checkpoint",
]

#: The state that a reservation is in after an entry about it; an extension changes none.
STATE_AFTER = {
    "reserve": ReservationState.RESERVED,
    "dispatch": ReservationState.DISPATCHED,
    "settle": ReservationState.SETTLED,
    "correct": ReservationState.SETTLED,
    "charge": ReservationState.CHARGED_ESTIMATE,
    "release": ReservationState.RELEASED,
}

#: What stands before the first entry.
GENESIS = bytes(32)


class JournalEntry(NamedTuple):
    """One step of one call, or one grant. The amounts are added to each of the balances in `refs`."""

    at_ms: int
    kind: Kind
    #: The reservation; for `line` (a balance was opened), `limit` and `warn` the balance; for `grant` empty.
    id: str
    #: Who wrote it; for `reserve` who holds it, which another process may have written on its behalf.
    owner: str
    #: References of the balances it posts to.
    refs: tuple[str, ...]
    used: int = 0
    reserved: int = 0
    estimated: int = 0
    granted: int = 0
    cost: int = 0
    unpriced: int = 0
    #: For `open`: the ledger's identity; for `line`: the balance's name; for `limit`: the new one;
    #: for `warn`: the soft threshold reported last, in thousandths; for `checkpoint`: which, and its digest;
    #: for `reserve`: prompt, output and prices, as the reservation has them.
    note: str = ""


_quote = json.encoder.encode_basestring_ascii


def encode(entry: JournalEntry) -> str:
    """The entry as text, a JSON list: what is stored and hashed, byte for byte.

    Put together by hand because it is on the path of every call: 2 µs instead of the encoder's 9.
    """
    at_ms, kind, call_id, owner, refs, used, reserved, estimated, granted, cost, unpriced, note = entry
    return (
        f'[{at_ms},"{kind}",{_quote(call_id)},{_quote(owner)},[{",".join(map(_quote, refs))}],'
        f"{used},{reserved},{estimated},{granted},{cost},{unpriced},{_quote(note)}]"
    )


def decode(text: str) -> JournalEntry:
    """The entry that `encode` wrote. Raises ValueError for anything else."""
    fields = json.loads(text)
    if not isinstance(fields, list) or len(fields) != 12:
        raise ValueError("not a journal entry")
    fields[4] = tuple(fields[4])
    return JournalEntry(*fields)


def chain(previous: bytes, text: str) -> bytes:
    """The hash of an entry: over the one before and its own text, so that no byte can change unseen."""
    return hashlib.sha256(previous + text.encode()).digest()


_STEPS = frozenset({*STATE_AFTER, "extend"})


@dataclass(slots=True)
class Totals:
    """Sums of one scope in one window, or of one reservation."""

    used: int = 0
    reserved: int = 0
    estimated: int = 0
    granted: int = 0
    cost: int = 0
    unpriced: int = 0

    def add(self, entry: JournalEntry) -> None:
        """Adds one entry's amounts."""
        self.used += entry.used
        self.reserved += entry.reserved
        self.estimated += entry.estimated
        self.granted += entry.granted
        self.cost += entry.cost
        self.unpriced += entry.unpriced


@dataclass(slots=True)
class Replay:
    """What the journal says the balances are, from the first entry or from a checkpoint on."""

    #: Number of the last entry.
    entries: int = 0
    head: bytes = GENESIS
    #: By reference of the balance.
    balances: dict[str, Totals] = field(default_factory=dict)
    #: Reference → kind, key, zone and window, as written when the balance was opened.
    names: dict[str, str] = field(default_factory=dict)
    #: Reference → the limit last stated.
    limits: dict[str, str] = field(default_factory=dict)
    #: Reference → the soft threshold last reported, where one was.
    warned: dict[str, str] = field(default_factory=dict)
    #: Reference → time of the last entry about it, in milliseconds.
    touched: dict[str, int] = field(default_factory=dict)
    #: By reservation: its sums, its last step but extensions, and what was noted when it was reserved.
    calls: dict[str, Totals] = field(default_factory=dict)
    steps: dict[str, JournalEntry] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)
    #: By reservation: who holds or held it, and the output granted to it with all extensions.
    owners: dict[str, str] = field(default_factory=dict)
    outputs: dict[str, int] = field(default_factory=dict)
    #: The ledger's identity, as its first entry has it.
    ledger: str = ""
    #: The checkpoint that the journal last said was made.
    checkpoint: str = ""
    problems: list[str] = field(default_factory=list)


def replay(
    rows: Iterable[tuple[int, str, bytes]], link: Callable[[bytes, str], bytes] = chain, base: Replay | None = None
) -> Replay:
    """Walks (number, text, hash), checks the chain and adds up. Never raises for bad rows.

    Goes on from `base`, which it changes, or from the very first entry.
    """
    result = Replay() if base is None else base
    for number, text, digest in rows:
        result.entries += 1
        if number != result.entries:
            result.problems.append(f"journal: entry {result.entries} is missing, found {number}")
            result.entries = number
        result.head = link(result.head, text)
        if result.head != digest:
            result.problems.append(f"journal: entry {number} does not match its hash")
            result.head = digest
        try:
            _add(result, decode(text))
        except (ValueError, TypeError, IndexError):
            result.problems.append(f"journal: entry {number} cannot be read")
    return result


def _add(result: Replay, entry: JournalEntry) -> None:
    if entry.kind == "open":
        result.ledger = entry.note
    elif entry.kind == "line":
        result.names[entry.id] = entry.note
        result.balances.setdefault(entry.id, Totals())
        result.touched[entry.id] = entry.at_ms
    elif entry.kind == "limit":
        result.limits[entry.id] = entry.note
    elif entry.kind == "warn":
        result.warned[entry.id] = entry.note
    elif entry.kind == "checkpoint":
        result.checkpoint = entry.note
    for ref in entry.refs:
        result.balances.setdefault(ref, Totals()).add(entry)
        result.touched[ref] = entry.at_ms
    if entry.kind in _STEPS:
        result.calls.setdefault(entry.id, Totals()).add(entry)
        if entry.kind != "extend":
            result.steps[entry.id] = entry
        if entry.kind == "reserve":
            result.notes[entry.id], result.owners[entry.id] = entry.note, entry.owner
            result.outputs[entry.id] = int(entry.note.split(" ")[1])
        elif entry.kind == "extend":
            result.outputs[entry.id] = result.outputs.get(entry.id, 0) + entry.reserved


# ── checkpoints ───────────────────────────────────────────────────────────────────────────────────

#: Of a balance's name, and of the time of the last entry about it: whether nothing can be posted to it any more.
Over = Callable[[str, int], bool]
Link = Callable[[bytes, str], bytes]
#: Of balances and what was posted to them up to the cut: those that have other figures now.
Moved = Callable[[Mapping[str, Totals]], Collection[str]]

_OPEN_STEPS = frozenset({"reserve", "dispatch"})

#: How long what may go already waits for more to go with it, where there is little.
DAY_MS = 86_400_000
#: Entries let go of at a time, at least: the lock is held for some milliseconds.
_PIECE = 4_000
#: Bytes of a checkpoint that one balance takes, about.
_BALANCE_BYTES = 100


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The sums of entries 1 to `number`, as text, so that they need not be kept for ever.

    Only what later entries may still build on is in it. The journal goes on from its hash, and names the checkpoint's
    digest in an entry of its own: neither can be changed without the other telling.
    """

    #: The last entry it stands for; 0 for the one before all entries.
    number: int = 0
    #: That entry's hash.
    hash: bytes = GENESIS
    body: str = ""

    @classmethod
    def of(cls, sums: Replay) -> Checkpoint:
        """Writes down what a replay came to."""
        balances = [
            [ref, sums.names.get(ref, ""), sums.limits.get(ref), sums.warned.get(ref), *astuple(totals)]
            for ref, totals in sums.balances.items()
        ]
        calls = [
            [name, sums.notes[name], sums.owners[name], sums.outputs[name], list(step), *astuple(sums.calls[name])]
            for name, step in sums.steps.items()
        ]
        turns = {ref: at_ms for ref, at_ms in sums.touched.items() if sums.names.get(ref, "").startswith("turn:")}
        return cls(sums.entries, sums.head, json.dumps([sums.ledger, balances, calls, turns], separators=(",", ":")))

    def note(self) -> str:
        """How the journal names this checkpoint."""
        digest = hashlib.sha256(self.body.encode()).hexdigest()
        return f"{self.number} {self.hash.hex()} {digest}"

    def replay(self) -> Replay:
        """Where a replay of the entries after it begins. Raises StoreError when the text cannot be read."""
        sums = Replay(entries=self.number, head=self.hash)
        if not self.body:
            return sums
        try:
            sums.ledger, balances, calls, turns = json.loads(self.body)
            sums.touched = dict(turns)
            for ref, name, limit, warned, *totals in balances:
                sums.balances[ref] = Totals(*totals)
                if name:
                    sums.names[ref] = name
                if limit is not None:
                    sums.limits[ref] = limit
                if warned is not None:
                    sums.warned[ref] = warned
            for call_id, note, owner, output, step, *totals in calls:
                step[4] = tuple(step[4])
                sums.calls[call_id], sums.notes[call_id] = Totals(*totals), note
                sums.owners[call_id], sums.outputs[call_id] = owner, output
                sums.steps[call_id] = JournalEntry(*step)
        except (ValueError, TypeError, IndexError) as error:
            raise StoreError(
                f"The journal's checkpoint at entry {self.number:,} cannot be read: {error}.",
                hint="Run `agentao-gov budget verify`, and put a sound copy back.",
            ) from error
        return sums

    def problem(self, sums: Replay) -> str | None:
        """What is wrong with this checkpoint, given a replay that began with it."""
        if self.number == 0 or sums.checkpoint == self.note():
            return None
        return f"journal: the checkpoint at entry {self.number} is not the one that the journal names"


@dataclass(frozen=True, slots=True)
class Cut:
    """A piece of the journal that a checkpoint takes the place of, and what goes with it."""

    #: Number of the checkpoint before.
    before: int
    after: Checkpoint
    #: Reservations that ended in the piece.
    calls: list[str]
    #: Balances that are over, by reference: what the entries up to the checkpoint add up to.
    over: dict[str, Totals]


def piece(size: int) -> int:
    """How many entries a cut should let go of, by the length of the checkpoint that it has to write anew."""
    return max(_PIECE, size // _BALANCE_BYTES)


def _nothing(_: Mapping[str, Totals]) -> Collection[str]:
    return ()


def plan(
    checkpoint: Checkpoint,
    rows: Iterable[JournalRow],
    over: Over,
    kept: Collection[str],
    link: Link = chain,
    *,
    moved: Moved = _nothing,
) -> Cut | None:
    """Adds up `rows`, which follow the checkpoint; None where there are none, or where they are not sound.

    A balance that `over` says is over goes, unless a call was open on it at the end of the rows, or it is one of `kept`
    (the balances of calls that are open now, which may have been reserved long after these rows), or one that has
    `moved` since: calls that ended later post their corrections to it.
    """
    sums = replay(rows, link, checkpoint.replay())
    if sums.entries == checkpoint.number or sums.problems:
        # What is not sound is not ours to hide: `budget verify` has to find it.
        return None
    ended = [name for name, step in sums.steps.items() if step.kind not in _OPEN_STEPS]
    for name in ended:
        for by_call in (sums.calls, sums.steps, sums.notes, sums.owners, sums.outputs):
            by_call.pop(name, None)
    held = {ref for step in sums.steps.values() for ref in step.refs}.union(kept)
    refs = [ref for ref, name in sums.names.items() if ref not in held and over(name, sums.touched.get(ref, 0))]
    stay = set(moved({ref: sums.balances[ref] for ref in refs}))
    gone = {ref: sums.balances[ref] for ref in refs if ref not in stay}
    for ref in [*gone, *sums.balances.keys() - sums.names.keys()]:
        for by_balance in (sums.balances, sums.names, sums.limits, sums.warned, sums.touched):
            by_balance.pop(ref, None)
    return Cut(checkpoint.number, Checkpoint.of(sums), ended, gone)


def over_by(at_ms: float) -> Over:
    """Which balances were over by that instant: turns that rested for a day, and days of users and sessions.

    What tenants used in a day is kept for good.
    """
    # Two days, because a day ends up to 26 hours later somewhere else.
    day = (datetime.fromtimestamp(at_ms / 1000, UTC).date() - timedelta(days=2)).isoformat()

    def over(name: str, touched_ms: int) -> bool:
        if name.startswith("turn:"):
            return touched_ms <= at_ms - DAY_MS
        return not name.startswith("tenant:") and name.rpartition(" ")[2] < day

    return over


# ── what a store keeps, compared with what its journal adds up to ─────────────────────────────────

#: Problems listed one by one; a broken ledger has thousands.
_PROBLEMS_MAX = 50


def verify_records(
    result: Replay,
    checkpoint: Checkpoint,
    balances: Iterable[BalanceRecord],
    calls: Iterable[CallRecord],
    *,
    found: Sequence[str] = (),
    expires: bool = False,
) -> Verification:
    """Compares every balance and every reservation with a replay that began with `checkpoint`.

    `found` are problems that the store found itself. `expires`: the store lets records of ended calls and turns go by
    themselves, and keeps no entry about soft thresholds.
    """
    problems = list(result.problems)
    if (changed := checkpoint.problem(result)) is not None:
        problems.append(changed)
    there: set[str] = set()
    for balance in balances:
        there.add(balance.ref)
        problems += _compare_balance(result, balance, warned=not expires)
    problems += [
        f"balance {result.names[ref]} is in the journal only"
        for ref in result.names.keys() - there
        if not expires or result.balances[ref].reserved or not result.names[ref].startswith("turn:")
    ]
    known: set[str] = set()
    for call in calls:
        known.add(call.id)
        problems += _compare_call(result, call, there)
    # Called now, because reading the calls may have found some more.
    problems += found
    if not expires:
        problems += [f"reservation {name} is in the journal only" for name in sorted(result.notes.keys() - known)]
    shown = problems[:_PROBLEMS_MAX]
    if len(problems) > len(shown):
        shown.append(f"and {len(problems) - len(shown)} more")
    return Verification(result.entries, len(there), len(known), result.head.hex(), tuple(shown))


def _compare_balance(result: Replay, balance: BalanceRecord, *, warned: bool) -> Iterator[str]:
    ref, name = balance.ref, balance_name(balance.key)
    if result.names.get(ref) != name:
        yield f"balance {ref} is called {name}, but not in the journal"
    if result.limits.get(ref) != str(balance.limit):
        yield f"limit of {name} is {balance.limit}, the journal says {result.limits.get(ref)}"
    if warned and result.warned.get(ref, "0") != str(round(balance.warned * THOUSANDTHS)):
        yield f"the soft threshold of {name} is {balance.warned}, the journal says otherwise"
    if balance.reserved < 0:
        yield f"balance of {name}: {balance.reserved:,} tokens are reserved"
    stated = Totals(balance.used, balance.reserved, balance.estimated, balance.granted, balance.cost, balance.unpriced)
    summed = result.balances.get(ref, Totals())
    if stated != summed:
        yield f"balance of {name}: the journal adds up to {summed}, the balance says {stated}"


def _compare_call(result: Replay, call: CallRecord, there: Collection[str]) -> Iterator[str]:
    name, holding = call.id, call.holding
    if holding.state in OPEN_STATES and not all(ref in there for ref in call.refs):
        yield f"reservation {name} holds tokens of a balance that is not there"
    summed, last = result.calls.get(name), result.steps.get(name)
    if summed is not None and name not in result.notes:
        # It began before the checkpoint and was corrected after it.
        return
    if summed is None or last is None:
        yield f"reservation {name} is not in the journal"
        return
    stated = Totals(holding.used, holding.held, holding.estimated, 0, holding.cost, holding.unpriced)
    if stated != summed:
        yield f"reservation {name}: the journal adds up to {summed}, the reservation says {stated}"
    if STATE_AFTER[last.kind] != holding.state or last.refs != call.refs:
        yield f"reservation {name} is {holding.state} on balances {call.refs}, the journal says otherwise"
    noted, own = result.notes[name].split(" "), reserve_note(holding).split(" ")
    if noted[:1] + noted[2:] != own[:1] + own[2:]:
        yield f"reservation {name} has another prompt or price than the journal"
    if (call.owner, holding.held_output) != (result.owners[name], result.outputs[name]):
        yield f"reservation {name} has another owner or output than the journal"
