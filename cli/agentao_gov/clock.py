"""The two clocks everything runs on, injected so that tests can turn the hands, and what is counted by them."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from typing import Protocol


class Clock(Protocol):
    """Where time comes from. Durations use `monotonic()`, calendars use `time()`; never mix them."""

    def monotonic(self) -> float:
        """Seconds since an arbitrary point; never steps back."""
        ...

    def time(self) -> float:
        """Seconds since the Unix epoch, UTC; may step."""
        ...


class SystemClock:
    """The machine's clocks."""

    def monotonic(self) -> float:
        return time.monotonic()

    def time(self) -> float:
        return time.time()


SYSTEM_CLOCK = SystemClock()


@dataclass(frozen=True, slots=True)
class Deadline:
    """A point on a monotonic clock. Made once at the entrance and passed down; waits get what remains."""

    at: float
    clock: Clock = SYSTEM_CLOCK

    @classmethod
    def after(cls, seconds: float, clock: Clock = SYSTEM_CLOCK) -> Deadline:
        """The deadline `seconds` from now on `clock`."""
        return cls(clock.monotonic() + seconds, clock)

    @classmethod
    def never(cls, clock: Clock = SYSTEM_CLOCK) -> Deadline:
        """A deadline on `clock` that does not come."""
        return cls(float("inf"), clock)

    def remaining_s(self) -> float:
        """Seconds left, never below zero."""
        return max(0.0, self.at - self.clock.monotonic())

    @property
    def passed(self) -> bool:
        """Whether the point has been reached."""
        return self.clock.monotonic() >= self.at

    def earlier(self, other: Deadline) -> Deadline:
        """The nearer of this deadline and `other`, which is on the same clock."""
        return self if self.at <= other.at else other


class Allowance:
    """So many in each period, such as records in a log; counts what is beyond. Thread-safe."""

    def __init__(self, most: int, period_s: float, clock: Clock = SYSTEM_CLOCK) -> None:
        self._most = most
        self._period_s = period_s
        self._clock = clock
        self._lock = threading.Lock()
        # All below under `_lock`.
        self._since = clock.monotonic()
        self._count = 0

    def admit(self) -> tuple[int, bool]:
        """How many were dropped in the period that has just ended, and whether this one may pass."""
        now = self._clock.monotonic()
        with self._lock:
            dropped = 0
            if now - self._since >= self._period_s:
                dropped, self._since, self._count = max(0, self._count - self._most), now, 0
            self._count += 1
            return dropped, self._count <= self._most
