"""From raw samples to figures: latencies, rates, tokens, the generator's own honesty. Pure.

Turn latency counts from the intended start and holds every turn that was answered, timed out or never ended: the last
two as lower bounds, because leaving the slow ones out is how load tests lie. Refusals and errors are quick, so they
are kept out of latency and counted by the rates.
"""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Self

from hdrh.histogram import HdrHistogram

from agentao_gov.loadtest.record import CAPACITY_OUTCOMES, UNSENT, Beat, Status, TurnSample, TurnTally, tally_of
from agentao_gov.loadtest.thresholds import CONFIDENCE, SortedSample, Threshold, chance_of, samples_needed

_LOWEST_US = 1
_HIGHEST_US = 2 * 3600 * 1_000_000
_DIGITS = 3
LATENCY_PERCENTILES = (50.0, 90.0, 95.0, 99.0)
_SLOW = (Status.ANSWERED, Status.TIMED_OUT, Status.UNFINISHED)
#: The generator may be late by so much, or by a twentieth of what it measures, before its numbers mean nothing.
_LATE_P50_US, _LATE_P99_US, _LATE_SHARE = 2_000, 10_000, 0.05
_JUDGED_MIN = 20
_OFFERED_MIN = 0.99
_BUCKETS_MAX = 120
_COUNTED_MIN = 25


class Histogram:
    """Counts of durations, HDR, from 1 µs to 2 hours. Not thread-safe: one owner at a time.

    Three significant digits bound the error of a percentile at 0.1 %; two workers' histograms added together equal, bit
    for bit, the histogram of all their samples.
    """

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
        """Reads a histogram back from what `encode` gave."""
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


@dataclass(slots=True)
class Figures:
    """What a set of turns comes to."""

    tally: TurnTally
    #: Sorted, milliseconds.
    distributions: dict[str, SortedSample]
    histograms: dict[str, Histogram]
    duration_s: float
    prompt_tokens: int = 0
    completion_tokens: int = 0
    llm_calls: int = 0
    refused: int = 0
    #: Answered before the load ended, and of these the turns that met every latency objective.
    good: int = 0
    answered_in_time: int = 0

    @property
    def tokens(self) -> int:
        """Prompt and completion."""
        return self.prompt_tokens + self.completion_tokens

    @property
    def rates(self) -> dict[str, float | None]:
        """Shares of all attempts, and per second; None without an attempt."""
        n = self.tally.started
        answered = self.tally.by_status.get("answered", 0)
        wrong = n - answered - self.refused
        return {
            "error_rate": wrong / n if n else None,
            "rejection_rate": self.refused / n if n else None,
            "answered_rate": answered / n if n else None,
            "turns_per_s": self.answered_in_time / self.duration_s if n and self.duration_s else None,
            "tokens_per_s": self.tokens / self.duration_s if n and self.duration_s else None,
            "goodput_per_s": self.good / self.duration_s if n and self.duration_s else None,
        }


def measure(samples: Sequence[TurnSample], duration_s: float, objectives: Iterable[Threshold] = ()) -> Figures:
    """The figures of these turns.

    Args:
        samples: the turns.
        duration_s: length of the load, for rates.
        objectives: their latency limits decide what counts as good.
    """
    latency = (t for t in objectives if t.op.startswith("<"))
    limits = [(t.series, t.limit) for t in latency if t.series is not None and t.series in ("turn", "first_token")]
    columns: dict[str, list[int]] = {
        "turn": [],
        "service": [],
        "first_token": [],
        "queue": [],
        "gap": [],
        "session": [],
    }
    figures = Figures(tally_of(samples), {}, {}, duration_s)
    for sample in samples:
        _count(figures, sample, columns, limits)
    columns["session"] = _session_times(samples)
    censored = sum(sample.status in (Status.TIMED_OUT, Status.UNFINISHED) for sample in samples)
    for name, values in columns.items():
        values.sort()
        figures.distributions[name] = SortedSample(
            tuple(value / 1000 for value in values), censored if name == "turn" else 0
        )
        figures.histograms[name] = Histogram.of(values)
    return figures


