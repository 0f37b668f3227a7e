"""Two reports side by side: the same plan on the same machine, or no comparison."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from hdrh.histogram import HdrHistogram
from pydantic import ValidationError

from agentao_gov.errors import ConfigError
from agentao_gov.loadtest.baseline import CONFIDENCE, RESAMPLES, Comparison, compare_percentile, differences
from agentao_gov.loadtest.document import SCHEMA, LoadTestReport

__all__ = ["check_comparable", "compare_reports", "read_report"]

_PLAN_KEYS = (
    "shape", "loop", "rate", "users", "duration_s", "arrivals", "mix", "workers", "api",
    "turns_per_session", "think_scale", "simulated", "model_pace_s", "replay", "faults", "victim",
)  # fmt: skip
_ENVIRONMENT_KEYS = ("python", "system", "machine", "cpus")
_MEASURES = (("turn", 50.0), ("turn", 95.0), ("turn", 99.0), ("first_token", 95.0))
#: Shares may differ by so many standard errors before they are called different.
_Z = 1.96


def compare_reports(
    baseline: Mapping[str, Any], current: Mapping[str, Any], *, allowance: float, force: bool
) -> tuple[tuple[Comparison, ...], dict[str, Any]]:
    """Percentiles by bootstrap and the answered share, and what goes into the report.

    A measure with too few samples for its percentile is left out when a lower one of the same series could be
    compared. Raises ConfigError when plan or environment differ and `force` is not set.
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
    """How plan and environment differ. Raises ConfigError when they do and `force` is not set."""
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
