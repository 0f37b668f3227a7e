"""The raw record of a load test: one JSON line for each turn that was started and for each that ended.

Two lines a turn, because a generator that dies must not take its unfinished turns with it: whatever began and never
ended counts as *unfinished*. Every figure of the report is derived from these lines and can be derived again.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, Self

#: Outcomes that say "no room now": refusals, not errors.
CAPACITY_OUTCOMES = frozenset(
    {
        "refused",
        "tenant_session_limit",
        "user_session_limit",
        "queue_full",
        "queue_timeout",
        "budget_exhausted",
        "budget_impossible",
        "draining",
        "shutdown",
        "rate_limited",
    }
)
#: The generator could not send the turn: it lacked a descriptor, a local port or memory.
UNSENT = "generator_error"
# Spelled out, not imported: the governor's package loads agentao, which must never be in a gevent process.
# `tests/loadtest/test_record.py` holds these words against the governor's own list.
_ANSWERED, _CANCELLED = "answered", "cancelled"
_TIMEOUTS = frozenset({"turn_timeout", "stuck", "client_timeout"})


class Status(StrEnum):
    """How a turn ended, seen from the client. Every started turn ends in exactly one of these."""

    ANSWERED = "answered"
    FAILED = "failed"
    TIMED_OUT = "timed_out"
    CANCELLED = "cancelled"
    UNFINISHED = "unfinished"


def classify(outcome: str) -> Status:
    """The status of a turn that ended with this outcome or error code."""
    if outcome == _ANSWERED:
        return Status.ANSWERED
    if outcome in _TIMEOUTS:
        return Status.TIMED_OUT
    if outcome == _CANCELLED:
        return Status.CANCELLED
    return Status.UNFINISHED if outcome == Status.UNFINISHED else Status.FAILED


@dataclass(frozen=True, slots=True)
class Begin:
    """A turn is about to be sent. Times are seconds since the phase's start."""

    id: str
    phase: int
    session: str
    profile: str
    tenant: str
    intended_s: float
    sent_s: float

    def to_line(self) -> str:
        """The record on one line."""
        return json.dumps({"t": "begin", **asdict(self)}, separators=(",", ":"))


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientResult:
    """What the client saw of one turn. Durations are integers of microseconds since the send."""

    outcome: str
    #: What the service took.
    service_us: int = 0
    http_status: int = 0
    #: To the first text; None where no text came.
    first_token_us: int | None = None
    #: Mean and longest gap between texts; None with fewer than two.
    gap_mean_us: int | None = None
    gap_max_us: int | None = None
    queue_us: int | None = None
    #: The service's own word on how long the model and the tools took.
    model_us: int | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0
    llm_calls: int = 0
    tool_calls: int = 0
    retry_after_s: float | None = None
    #: Kept short, for people.
    error: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class TurnSample(ClientResult):
    """One turn, from its intended start to its end."""

    id: str
    phase: int
    worker: int
    session: str
    profile: str
    tenant: str
    intended_s: float
    sent_s: float
    #: From the intended start: what a user waited. Holds the wait for the session's own earlier turn.
    latency_us: int
    #: How late the generator was, after the session was free and the intended start had come.
    late_us: int

    @classmethod
    def of(cls, begin: Begin, result: ClientResult, *, worker: int, late_us: int) -> TurnSample:
        """The turn that began so and was seen to end so.

        Args:
            begin: its start.
            result: what the client saw of it.
            worker: the generator's worker that sent it; -1: one that is gone.
            late_us: how late the generator was.
        """
        waited_us = max(0, int((begin.sent_s - begin.intended_s) * 1e6))
        return cls(
            **asdict(begin), **asdict(result), worker=worker, latency_us=waited_us + result.service_us, late_us=late_us
        )

    @property
    def status(self) -> Status:
        """What the turn counts as."""
        return classify(self.outcome)

    @property
    def ended_s(self) -> float:
        """When it ended, seconds since the phase's start."""
        return self.sent_s + self.service_us / 1e6

    @property
    def tokens(self) -> int:
        """Prompt and completion."""
        return self.prompt_tokens + self.completion_tokens

    def to_line(self) -> str:
        """The record on one line."""
        return json.dumps({"t": "turn", **asdict(self)}, separators=(",", ":"))


@dataclass(frozen=True, slots=True)
class Beat:
    """The generator is alive, and how well: written several times a second."""

    phase: int
    worker: int
    at_s: float
    in_flight: int
    started: int
    #: How late the generator's event loop ran, each measurement in microseconds.
    lags_us: tuple[int, ...] = ()
    #: Of one core: used, and waited for while other programs had it.
    cpu_ratio: float = 0.0
    wait_ratio: float = 0.0

    def to_line(self) -> str:
        """The record on one line."""
        return json.dumps({"t": "beat", **asdict(self)}, separators=(",", ":"))


def parse_line(line: str) -> Begin | TurnSample | Beat | dict[str, Any] | None:
    """One line back into its record. Other JSON objects come back as they are; a torn line is None."""
    try:
        data = json.loads(line)
    except ValueError:
        return None
    if not isinstance(data, dict):
        return None
    kind = data.get("t")
    body = {name: value for name, value in data.items() if name != "t"}
    try:
        if kind == "turn":
            return TurnSample(**body)
        if kind == "begin":
            return Begin(**body)
        if kind == "beat":
            return Beat(**{**body, "lags_us": tuple(body.get("lags_us", ()))})
    except TypeError:
        return None
    return data