def _count(
    figures: Figures, sample: TurnSample, columns: dict[str, list[int]], limits: list[tuple[str, float]]
) -> None:
    figures.prompt_tokens += sample.prompt_tokens
    figures.completion_tokens += sample.completion_tokens
    figures.llm_calls += sample.llm_calls
    if sample.status in _SLOW:
        columns["turn"].append(sample.latency_us)
        columns["service"].append(sample.service_us)
    if sample.queue_us is not None:
        columns["queue"].append(sample.queue_us)
    if sample.gap_mean_us is not None:
        columns["gap"].append(sample.gap_mean_us)
    if sample.status is Status.ANSWERED:
        # The first text of a turn that failed later helped nobody.
        if sample.first_token_us is not None:
            columns["first_token"].append(sample.first_token_us)
        in_time = sample.ended_s <= figures.duration_s
        seen = {"turn": sample.latency_us / 1000, "first_token": (sample.first_token_us or 0) / 1000}
        figures.answered_in_time += in_time
        figures.good += in_time and all(seen[series] <= limit for series, limit in limits)
    elif sample.outcome in CAPACITY_OUTCOMES:
        figures.refused += 1


def _session_times(samples: Iterable[TurnSample]) -> list[int]:
    """Microseconds from the first intended start of each session to its last end."""
    spans: dict[str, tuple[float, float]] = {}
    for sample in samples:
        start, end = spans.get(sample.session, (sample.intended_s, sample.ended_s))
        spans[sample.session] = (min(start, sample.intended_s), max(end, sample.ended_s))
    return [int((end - start) * 1e6) for start, end in spans.values()]


def grouped(samples: Iterable[TurnSample], key: Callable[[TurnSample], str]) -> dict[str, list[TurnSample]]:
    """The turns by profile, tenant or whatever `key` says, in the order of the names."""
    groups: dict[str, list[TurnSample]] = defaultdict(list)
    for sample in samples:
        groups[key(sample)].append(sample)
    return dict(sorted(groups.items()))


@dataclass(slots=True)
class GeneratorFigures:
    """Whether the generator kept its own schedule."""

    late_ms: dict[str, float | int | None]
    lag_ms: dict[str, float | int | None]
    cpu_max: float
    planned: int | None
    offered: int
    #: Why its numbers must not be trusted; None: they may.
    bound: str | None = None
    #: Turns that it could not send: their failure is none of the service's.
    unsent: int = 0
    #: What lies beyond its limit, with turns so few that it says nothing of the percentile.
    by_chance: tuple[str, ...] = ()
    limits_ms: dict[str, float] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """The report's `generator`."""
        return {
            "lateness_ms": self.late_ms,
            "loop_lag_ms": self.lag_ms,
            "cpu_max": self.cpu_max,
            "planned": self.planned,
            "offered": self.offered,
            "limits_ms": self.limits_ms,
            "bound": self.bound,
            "unsent": self.unsent,
            "by_chance": list(self.by_chance),
        }


def generator_figures(
    samples: Sequence[TurnSample], beats: Sequence[Beat], *, planned: int | None, complete: bool
) -> GeneratorFigures:
    """How late the generator was, and whether that spoils the run.

    Args:
        samples: its turns.
        beats: what it said of itself.
        planned: turns of the schedule; None in a closed loop, which has none.
        complete: whether the schedule was meant to be played to its end (not interrupted, not bounded).
    """
    late = Histogram.of(sample.late_us for sample in samples)
    lag = Histogram.of(lag for beat in beats for lag in beat.lags_us)
    took = Histogram.of(sample.service_us for sample in samples if sample.status in _SLOW)
    figures = GeneratorFigures(
        late_ms=late.summary_ms(),
        lag_ms=lag.summary_ms(),
        cpu_max=max((beat.cpu_ratio for beat in beats), default=0.0),
        planned=planned,
        offered=len(samples),
    )
    for percentile, floor_us in ((50.0, _LATE_P50_US), (99.0, _LATE_P99_US)):
        limit_us = max(floor_us, _LATE_SHARE * (took.percentile_us(percentile) or 0))
        figures.limits_ms[f"p{percentile:g}"] = round(limit_us / 1000, 3)
        sent_us, read_us = (seen.percentile_us(percentile) or 0 for seen in (late, lag))
        chance = _by_chance(samples, limit_us, percentile)
        if sent_us > limit_us and chance:
            figures.by_chance += (f"p{percentile:g}",)
        if figures.bound is None and sent_us > limit_us and late.count >= _JUDGED_MIN and not chance:
            figures.bound = _was_late("its turns started", sent_us, percentile, limit_us, figures.cpu_max)
        # An answer is timed when the event loop comes to read it; sessions that never pause are late in no other way.
        if figures.bound is None and read_us > limit_us and lag.count >= samples_needed(percentile):
            figures.bound = _was_late("it read answers", read_us, percentile, limit_us, figures.cpu_max)
    unsent = [sample for sample in samples if sample.outcome == UNSENT]
    figures.unsent = len(unsent)
    if unsent:
        figures.bound = f"it could not send {len(unsent)} of {len(samples)} turns: {unsent[0].error}"
    if complete and planned is not None and figures.offered < _OFFERED_MIN * planned:
        figures.bound = f"it offered {figures.offered} of {planned} planned turns"
    return figures


