"""Latency histograms that merge exactly: HDR, microseconds, from 1 µs to 2 hours with three significant digits.

Three digits bound the error of a percentile at 0.1 %; two workers' histograms added together equal, bit for bit, the
histogram of all their samples.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Self

from hdrh.histogram import HdrHistogram

__all__ = ["LATENCY_PERCENTILES", "Histogram"]

_LOWEST_US = 1
_HIGHEST_US = 2 * 3600 * 1_000_000
_DIGITS = 3
LATENCY_PERCENTILES = (50.0, 90.0, 95.0, 99.0)


class Histogram:
    """Counts of durations. Not thread-safe: one owner at a time."""

    def __init__(self) -> None:
        self._hdr = HdrHistogram(_LOWEST_US, _HIGHEST_US, _DIGITS)

    @classmethod
    def of(cls, values_us: Iterable[int]) -> Self:
        """A histogram of these microseconds."""
        new = cls()
        for value in values_us:
            new.record(value)
        return new

    @classmethod
    def decode(cls, encoded: bytes) -> Self:
        """What `encode` gave."""
        new = cls()
        new._hdr.decode_and_add(encoded)
        return new

    def record(self, value_us: int) -> None:
        """Counts one duration; below 1 µs counts as 1 µs, above two hours as two hours."""
        self._hdr.record_value(min(_HIGHEST_US, max(_LOWEST_US, int(value_us))))

    def add(self, other: Histogram) -> None:
        """Adds another histogram's counts, exactly."""
        self._hdr.add(other._hdr)

    def encode(self) -> bytes:
        """The standard compressed form (base64 of V2 + zlib); equal counts give equal bytes."""
        encoded = self._hdr.encode()
        return encoded if isinstance(encoded, bytes) else str(encoded).encode()

    @property
    def count(self) -> int:
        """How many durations were recorded."""
        return int(self._hdr.get_total_count())

    @property
    def max_us(self) -> int:
        """The largest, 0 where there is none."""
        return int(self._hdr.get_max_value()) if self.count else 0

    def percentile_us(self, percentile: float) -> int | None:
        """The duration that `percentile` per cent do not exceed (nearest rank); None without samples."""
        if not self.count:
            return None
        # hdrhistogram 0.10 rounds the rank to the nearest, which for p90 of 16 samples takes the 14th instead of the
        # 15th and reads too low. Asking for the rank's own share gives that very rank.
        rank = max(1, math.ceil(round(percentile / 100 * self.count, 6)))
        return int(self._hdr.get_value_at_percentile(rank * 100 / self.count))

    def summary_ms(self) -> dict[str, float | int | None]:
        """p50, p90, p95, p99 and max in milliseconds, and the count."""
        values: dict[str, float | int | None] = {
            f"p{percentile:g}": _ms(self.percentile_us(percentile)) for percentile in LATENCY_PERCENTILES
        }
        return {**values, "max": _ms(self.max_us) if self.count else None, "count": self.count}


def _ms(value_us: int | None) -> float | None:
    return None if value_us is None else round(value_us / 1000, 3)