@dataclass(slots=True)
class TurnTally:
    """How many turns started and how each ended: the books that must balance."""

    started: int = 0
    by_status: Counter[str] = field(default_factory=Counter)
    by_outcome: Counter[str] = field(default_factory=Counter)

    @property
    def balanced(self) -> bool:
        """Whether every started turn has exactly one end."""
        return self.started == sum(self.by_status.values()) == sum(self.by_outcome.values())

    def count(self, sample: TurnSample) -> Self:
        """Counts one turn."""
        self.started += 1
        self.by_status[sample.status.value] += 1
        self.by_outcome[sample.outcome] += 1
        return self

    def to_dict(self) -> dict[str, Any]:
        """For the report: every status, also those that did not happen."""
        return {
            "attempted": self.started,
            **{status.value: self.by_status.get(status.value, 0) for status in Status},
            "by_outcome": dict(sorted(self.by_outcome.items())),
        }


def tally_of(samples: Iterable[TurnSample]) -> TurnTally:
    """Counts these turns by how they ended."""
    tally = TurnTally()
    for sample in samples:
        tally.count(sample)
    return tally


@dataclass(slots=True)
class PhaseRecord:
    """What one phase left: its turns, and how the generator itself was."""

    index: int
    samples: list[TurnSample] = field(default_factory=list)
    #: Turns that began and have not ended yet, by id.
    open: dict[str, Begin] = field(default_factory=dict)
    beats: list[Beat] = field(default_factory=list)
    #: Workers that said they have finished the phase.
    ended: set[int] = field(default_factory=set)
    #: Turns that began, by profile and tenant: the other side of the books.
    begun: Counter[tuple[str, str]] = field(default_factory=Counter)
    #: Ends without a beginning, or a second end of the same turn.
    unmatched_ends: int = 0
    #: Turns without an end although every worker said it had finished.
    lost: int = 0
    #: Set once the books are closed: what comes later (a generator that is ended says its last) is not booked again.
    closed: bool = False

    @property
    def started(self) -> int:
        """Turns that began."""
        return self.begun.total()

    def close(self, at_s: float, *, complete: bool = False) -> None:
        """Books whatever has no end as unfinished: the generator died or was ended under it.

        `complete`: it was not; every worker has finished, and no turn may be without an end.
        """
        self.lost = len(self.open) if complete else 0
        self.closed = True
        for begin in self.open.values():
            elapsed_us = max(0, int((at_s - begin.sent_s) * 1e6))
            cut = ClientResult(outcome="unfinished", service_us=elapsed_us, error="the generator ended first")
            self.samples.append(TurnSample.of(begin, cut, worker=-1, late_us=0))
        self.open.clear()


class SampleFile:
    """Follows `samples.jsonl`. One reader; the generator appends whole lines, a torn last one is read next time."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0
        self.phases: dict[int, PhaseRecord] = {}
        self.ready = False
        #: When each worker was last heard (monotonic seconds).
        self.heard: dict[int, float] = {}
        #: What the generator said besides samples: bounds reached, Locust's own figures.
        self.remarks: list[dict[str, Any]] = []

    def phase(self, index: int) -> PhaseRecord:
        """The record of a phase; made when it is first asked for."""
        return self.phases.setdefault(index, PhaseRecord(index))

    def poll(self) -> int:
        """Reads what is new; how many lines."""
        try:
            with self._path.open("rb") as file:
                file.seek(self._offset)
                data = file.read()
        except FileNotFoundError:
            return 0
        whole = data[: data.rfind(b"\n") + 1]
        self._offset += len(whole)
        lines = whole.decode(errors="replace").splitlines()
        for line in lines:
            self._take(line)
        return len(lines)

    def remarks_of(self, kind: str) -> list[dict[str, Any]]:
        """The remarks of one kind: `locust`, `bound`."""
        return [remark for remark in self.remarks if remark.get("t") == kind]

    def _take(self, line: str) -> None:
        record = parse_line(line)
        if isinstance(record, TurnSample | Begin) and self.phase(record.phase).closed:
            return
        if isinstance(record, TurnSample):
            phase = self.phase(record.phase)
            if phase.open.pop(record.id, None) is None:
                phase.unmatched_ends += 1
            phase.samples.append(record)
            self.heard[record.worker] = time.monotonic()
        elif isinstance(record, Begin):
            phase = self.phase(record.phase)
            phase.begun[record.profile, record.tenant] += 1
            phase.open[record.id] = record
        elif isinstance(record, Beat):
            self.phase(record.phase).beats.append(record)
            self.heard[record.worker] = time.monotonic()
        elif isinstance(record, dict):
            self._remark(record)

    def _remark(self, record: dict[str, Any]) -> None:
        if record.get("t") == "phase_end":
            self.phase(int(record["phase"])).ended.add(int(record["worker"]))
        elif record.get("t") == "ready":
            self.ready = True
        else:
            self.remarks.append(record)
