"""The two clocks everything runs on, injected so that tests can turn the hands."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Protocol

__all__ = ["SYSTEM_CLOCK", "Clock", "Deadline", "SystemClock"]


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
        """The deadline `seconds` from now."""
        return cls(clock.monotonic() + seconds, clock)

    @classmethod
    def never(cls, clock: Clock = SYSTEM_CLOCK) -> Deadline:
        """A deadline that does not come."""
        return cls(float("inf"), clock)

    def remaining_s(self) -> float:
        """Seconds left, never below zero."""
        return max(0.0, self.at - self.clock.monotonic())

    @property
    def passed(self) -> bool:
        """Whether the point has been reached."""
        return self.clock.monotonic() >= self.at

    def earlier(self, other: Deadline) -> Deadline:
        """The nearer of two deadlines on the same clock."""
        return self if self.at <= other.at else other
