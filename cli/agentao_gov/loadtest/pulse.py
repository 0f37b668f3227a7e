"""How much of a core the generator's process uses, and how much more it would use if other programs let it."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

__all__ = ["Pulse"]

_SCHEDSTAT = Path("/proc/self/schedstat")


class Pulse:
    """Shares of one core since the last look. Only for a process of one thread, such as gevent's."""

    def __init__(
        self,
        *,
        clock: Callable[[], float] = time.monotonic,
        cpu_clock: Callable[[], float] = time.process_time,
        schedstat: Path = _SCHEDSTAT,
    ) -> None:
        self._clock, self._cpu_clock, self._schedstat = clock, cpu_clock, schedstat
        self._at, self._cpu, self._waited = self._now()

    def look(self) -> tuple[float, float]:
        """What was used, and what was waited for: time in which it could have run but another program did."""
        at, cpu, waited = self._now()
        span_s = max(1e-6, at - self._at)
        used, lacked = (cpu - self._cpu) / span_s, (waited - self._waited) / span_s
        self._at, self._cpu, self._waited = at, cpu, waited
        return round(used, 3), round(lacked, 3)

    def _now(self) -> tuple[float, float, float]:
        return self._clock(), self._cpu_clock(), _waited_s(self._schedstat)


def _waited_s(schedstat: Path) -> float:
    """Seconds that the main thread stood in the kernel's run queue; 0 where the kernel does not count them."""
    try:
        handle = os.open(schedstat, os.O_RDONLY)
        try:
            return int(os.read(handle, 128).split()[1]) / 1e9
        finally:
            os.close(handle)
    except (OSError, ValueError, IndexError):
        return 0.0
