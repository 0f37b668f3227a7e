"""Tells a leak from a warm-up: robust slopes with confidence, and plateaus over waves.

Memory is not given back after a session closes (the allocator keeps its arenas), so "back to the start" is the wrong
question. What matters is whether it still grows, turn by turn, once it is warm. Pure.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

#: One-sided 97.5 % of the normal distribution: the interval is a 95 % one.
_Z = 1.96
#: More points cost quadratic time and say no more: neighbours half a second apart move together.
_POINTS_MAX = 60
_POINTS_MIN = 8
#: What a service may still take, once, after its first turns: caches that fill, a heap of its own for one more worker
#: thread. Measured on clean builds, runs of 60 to 120 s: up to 3 MiB beyond doubt, whatever the number of turns.
WARM_UP_BYTES = 4 * 1024**2
#: 50 KiB a turn are 7.3 MiB in so many turns, and so can be told from a warm-up.
_TURNS_MIN = 150
#: Something that most sessions leave behind needs no steps to be seen.
_SURELY = 0.5
#: Residuals nearly as smooth as a line leave no information; beyond this the factor would only be noise.
_RHO_MAX = 0.9
#: What a service opens at its first turns and keeps (measured: 1 descriptor in-process; 7 and 4 processes where session
#: processes are forked from a spare one; worker threads up to `max_busy`). A soak needs the first two not.
_OPENED_ONCE = {"fds": 12, "children": 6, "threads": 64}
#: Worker threads end after 20 idle seconds, longer than a rest, and a busier moment starts more of them: from wave to
#: wave they only count beyond what a pool may hold.
_KEPT = {"threads": 64}


@dataclass(frozen=True, slots=True)
class Slope:
    """Growth per unit of x, with its 95 % interval."""

    slope: float
    low: float
    high: float
    points: int
    #: The stretch of x it was seen over.
    span: float = 0.0

    @property
    def grows(self) -> bool:
        """Whether chance is no explanation."""
        return self.low > 0

    def beyond(self, allowance: float) -> float:
        """The part of the growth per unit that neither chance nor a growth of `allowance` in all explains."""
        return max(0.0, self.low - allowance / self.span) if self.span > 0 else 0.0


def theil_sen(points: Sequence[tuple[float, float]]) -> Slope | None:
    """The median of all pairwise slopes and Sen's interval (1968); None with fewer than three distinct x.

    Up to 29 % of the points may be wild without moving it: a garbage collection or a burst of sessions does not.
    Neighbouring looks at a process resemble each other, so that they count for fewer than they are: the interval is
    widened by what the residuals' lag-one correlation takes from them (Hamed and Rao 1998, first term).
    """
    slopes = sorted(
        (y2 - y1) / (x2 - x1) for i, (x1, y1) in enumerate(points) for x2, y2 in points[i + 1 :] if x2 != x1
    )
    if len(slopes) < 3:
        return None
    n = len(points)
    slope = statistics.median(slopes)
    spread = _Z * math.sqrt(n * (n - 1) * (2 * n + 5) / 18) * _widening([y - slope * x for x, y in points])
    low = max(0, math.floor((len(slopes) - spread) / 2))
    high = min(len(slopes) - 1, math.ceil((len(slopes) + spread) / 2))
    xs = [x for x, _ in points]
    return Slope(slope, slopes[low], slopes[high], n, max(xs) - min(xs))


def _widening(residuals: Sequence[float]) -> float:
    """The square root of how many looks count for one; 1 where neighbours tell nothing of each other."""
    middle = statistics.fmean(residuals)
    centred = [value - middle for value in residuals]
    power = sum(value * value for value in centred)
    if power <= 0:
        return 1.0
    along = sum(a * b for a, b in itertools.pairwise(centred)) / power
    rho = min(_RHO_MAX, max(0.0, along))
    return math.sqrt((1 + rho) / (1 - rho))


def memory_slope(points: Sequence[tuple[float, float]], *, warm_share: float = 0.4) -> Slope | None:
    """Bytes per turn after the warm-up, from (turns done, bytes) pairs in time order.

    The first `warm_share` of the *turns* is left out, and the growth must hold in both halves of what remains:
    a warm-up that has not quite ended slows down, a leak does not. Where it slows below the interval of the whole,
    the slope of the later half is given. None with too few turns to tell a leak from a warm-up.
    """
    if not points:
        return None
    first, last = points[0][0], points[-1][0]
    warm = [point for point in points if point[0] >= first + warm_share * (last - first)]
    if len(warm) < _POINTS_MIN or warm[-1][0] - warm[0][0] < _TURNS_MIN:
        return None
    whole = theil_sen(_thin(warm))
    later = theil_sen(_thin(warm[len(warm) // 2 :]))
    if whole is None or later is None or later.high >= whole.low:
        return whole
    # What happens once has happened within the whole stretch, not within its half.
    return replace(later, span=whole.span)


def _thin(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Takes the medians of equal groups, so that at most `_POINTS_MAX` points are left."""
    size = max(1, math.ceil(len(points) / _POINTS_MAX))
    groups = [points[i : i + size] for i in range(0, len(points), size)]
    return [(statistics.median(x for x, _ in group), statistics.median(y for _, y in group)) for group in groups]


