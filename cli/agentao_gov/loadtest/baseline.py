"""Is it worse than last time? A bootstrap on both samples, because "5 % above the baseline" cries wolf.

A plain "p95 more than 5 % above" fails 39 % of runs of the same build at 300 samples. Here a regression is one whose
bootstrap lower bound is above 1 *and* whose size is above the allowance. Pure.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from agentao_gov.loadtest.thresholds import samples_needed

__all__ = ["CONFIDENCE", "RESAMPLES", "Comparison", "compare_percentile", "differences"]

RESAMPLES = 2_000
#: Of the interval. A regression needs its lower end above 1, so that chance is called one in 2.5 % per measure.
CONFIDENCE = 0.95
_ALPHA = (1 - CONFIDENCE) / 2


@dataclass(frozen=True, slots=True)
class Comparison:
    """One measure against its baseline. `ratio` above 1 is worse; `low` and `high` hold it with 95 %."""

    name: str
    baseline: float | None
    current: float | None
    ratio: float | None
    low: float | None
    high: float | None
    status: str
    reason: str = ""


def compare_percentile(
    name: str,
    percentile: float,
    baseline: Sequence[float],
    current: Sequence[float],
    *,
    allowance: float,
    seed: int = 0,
) -> Comparison:
    """Whether the percentile of `current` is worse than that of `baseline` by more than `allowance` (0.05: 5 %).

    Both are sorted samples. `pass`, `fail`, or `inconclusive` where either has too few samples for the percentile.
    """
    needed = samples_needed(percentile)
    if min(len(baseline), len(current)) < needed:
        reason = f"p{percentile:g} needs {needed} samples on both sides; there are {len(baseline)} and {len(current)}"
        before, after = _at(baseline, percentile), _at(current, percentile)
        return Comparison(name, before, after, None, None, None, "inconclusive", reason)
    rng = random.Random(f"bootstrap:{seed}:{name}")  # noqa: S311  repeatable, not secret
    ratios = sorted(
        _resampled(current, percentile, rng) / max(1e-9, _resampled(baseline, percentile, rng))
        for _ in range(RESAMPLES)
    )
    low = ratios[int(_ALPHA * RESAMPLES)]
    high = ratios[int((1 - _ALPHA) * RESAMPLES) - 1]
    before, after = _at(baseline, percentile), _at(current, percentile)
    assert before is not None
    assert after is not None
    ratio = after / max(1e-9, before)
    worse = low > 1 and ratio > 1 + allowance
    return Comparison(name, before, after, ratio, low, high, "fail" if worse else "pass")


def _resampled(values: Sequence[float], percentile: float, rng: random.Random) -> float:
    """The percentile of one bootstrap resample, drawn without resampling.

    The k-th smallest of n draws from the sample is its element at the k-th uniform order statistic, a Beta(k, n-k+1)
    (Efron 1979): the same distribution as sorting n draws, in constant time.
    """
    n = len(values)
    rank = max(1, math.ceil(round(percentile / 100 * n, 6)))
    return values[min(n - 1, int(n * rng.betavariate(rank, n - rank + 1)))]


def _at(values: Sequence[float], percentile: float) -> float | None:
    if not values:
        return None
    return values[max(0, math.ceil(round(percentile / 100 * len(values), 6)) - 1)]


def differences(baseline: Mapping[str, Any], current: Mapping[str, Any], keys: Sequence[str]) -> list[str]:
    """Why two runs must not be compared: each key whose value differs, with both values."""
    return [
        f"{key}: {baseline.get(key)!r} then, {current.get(key)!r} now"
        for key in keys
        if baseline.get(key) != current.get(key)
    ]
