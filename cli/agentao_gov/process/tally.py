"""How many child processes had to be killed because they did not leave by themselves: `orphans_killed_total`."""

from __future__ import annotations

import threading

__all__ = ["ORPHANS_KILLED", "Tally"]


class Tally:
    """A count that only grows. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._total = 0

    def add(self, number: int) -> None:
        """Counts some more."""
        with self._lock:
            self._total += number

    @property
    def total(self) -> int:
        """All so far, in this process."""
        with self._lock:
            return self._total


#: This process's count: fed by the sweep at start, by trees killed after a close, by what wardens had to end.
ORPHANS_KILLED = Tally()
