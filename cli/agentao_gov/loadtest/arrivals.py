"""When load arrives: shapes as piecewise-linear rates, and seeded schedules of intended start times.

Pure: no clock, no I/O. The same seed gives the same schedule on every machine, so that workers can each take a share
of one schedule and a run can be repeated.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

__all__ = ["PROCESSES", "SHAPES", "Process", "Segment", "Shape", "expected_count", "level_at", "schedule", "segments"]

Shape = Literal["constant", "ramp", "steps", "spike", "soak", "capacity"]
#: `poisson`: independent arrivals, what many users look like. `constant`: equal gaps, what a batch looks like.
Process = Literal["poisson", "constant"]
SHAPES: tuple[Shape, ...] = get_args(Shape)
PROCESSES: tuple[Process, ...] = get_args(Process)

_STEPS = 5
_SOAK_WAVES = 6
#: Share of a soak wave without load, in which memory shows what stays.
_SOAK_REST = 0.2
_SPIKE_FACTOR = 5.0


@dataclass(frozen=True, slots=True)
class Segment:
    """A stretch of time in which the level (turns per second, or sessions) goes linearly from one value to another."""

    start_s: float
    end_s: float
    level_start: float
    level_end: float

    @property
    def duration_s(self) -> float:
        """How long it lasts."""
        return self.end_s - self.start_s

    @property
    def area(self) -> float:
        """The integral of the level: expected arrivals, when the level is a rate."""
        return self.duration_s * (self.level_start + self.level_end) / 2

    def level(self, at_s: float) -> float:
        """The level at a time within the segment."""
        if self.duration_s <= 0:
            return self.level_end
        share = (at_s - self.start_s) / self.duration_s
        return self.level_start + share * (self.level_end - self.level_start)


def segments(shape: Shape, level: float, duration_s: float, *, rise_s: float = 0.0) -> tuple[Segment, ...]:
    """The shape as segments from 0 to `duration_s`.

    Args:
        shape: `capacity` is a search over constant loads, so each of its probes is `constant`.
        level: the peak: turns per second in an open loop, sessions in a closed one. A spike goes to five times that.
        duration_s: total length in seconds.
        rise_s: for `constant`, seconds to rise from nothing at the start.
    """
    if level <= 0 or duration_s <= 0 or not math.isfinite(level * duration_s):
        raise ValueError(f"a load needs a positive level and duration, not {level} for {duration_s} s")
    d = duration_s
    if shape == "ramp":
        return (Segment(0, 0.8 * d, 0, level), Segment(0.8 * d, d, level, level))
    if shape == "steps":
        bounds = [d * i / _STEPS for i in range(_STEPS + 1)]
        return tuple(Segment(bounds[i], bounds[i + 1], *[level * (i + 1) / _STEPS] * 2) for i in range(_STEPS))
    if shape == "spike":
        peak = level * _SPIKE_FACTOR
        return (
            Segment(0, 0.4 * d, level, level),
            Segment(0.4 * d, 0.6 * d, peak, peak),
            Segment(0.6 * d, d, *[level] * 2),
        )
    if shape == "soak":
        return tuple(_soak(level, d))
    rise_s = min(rise_s, d)
    if rise_s > 0:
        return (Segment(0, rise_s, 0, level), Segment(rise_s, d, level, level))
    return (Segment(0, d, level, level),)


def _soak(level: float, duration_s: float) -> Iterator[Segment]:
    wave_s = duration_s / _SOAK_WAVES
    for wave in range(_SOAK_WAVES):
        start_s, rest_s = wave * wave_s, (wave + 1 - _SOAK_REST) * wave_s
        yield Segment(start_s, rest_s, level, level)
        yield Segment(rest_s, (wave + 1) * wave_s, 0, 0)


def expected_count(parts: Sequence[Segment]) -> float:
    """How many arrivals a schedule of these rates has on average."""
    return sum(part.area for part in parts)


def level_at(parts: Sequence[Segment], at_s: float) -> float:
    """The planned level at a time; 0 outside."""
    for part in parts:
        if part.start_s <= at_s < part.end_s:
            return part.level(at_s)
    return 0.0


def schedule(parts: Sequence[Segment], *, seed: int, process: Process = "poisson") -> Iterator[float]:
    """Intended start times in seconds, ascending.

    A non-homogeneous Poisson process by inversion of the cumulative rate (Çinlar 1975): unit-rate arrivals on the
    integral of the rate, mapped back to time. `constant` takes the integers instead of exponential gaps, half a step
    in, so that both offer the same number of arrivals.
    """
    rng = random.Random(f"arrivals:{seed}")  # noqa: S311  a seeded schedule, not a secret
    passed = 0.0
    target = rng.expovariate(1.0) if process == "poisson" else 0.5
    for part in parts:
        while target < passed + part.area:
            yield part.start_s + _invert(part, target - passed)
            target += rng.expovariate(1.0) if process == "poisson" else 1.0
        passed += part.area


def _invert(part: Segment, area: float) -> float:
    """The time into the segment at which its integral reaches `area`."""
    slope = (part.level_end - part.level_start) / part.duration_s
    # The form of the quadratic's root that neither cancels nor divides by a slope near zero.
    root = math.sqrt(max(0.0, part.level_start**2 + 2 * slope * area))
    return min(part.duration_s, 2 * area / (part.level_start + root)) if area > 0 else 0.0
