"""A clock whose hands the test turns. Starts at a random large offset so that wall-clock use shows."""

from __future__ import annotations

import random
import threading


class FakeClock:
    """Both clocks of `agentao_gov.clock.Clock`; `advance` moves them together, `step_wall` only the calendar."""

    def __init__(self, *, wall: float = 1_790_000_000.0, seed: int | None = None) -> None:
        self._lock = threading.Lock()
        self._monotonic = random.Random(seed).uniform(1e5, 1e8)
        self._wall = wall

    def monotonic(self) -> float:
        with self._lock:
            return self._monotonic

    def time(self) -> float:
        with self._lock:
            return self._wall

    def advance(self, seconds: float) -> None:
        assert seconds >= 0
        with self._lock:
            self._monotonic += seconds
            self._wall += seconds

    def step_wall(self, seconds: float) -> None:
        """Steps the calendar, forward or back, as a clock correction would."""
        with self._lock:
            self._wall += seconds
