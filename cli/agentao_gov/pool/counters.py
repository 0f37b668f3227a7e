"""What the core has counted since the start, and how long turns have lasted lately."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field

__all__ = ["Counters"]


@dataclass(slots=True)
class Counters:
    """Owned by `PoolCore`; read under the shell's lock."""

    grants: int = 0
    openings: int = 0
    opening_failures: int = 0
    evictions: Counter[str] = field(default_factory=Counter)
    refusals: Counter[str] = field(default_factory=Counter)
    ghost_hits: int = 0
    abandoned: int = 0
    leaks: int = 0
    #: Moving average of a lease's length; one second until a turn has been seen.
    turn_s: float = 1.0

    def turn_lasted(self, seconds: float) -> None:
        """Folds one lease into the average; a twentieth, so that a single long turn does not frighten clients away."""
        self.turn_s += (seconds - self.turn_s) / 20

    def retry_after_s(self, waiting: int, places: int) -> float:
        """When a place is likely: the time the present queue needs, at least a second, at most a minute."""
        return float(min(60, max(1, math.ceil(self.turn_s * (waiting + 1) / max(1, places)))))
