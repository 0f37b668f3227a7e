"""What a running load test shows, and how it is told to stop: the seams between the run and the terminal."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Protocol

__all__ = ["Live", "SilentView", "Stop", "View"]


@dataclass(frozen=True, slots=True)
class Live:
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
        """One line about a step."""
        ...

    def live(self, look: Live) -> None:
        """The state of the load."""
        ...


class SilentView:
    """Shows nothing."""

    def note(self, text: str) -> None:
        """Nothing."""

    def live(self, look: Live) -> None:
        """Nothing."""


class Stop:
    """Whether the run has to end, and by which signal. Set from a signal handler, read everywhere."""

    def __init__(self) -> None:
        self._event = threading.Event()
        #: The first signal; None while nobody asked.
        self.signal: int | None = None

    def __call__(self) -> bool:
        return self._event.is_set()

    def wait(self, seconds: float) -> bool:
        """Waits, but not longer than until somebody asks; whether somebody did."""
        return self._event.wait(seconds)

    def set(self, signum: int) -> None:
        """Asks the run to end. The second time the process ends at once, as people expect of a second Ctrl-C."""
        if self._event.is_set():
            raise KeyboardInterrupt
        self.signal = signum
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
