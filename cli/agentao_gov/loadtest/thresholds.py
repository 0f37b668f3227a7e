"""Thresholds: `NAME OP VALUE` with units, and whether a run has met them, failed them, or cannot say.

A percentile is certified with 95 % confidence only by enough samples (p95: 59, p99: 299, p99.9: 2,995). With fewer the
result is *inconclusive*, never a pass; it is a failure only where so many samples are over the limit that chance is no
excuse. Pure.
"""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from agentao_gov.errors import ConfigError

CONFIDENCE = 0.95
Unit = Literal["ms", "ratio", "factor", "per_s", "bytes", "bytes_per_turn", "count", "tokens"]
Status = Literal["pass", "fail", "inconclusive"]

_PERCENTILE = re.compile(r"^(turn|first_token|queue)_p(\d{1,2}(?:\.\d+)?)$")
_GRAMMAR = (
    ("a name", re.compile(r"[a-z][a-z0-9_.]*")),
    ("one of < <= > >=", re.compile(r"<=|>=|<|>")),
    ("a number", re.compile(r"[0-9][0-9_.]*")),
    ("a unit", re.compile(r"[A-Za-zµ%/]*")),
    ("nothing more", re.compile(r"$")),
)
_PLAIN: dict[str, Unit] = {
    "error_rate": "ratio",
    "rejection_rate": "ratio",
    "answered_rate": "ratio",
    "turns_per_s": "per_s",
    "tokens_per_s": "per_s",
    "memory_peak": "bytes",
    "memory_slope": "bytes_per_turn",
    "fds_leaked": "count",
    "processes_leaked": "count",
    "threads_abandoned": "count",
    "budget_overshoot": "tokens",
    # Beyond the contract's names.
    "threads_leaked": "count",
    "orphans": "count",
    "back_to_idle": "ms",
    "isolation_p95": "factor",
    "cost": "count",
}
_OPERATORS: dict[str, Callable[[float, float], bool]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
_DURATIONS_MS = {"us": 0.001, "µs": 0.001, "ms": 1.0, "s": 1000.0, "m": 60_000.0, "h": 3_600_000.0, "": 1000.0}
_SIZES = {"": 1, "b": 1, "kb": 1e3, "mb": 1e6, "gb": 1e9, "kib": 1024, "mib": 1024**2, "gib": 1024**3}
_COUNTS = {"": 1.0, "k": 1e3, "m": 1e6}

#: Where neither the configuration nor the command line has any: per tier of the strictest profile in the mix.
DEFAULTS: dict[str, tuple[str, ...]] = {
    "interactive": ("turn_p95<30s", "first_token_p95<5s", "error_rate<1%", "answered_rate>=99%"),
    "background": ("turn_p95<10m", "error_rate<1%", "answered_rate>=99%"),
    "batch": ("error_rate<2%", "answered_rate>=98%"),
}

#: What a soak is for: added to the tier's defaults. 16 KiB beyond the warm-up is three times what a clean build shows.
SOAK_DEFAULTS = ("memory_slope<16KiB", "fds_leaked<=0", "processes_leaked<=0", "threads_leaked<=0", "back_to_idle<10s")


@dataclass(frozen=True, slots=True)
class Threshold:
    """A condition that fails the run. `limit` is in the measure's unit: milliseconds, a share of 1, bytes, a count."""

    expression: str
    name: str
    op: str
    limit: float
    unit: Unit
    #: Which distribution and percentile, for `turn_p95` and its like.
    series: str | None = None
    percentile: float | None = None

    def holds(self, value: float) -> bool:
        """Whether the value, in the threshold's unit, meets it."""
        return _OPERATORS[self.op](value, self.limit)


def parse_threshold(text: str) -> Threshold:
    """Reads `turn_p95<2s`. Raises ConfigError that says what is wrong, where, and what there is."""
    (name, _), (op, _), (number, at), (unit_text, _) = _parts(text)
    percentile = _PERCENTILE.match(name)
    unit: Unit | None = "ms" if percentile else _PLAIN.get(name)
    if unit is None:
        known = ", ".join(("turn_pNN", "first_token_pNN", "queue_pNN", *_PLAIN))
        raise ConfigError(f"{text!r}: there is no measure {name!r}.", hint=f"There are: {known}.")
    if percentile and not 0 < float(percentile[2]) < 100:
        raise ConfigError(f"{text!r}: a percentile lies between 0 and 100.")
    try:
        limit = float(number.replace("_", "")) * _factor(unit, unit_text)
    except (KeyError, ValueError):
        raise ConfigError(
            f"{text!r}: {number}{unit_text} at position {at} is not a value of {name}.", hint=_UNIT_HINTS[unit]
        ) from None
    return Threshold(
        expression="".join(text.split()),
        name=name,
        op=op,
        limit=limit,
        unit=unit,
        series=percentile[1] if percentile else None,
        percentile=float(percentile[2]) if percentile else None,
    )


def _parts(text: str) -> list[tuple[str, int]]:
    """Name, operator, number and unit, each with its position from 1. Raises ConfigError at the first that fails."""
    parts, at = [], 0
    for what, pattern in _GRAMMAR:
        at += len(text[at:]) - len(text[at:].lstrip())
        found = pattern.match(text, at)
        if found is None:
            rest = f"not {text[at:]!r}" if at < len(text) else "not its end"
            raise ConfigError(
                f"{text!r} is not a threshold: {what} is expected at position {at + 1}, {rest}.",
                hint="Write NAME OP VALUE, such as 'turn_p95<2s'.",
            )
        parts.append((found[0], at + 1))
        at = found.end()
    return parts[:-1]


_UNIT_HINTS: dict[Unit, str] = {
    "ms": "Write a duration: 300ms, 2s, 1.5m; a plain number is seconds.",
    "ratio": "Write a share: 1% or 0.01.",
    "factor": "Write a factor: 1.5 or 1.5x.",
    "per_s": "Write a number per second: 20, 20/s.",
    "bytes": "Write a size: 512MiB, 2GB.",
    "bytes_per_turn": "Write a size per turn: 10KiB.",
    "count": "Write a number.",
    "tokens": "Write tokens: 0, 20k.",
}


def _factor(unit: Unit, text: str) -> float:
    if unit == "ms":
        return _DURATIONS_MS[text]
    if unit == "ratio":
        return {"%": 0.01, "": 1.0}[text]
    if unit == "factor":
        return {"": 1.0, "x": 1.0}[text]
    if unit == "per_s":
        return {"": 1.0, "/s": 1.0, "k": 1e3, "k/s": 1e3}[text]
    if unit in ("bytes", "bytes_per_turn"):
        return _SIZES[text.lower().removesuffix("/turn")]
    return _COUNTS[text.lower()]


def samples_needed(percentile: float) -> int:
    """The least sample size whose maximum exceeds the percentile with 95 % confidence: p95 59, p99 299, p99.9 2,995.

    The chance that n samples all lie below the q-quantile is q^n (order statistics; Wilks 1941).
    """
    # Rounded first: 1 - 0.999 in binary would ask for one more or one less.
    return math.ceil(math.log(1 - CONFIDENCE) / math.log(round(percentile / 100, 9)))


@dataclass(frozen=True, slots=True)
class SortedSample:
    """A sorted sample in milliseconds. The last `censored` ones are lower bounds: those turns never ended."""

    values_ms: tuple[float, ...]
    censored: int = 0

    def percentile(self, percentile: float) -> float | None:
        """The value in milliseconds at the percentile's nearest rank; None without samples."""
        if not self.values_ms:
            return None
        return self.values_ms[max(0, math.ceil(round(percentile / 100 * len(self.values_ms), 6)) - 1)]


@dataclass(frozen=True, slots=True)
class Observation:
    """All that thresholds can look at."""

    #: `turn`, `first_token`, `queue`.
    distributions: Mapping[str, SortedSample]
    #: Other measures by name; None where there was nothing to measure.
    values: Mapping[str, float | None]


@dataclass(frozen=True, slots=True)
class ThresholdResult:
    """A threshold and what became of it. `observed` is in the threshold's unit."""

    threshold: Threshold
    observed: float | None
    status: Status
    samples: int
    reason: str = ""
    #: The failure stands even when everything the generator may have added is taken off.
    sure: bool = False


def evaluate(threshold: Threshold, seen: Observation) -> ThresholdResult:
    """Met, failed, or inconclusive with the reason."""
    if threshold.series is not None:
        return _evaluate_percentile(threshold, seen.distributions.get(threshold.series, SortedSample(())))
    value = seen.values.get(threshold.name)
    if value is None or math.isnan(value):
        return ThresholdResult(threshold, None, "inconclusive", 0, "nothing was measured")
    return ThresholdResult(threshold, value, "pass" if threshold.holds(value) else "fail", 1)


def _evaluate_percentile(threshold: Threshold, distribution: SortedSample) -> ThresholdResult:
    assert threshold.percentile is not None
    count = len(distribution.values_ms)
    observed = distribution.percentile(threshold.percentile)
    if observed is None:
        return ThresholdResult(threshold, None, "inconclusive", 0, "no samples")
    needed = samples_needed(threshold.percentile)
    holds = threshold.holds(observed)
    if count >= needed:
        return ThresholdResult(threshold, observed, "pass" if holds else "fail", count)
    if not holds and threshold.op.startswith("<"):
        over = sum(not threshold.holds(value) for value in distribution.values_ms)
        if chance_of(over, count, 1 - threshold.percentile / 100) < 1 - CONFIDENCE:
            return ThresholdResult(threshold, observed, "fail", count, f"{over} of {count} samples are over the limit")
    reason = f"{count} samples; p{threshold.percentile:g} needs {needed}"
    return ThresholdResult(threshold, observed, "inconclusive", count, reason)


def chance_of(over: int, count: int, chance: float) -> float:
    """P(X >= over) for a binomial X of `count` trials with this `chance`.

    How likely so many are over the limit although the percentile holds.
    """
    return sum(math.comb(count, k) * chance**k * (1 - chance) ** (count - k) for k in range(over, count + 1))