@dataclass(frozen=True, slots=True)
class WaveLeak:
    """What a count (descriptors, children, threads) leaves behind from wave to wave."""

    #: The quiet level after each wave.
    floors: tuple[int, ...]
    #: Growth after the first wave, which pays for the warm-up; 0 where it is on a plateau.
    leaked: int


def wave_floors(samples: Sequence[tuple[float, int]], rests: Sequence[tuple[float, float]]) -> tuple[int, ...]:
    """The lowest value within each rest, from (time, value) pairs; rests without samples are left out."""
    floors = []
    for start_s, end_s in rests:
        inside = [value for at_s, value in samples if start_s <= at_s < end_s]
        if inside:
            floors.append(min(inside))
    return tuple(floors)


def wave_leak(floors: Sequence[int], *, sessions: int = 0, once: int = 4, kept: int = 0) -> WaveLeak:
    """A leak grows with most waves; a warm-up stops after the first one or two.

    With three floors or more, the growth counts where at least two of three steps after the first wave go up, and all
    of it is more than what may be `kept` without being lost; or where it is one for every other session.
    With two (one load between two rests) it counts only beyond what is opened `once` and kept, or a tenth of the
    `sessions` that were played, where that is more.
    """
    if len(floors) < 2:
        return WaveLeak(tuple(floors), 0)
    if len(floors) == 2:
        growth = floors[1] - floors[0]
        return WaveLeak(tuple(floors), growth if growth > max(once, 0.1 * sessions) else 0)
    # From four floors on, the second wave is warm-up too.
    settled = list(floors[1:] if len(floors) > 3 else floors)
    steps = [after - before for before, after in itertools.pairwise(settled)]
    rising = sum(step > 0 for step in steps)
    growth = floors[-1] - floors[0]
    leaked = settled[-1] - settled[0] if rising * 3 >= len(steps) * 2 and growth > kept else 0
    if sessions and growth > max(once, _SURELY * sessions):
        # A rest too short to be quiet hides the steps, but not that most sessions have left something.
        leaked = max(leaked, growth)
    return WaveLeak(tuple(floors), max(0, leaked))


#: Start and end in seconds of a stretch without load.
Rest = tuple[float, float]


@dataclass(frozen=True, slots=True)
class ServiceSample:
    """The service at one moment. None: it could not be seen."""

    at_s: float
    #: Turns ended so far.
    turns: int
    rss_bytes: int | None = None
    fds: int | None = None
    children: int | None = None
    threads: int | None = None
    #: Sessions at work, turns that wait, sessions in memory.
    busy: int | None = None
    queue: int | None = None
    resident: int | None = None


def leak_findings(
    looks: Sequence[ServiceSample],
    rests: Sequence[Rest],
    *,
    sessions: int,
    load_end_s: float,
    ttl_s: float | None = None,
) -> dict[str, Any]:
    """What a load left behind: memory a turn, descriptors, children and threads from rest to rest, time to idle.

    Args:
        looks: the service over time, in order.
        rests: stretches without load: before it, between a soak's waves, after it.
        sessions: how many were played.
        load_end_s: when the last turn had ended.
        ttl_s: the sessions' time to live, where it is short enough to be waited for.
    """
    # Not beyond the last turn: what an idle service gives back to the system is no part of what a turn takes.
    loaded = [look for look in looks if 0 <= look.at_s <= load_end_s]
    slope = memory_slope([(float(k.turns), float(k.rss_bytes)) for k in loaded if k.rss_bytes is not None])
    memory = None
    if slope is not None:
        memory = {**asdict(slope), "grows": slope.grows, "beyond_warm_up": slope.beyond(WARM_UP_BYTES)}
    found: dict[str, Any] = {
        "memory_bytes_per_turn": memory,
        "rests_s": list(rests),
    }
    for name, once in _OPENED_ONCE.items():
        values = [(look.at_s, int(value)) for look in looks if (value := getattr(look, name)) is not None]
        floors = wave_floors(values, rests)
        leak = wave_leak(floors, sessions=sessions, once=once, kept=_KEPT.get(name, 0))
        # In a soak the first wave pays for what is opened once; in a single load nothing does.
        allowed = _KEPT.get(name, 0) if len(floors) > 2 else max(once, sessions // 10)
        leaked = leak.leaked if len(floors) >= 2 else None
        found[name] = {"floors": list(leak.floors), "leaked": leaked, "kept": allowed}
    found["idle"] = _idle(looks, load_end_s, ttl_s)
    return found


def _idle(looks: Sequence[ServiceSample], load_end_s: float, ttl_s: float | None) -> dict[str, Any]:
    """How long after the last turn nothing was at work any more; infinite when it never was, None when unseen."""
    after = [look for look in looks if look.at_s >= load_end_s and look.busy is not None]
    still = [look for look in after if look.busy or look.queue or (ttl_s is not None and look.resident)]
    # What was idle once and is at work again has not come to rest.
    restless_until = still[-1].at_s if still else load_end_s
    quiet = next((look.at_s for look in after if look.at_s > restless_until), None)
    return {
        "after_s": None
        if not after
        else math.inf
        if quiet is None
        else round(max(0.0, restless_until - load_end_s), 2),
        "resident_left": after[-1].resident if after else None,
        "ttl_s": ttl_s,
    }
