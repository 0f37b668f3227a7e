"""Is it worse than last time? Two reports of the same plan on the same machine, compared by bootstrap.

A plain "p95 more than 5 % above the baseline" fails 39 % of runs of the same build at 300 samples. Here a regression is
one whose bootstrap lower bound is above 1 *and* whose size is above the allowance.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hdrh.histogram import HdrHistogram
from pydantic import ValidationError

from agentao_gov.errors import ConfigError
from agentao_gov.loadtest.document import SCHEMA, LoadTestReport
from agentao_gov.loadtest.thresholds import samples_needed

RESAMPLES = 2_000
#: Of the interval. A regression needs its lower end above 1, so that chance is called one in 2.5 % per measure.
CONFIDENCE = 0.95
_ALPHA = (1 - CONFIDENCE) / 2
_PLAN_KEYS = (
    "shape", "loop", "rate", "users", "duration_s", "arrivals", "mix", "workers", "api",
    "turns_per_session", "think_scale", "simulated", "model_pace_s", "replay", "faults", "victim",
)  # fmt: skip
_ENVIRONMENT_KEYS = ("python", "system", "machine", "cpus")
_MEASURES = (("turn", 50.0), ("turn", 95.0), ("turn", 99.0), ("first_token", 95.0))
#: Shares may differ by so many standard errors before they are called different.
_Z = 1.96


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
    `name`: the measure's; `seed`: of the bootstrap.
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
    """Why two runs must not be compared: each of the `keys` that differs between `baseline` and `current`."""
    return [
        f"{key}: {baseline.get(key)!r} then, {current.get(key)!r} now"
        for key in keys
        if baseline.get(key) != current.get(key)
    ]


def compare_reports(
    baseline: Mapping[str, Any], current: Mapping[str, Any], *, allowance: float, force: bool
) -> tuple[tuple[Comparison, ...], dict[str, Any]]:
    """Compares the report `current` with `baseline`: percentiles by bootstrap, and the answered share.

    Returns the comparisons, and what goes into the report. A measure with too few samples for its percentile is left
    out when a lower one of the same series could be compared. `allowance`: the share by which a percentile may grow.
    Raises ConfigError when plan or environment differ and `force` is not set.
    """
    found = check_comparable(baseline, current, force=force)
    comparisons: list[Comparison] = []
    for series, percentile in _MEASURES:
        name = f"{series}_p{percentile:g}"
        before, after = (_values(report, series) for report in (baseline, current))
        comparison = compare_percentile(name, percentile, before, after, allowance=allowance)
        certified = any(c.name.startswith(series) and c.status != "inconclusive" for c in comparisons)
        if comparison.status != "inconclusive" or not certified:
            comparisons.append(comparison)
    comparisons.append(_answered(baseline, current))
    return tuple(comparisons), {
        "differences": found,
        "allowance": allowance,
        "confidence": CONFIDENCE,
        "resamples": RESAMPLES,
        "comparisons": [asdict(comparison) for comparison in comparisons],
        "baseline_started_at": baseline.get("started_at"),
    }


def check_comparable(baseline: Mapping[str, Any], current: Mapping[str, Any], *, force: bool) -> list[str]:
    """How plan and environment of the reports `baseline` and `current` differ.

    Raises ConfigError when they do and `force` is not set.
    """
    found = differences(baseline["plan"], current["plan"], _PLAN_KEYS)
    found += differences(baseline["environment"], current["environment"], _ENVIRONMENT_KEYS)
    if found and not force:
        raise ConfigError(
            f"The baseline is of another plan or machine: {'; '.join(found)}.",
            hint="Make a new baseline, or compare anyway with --force.",
        )
    return found


def read_report(path: Path) -> Mapping[str, Any]:
    """A `report.json`, or the one in a directory that `--report` made. Raises ConfigError for anything else."""
    path = path / "report.json" if path.is_dir() else path
    hint = "Take the report.json that --report wrote, or make a new one."
    try:
        data: Any = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}.", hint=hint) from None
    except ValueError as error:
        raise ConfigError(f"{path} is no JSON: {error}.", hint=hint) from None
    found = data.get("schema") if isinstance(data, dict) else None
    if found != SCHEMA:
        what = f"a report of {found!r}" if found else "no load-test report"
        raise ConfigError(f"{path} is {what}; this version reads {SCHEMA!r}.", hint=hint)
    try:
        LoadTestReport.model_validate(data)
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        where = ".".join(map(str, problem["loc"]))
        raise ConfigError(f"{path} is not a whole report: {where}: {problem['msg']}.", hint=hint) from None
    for series, encoded in data["histograms"].items():
        try:
            HdrHistogram.decode(encoded.encode())
        # The library has a class of its own for each way to be wrong, below none but Exception.
        except Exception as error:
            raise ConfigError(f"{path}: its histogram of {series} cannot be read: {error}.", hint=hint) from None
    return dict(data)


def _values(report: Mapping[str, Any], series: str) -> Sequence[float]:
    """A series' sample in milliseconds, sorted, from its histogram (0.1 % wide bins)."""
    encoded = (report.get("histograms") or {}).get(series)
    if not encoded:
        return ()
    values: list[float] = []
    for item in HdrHistogram.decode(encoded.encode()).get_recorded_iterator():
        values += [item.value_iterated_to / 1000] * int(item.count_at_value_iterated_to)
    return values


def _answered(baseline: Mapping[str, Any], current: Mapping[str, Any]) -> Comparison:
    """Unanswered turns per answered one must not grow beyond chance: a two-proportion z test, one-sided."""
    (n1, bad1), (n2, bad2) = (
        (r["turns"]["attempted"], r["turns"]["attempted"] - r["turns"]["answered"]) for r in (baseline, current)
    )
    if not n1 or not n2:
        return Comparison("unanswered", None, None, None, None, None, "inconclusive", "no turns")
    before, after = bad1 / n1, bad2 / n2
    pooled = (bad1 + bad2) / (n1 + n2)
    error = math.sqrt(pooled * (1 - pooled) * (1 / n1 + 1 / n2))
    worse = error > 0 and (after - before) / error > _Z
    status = "fail" if worse else "pass"
    if before == 0 and after > 0:
        said = f"{bad2} of {n2} turns unanswered, and none of {n1} in the baseline"
        return Comparison("unanswered", before, after, None, None, None, status, said)
    return Comparison("unanswered", before, after, after / before if before else 1.0, None, None, status)
