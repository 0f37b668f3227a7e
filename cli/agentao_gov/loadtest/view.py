"""What a running load test shows, and how it is told to stop: the seams between the run and the terminal."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Protocol

from agentao_gov.loadtest.plan import Phase
from agentao_gov.loadtest.record import CAPACITY_OUTCOMES, PhaseRecord, Status, TurnSample
from agentao_gov.loadtest.schedule import level_at
from agentao_gov.loadtest.server_series import ServerRow
from agentao_gov.loadtest.thresholds import Observation, SortedSample, Threshold, evaluate

#: Sorting all of a long run's turns several times a second would be load of its own.
_RECENT = 2000
_RATE_S = 5.0


@dataclass(frozen=True, slots=True)
class LiveFigures:
    """A look at the run, several times a second."""

    label: str
    at_s: float
    duration_s: float
    started: int
    answered: int
    failed: int
    refused: int
    in_flight: int
    #: Planned level now, in turns per second or sessions.
    level: float
    level_unit: str
    answered_per_s: float
    #: Turn p50 and p95, first token p95; None without a turn.
    latency_ms: tuple[float | None, float | None, float | None]
    #: What can be told before the end: (expression, observed, unit, status).
    thresholds: tuple[tuple[str, float | None, str, str], ...]
    #: Of the service: its process tree's memory, processes below it, cores in use.
    memory_bytes: int | None
    processes: int | None
    cpu: float | None
    sessions: int | None
    lateness_p99_ms: float | None


class View(Protocol):
    """Where a run reports its progress. Called on the run's own thread."""

    def note(self, text: str) -> None:
        """Shows one line about a step."""
        ...

    def live(self, look: LiveFigures) -> None:
        """Shows the state of the load."""
        ...


class SilentView:
    """Shows nothing of a run."""

    def note(self, text: str) -> None:
        """Shows nothing."""

    def live(self, look: LiveFigures) -> None:
        """Shows nothing."""


class Stop:
    """Whether the run has to end, and by which signal. Set from a signal handler, read everywhere."""

    def __init__(self) -> None:
        self._event = threading.Event()
        #: The first signal, or the one that stands for it; None while nobody asked.
        self.signal: int | None = None
        #: Who asked, where it was no signal.
        self.by = ""

    def __call__(self) -> bool:
        return self._event.is_set()

    def wait(self, seconds: float) -> bool:
        """Waits, but not longer than until somebody asks; whether somebody did."""
        return self._event.wait(seconds)

    def set(self, signum: int, *, by: str = "") -> None:
        """Asks the run to end. The second time the process ends at once, as people expect of a second Ctrl-C.

        Args:
            signum: the signal, which makes the exit code.
            by: who asks, where it was no signal.
        """
        if self._event.is_set():
            raise KeyboardInterrupt
        self.signal, self.by = signum, by
        self._event.set()

    @contextmanager
    def on_signals(self) -> Iterator[Stop]:
        """Takes SIGINT and SIGTERM while the run lasts."""

        def handle(signum: int, _frame: FrameType | None) -> None:
            self.set(signum)

        before = {signum: signal.signal(signum, handle) for signum in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield self
        finally:
            for signum, handler in before.items():
                signal.signal(signum, handler)


def live_figures(
    phase: Phase, record: PhaseRecord, at_s: float, thresholds: Sequence[Threshold], rows: Sequence[ServerRow]
) -> LiveFigures:
    """The state of a running phase, with its latencies over the last 2,000 turns, and the service as last seen.

    Args:
        phase: what is played.
        record: its turns so far.
        at_s: seconds since its second 0.
        thresholds: shown as they stand.
        rows: the service's.
    """
    recent = record.samples[-_RECENT:]
    answered = sum(s.status is Status.ANSWERED for s in recent)
    refused = sum(s.outcome in CAPACITY_OUTCOMES for s in recent)
    scale = len(record.samples) / len(recent) if recent else 0.0
    seen = _observe(recent, answered, refused, rows)
    turn, first = seen.distributions["turn"], seen.distributions["first_token"]
    late = sorted(s.late_us for s in recent)
    row = rows[-1] if rows else None
    told = next((row for row in reversed(rows) if row.sessions), None)
    answered_now = sum(s.ended_s > at_s - _RATE_S and s.status is Status.ANSWERED for s in recent)
    return LiveFigures(
        label=phase.label,
        at_s=max(0.0, at_s),
        duration_s=phase.duration_s,
        started=record.started,
        answered=round(answered * scale),
        failed=len(record.samples) - round(answered * scale) - round(refused * scale),
        refused=round(refused * scale),
        in_flight=len(record.open),
        level=sum(level_at(stream.segments, at_s) for stream in phase.streams),
        level_unit="turns/s" if all(stream.loop == "open" for stream in phase.streams) else "sessions",
        answered_per_s=answered_now / max(1.0, min(_RATE_S, at_s)),
        latency_ms=(turn.percentile(50), turn.percentile(95), first.percentile(95)),
        thresholds=tuple(_stands(threshold, seen) for threshold in thresholds if _can_be_seen(threshold, seen)),
        memory_bytes=row.memory_bytes if row else None,
        processes=row.children if row else None,
        cpu=row.tree_cpu if row else None,
        sessions=told.resident if told else None,
        lateness_p99_ms=late[int(0.99 * (len(late) - 1))] / 1000 if late else None,
    )


def _observe(recent: Sequence[TurnSample], answered: int, refused: int, rows: Sequence[ServerRow]) -> Observation:
    slow = sorted(s.latency_us / 1000 for s in recent if s.status in (Status.ANSWERED, Status.TIMED_OUT))
    first = sorted(s.first_token_us / 1000 for s in recent if s.first_token_us is not None)
    ended = len(recent)
    values: dict[str, float | None] = {
        "error_rate": (ended - answered - refused) / ended if ended else None,
        "rejection_rate": refused / ended if ended else None,
        "answered_rate": answered / ended if ended else None,
        "memory_peak": max((row.memory_bytes for row in rows if row.memory_bytes is not None), default=None),
    }
    return Observation({"turn": SortedSample(tuple(slow)), "first_token": SortedSample(tuple(first))}, values)


def _can_be_seen(threshold: Threshold, seen: Observation) -> bool:
    """Leaks and orphans show at the end only."""
    return threshold.series in seen.distributions or threshold.name in seen.values


def _stands(threshold: Threshold, seen: Observation) -> tuple[str, float | None, str, str]:
    result = evaluate(threshold, seen)
    return threshold.expression, result.observed, threshold.unit, result.status