def _was_late(what: str, value_us: float, percentile: float, limit_us: float, cpu: float) -> str:
    return (
        f"{what} late by {value_us / 1000:.1f} ms at p{percentile:g}, "
        f"more than {limit_us / 1000:.1f} ms (CPU {cpu:.0%} of a core)"
    )


def _by_chance(samples: Sequence[TurnSample], limit_us: float, percentile: float) -> bool:
    """Whether so few turns were late that it says nothing of the percentile: of 60 turns the last one is the p99."""
    if len(samples) >= samples_needed(percentile):
        return False
    over = sum(sample.late_us > limit_us for sample in samples)
    return chance_of(over, len(samples), 1 - percentile / 100) >= 1 - CONFIDENCE


def relieved(samples: Sequence[TurnSample], generator: GeneratorFigures) -> list[TurnSample]:
    """The turns without what a late generator may have added: its lateness, and its loop's lag at start and end."""
    lag_us = 2 * int(1000 * (generator.lag_ms.get("p99") or 0))
    return [
        replace(
            sample,
            latency_us=max(0, sample.latency_us - sample.late_us - lag_us),
            first_token_us=None if sample.first_token_us is None else max(0, sample.first_token_us - lag_us),
        )
        for sample in samples
    ]


def timeline(samples: Sequence[TurnSample], duration_s: float) -> list[dict[str, Any]]:
    """Equal stretches of time: what started, what was answered, what was not, and the latency of those that started."""
    if not samples:
        return []
    width_s = max(0.5, duration_s / _BUCKETS_MAX)
    buckets: dict[int, list[TurnSample]] = defaultdict(list)
    answered: dict[int, int] = defaultdict(int)
    for sample in samples:
        buckets[int(sample.intended_s / width_s)].append(sample)
        if sample.status is Status.ANSWERED:
            answered[int(sample.ended_s / width_s)] += 1
    rows = []
    for index in range(max(max(buckets), max(answered, default=0)) + 1):
        inside = buckets.get(index, [])
        slow = SortedSample(tuple(sorted(s.latency_us / 1000 for s in inside if s.status in _SLOW)))
        rows.append(
            {
                "at_s": round(index * width_s, 3),
                "started_per_s": round(len(inside) / width_s, 3),
                "answered_per_s": round(answered[index] / width_s, 3),
                "failed": sum(s.status is not Status.ANSWERED for s in inside),
                "p50_ms": slow.percentile(50),
                "p95_ms": slow.percentile(95),
                "max_ms": slow.percentile(99.999),
            }
        )
    return rows


def steady_rate(samples: Iterable[TurnSample], start_s: float, end_s: float) -> float:
    """Answered turns per second within a window.

    Ends are counted where there are enough of them. With few, a turn that crosses the window's edge counts for the
    part inside: one turn more or less is 20 % of a probe with one session. With many that would be wrong, because a
    queue that is still filling makes the first turns shorter than those that follow.
    """
    answered = [s for s in samples if s.status is Status.ANSWERED and s.service_us > 0]
    ended = sum(start_s <= sample.ended_s < end_s for sample in answered)
    if ended >= _COUNTED_MIN:
        return ended / (end_s - start_s)
    parts = (
        max(0.0, min(end_s, sample.ended_s) - max(start_s, sample.sent_s)) / (sample.service_us / 1e6)
        for sample in answered
    )
    return sum(parts) / (end_s - start_s)


def sustained_cpu(beats: Iterable[Beat], start_s: float, end_s: float) -> tuple[float, float] | None:
    """Of one core, what the busiest of the generator's processes used within the window, and what it waited for.

    The medians of its beats: a burst of a quarter second, when sessions start, holds nobody up. None: none was heard.
    """
    by_worker: dict[int, list[Beat]] = defaultdict(list)
    for beat in beats:
        if start_s <= beat.at_s < end_s:
            by_worker[beat.worker].append(beat)
    return max(
        (
            (statistics.median(beat.cpu_ratio for beat in own), statistics.median(beat.wait_ratio for beat in own))
            for own in by_worker.values()
        ),
        key=sum,
        default=None,
    )
