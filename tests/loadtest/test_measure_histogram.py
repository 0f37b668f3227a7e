"""Histograms are exact enough everywhere and merge without loss."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentao_gov.loadtest.measure import Histogram

HOUR_US = 3_600_000_000
durations = st.lists(st.integers(10, HOUR_US), min_size=1, max_size=60)


@settings(max_examples=60, deadline=None)
@given(durations, st.sampled_from([50.0, 90.0, 95.0, 99.0, 99.9]))
def test_percentiles_are_within_half_a_percent_from_10_us_to_an_hour(values: list[int], percentile: float) -> None:
    """Against nearest rank on the raw values."""
    histogram = Histogram.of(values)

    rank = max(1, -(-round(percentile * len(values), 6) // 100))
    exact = sorted(values)[int(rank) - 1]

    assert histogram.percentile_us(percentile) == pytest.approx(exact, rel=0.005)


@settings(max_examples=40, deadline=None)
@given(durations, durations)
def test_two_workers_histograms_merge_bit_for_bit(first: list[int], second: list[int]) -> None:
    """Merged and encoded they equal the histogram of all samples."""
    merged = Histogram.decode(Histogram.of(first).encode())

    merged.add(Histogram.decode(Histogram.of(second).encode()))

    assert merged.encode() == Histogram.of(first + second).encode()


def test_an_empty_histogram_knows_nothing() -> None:
    """None, not zero: a zero would pass every threshold."""
    assert Histogram().percentile_us(95) is None
    assert Histogram().summary_ms() == {"p50": None, "p90": None, "p95": None, "p99": None, "max": None, "count": 0}


def test_out_of_range_counts_at_the_edge() -> None:
    """Nothing that was recorded may vanish from the count."""
    histogram = Histogram.of([0, -5, 10 * HOUR_US])

    assert histogram.count == 3
    assert histogram.percentile_us(1) == 1


def test_order_does_not_matter() -> None:
    """Workers deliver in any order."""
    values = [random.Random(1).randrange(1, HOUR_US) for _ in range(500)]

    assert Histogram.of(values).encode() == Histogram.of(reversed(values)).encode()
