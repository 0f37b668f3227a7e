"""Thresholds are read with their units, and none passes without samples."""

from __future__ import annotations

import pytest

from agentao_gov.errors import ConfigError
from agentao_gov.loadtest.thresholds import (
    DEFAULTS,
    Observation,
    SortedSample,
    evaluate,
    parse_threshold,
    samples_needed,
)


@pytest.mark.parametrize(
    ("text", "limit", "unit"),
    [
        ("turn_p95<2s", 2000, "ms"),
        ("turn_p99.9 <= 300ms", 300, "ms"),
        ("first_token_p50<1.5m", 90_000, "ms"),
        ("queue_p99<2", 2000, "ms"),
        ("error_rate<1%", 0.01, "ratio"),
        ("answered_rate >= 0.99", 0.99, "ratio"),
        ("turns_per_s>20", 20, "per_s"),
        ("tokens_per_s>1_000", 1000, "per_s"),
        ("memory_peak<512MiB", 512 * 1024**2, "bytes"),
        ("memory_peak<2GB", 2e9, "bytes"),
        ("memory_slope<10KiB", 10 * 1024, "bytes_per_turn"),
        ("fds_leaked<=0", 0, "count"),
        ("orphans<=0", 0, "count"),
        ("isolation_p95<1.5x", 1.5, "factor"),
        ("budget_overshoot<=20k", 20_000, "tokens"),
    ],
)
def test_a_threshold_is_read_in_its_unit(text: str, limit: float, unit: str) -> None:
    """Durations become milliseconds, shares become shares of one, sizes become bytes."""
    threshold = parse_threshold(text)

    assert threshold.limit == pytest.approx(limit)
    assert threshold.unit == unit


@pytest.mark.parametrize(
    "text",
    ["", "turn_p95", "turn_p95=2s", "turn_p95<2parsecs", "nothing<1", "turn_p0<1s", "error_rate<5s", "turn_p95<-1s",
     "turn_p95<2s; rm", "memory_peak<5%", "turn_p95<1.2.3s"],
)  # fmt: skip
def test_what_is_no_threshold_is_a_configuration_error(text: str) -> None:
    """Exit code 3, with what there is."""
    with pytest.raises(ConfigError) as caught:
        parse_threshold(text)

    assert caught.value.exit_code == 3


@pytest.mark.parametrize(
    ("text", "position"),
    [("turn_p95", 9), ("<2s", 1), ("turn_p95 = 2s", 10), ("turn_p95<-2s", 10), ("turn_p95<2s and", 13),
     ("turn_p95 < 2parsecs", 12)],
)  # fmt: skip
def test_a_syntax_error_says_where(text: str, position: int) -> None:
    """Counted from 1, as editors do."""
    with pytest.raises(ConfigError, match=rf"at position {position}\b"):
        parse_threshold(text)


@pytest.mark.parametrize(("percentile", "count"), [(50, 5), (90, 29), (95, 59), (99, 299), (99.9, 2995)])
def test_samples_needed_for_95_percent_confidence(percentile: float, count: int) -> None:
    """The published figures for p95, p99 and p99.9."""
    assert samples_needed(percentile) == count


def seen(values: list[float], **others: float | None) -> Observation:
    return Observation({"turn": SortedSample(tuple(sorted(values)))}, others)


@pytest.mark.parametrize(
    ("count", "value", "status"), [(0, 1, "inconclusive"), (58, 1, "inconclusive"), (59, 1, "pass"), (59, 3000, "fail")]
)
def test_a_percentile_needs_its_samples(count: int, value: float, status: str) -> None:
    """58 samples certify no p95, however good they look."""
    result = evaluate(parse_threshold("turn_p95<2s"), seen([value] * count))

    assert result.status == status


def test_a_sure_failure_needs_no_full_sample() -> None:
    """Ten of ten turns over the limit are no accident."""
    result = evaluate(parse_threshold("turn_p95<2s"), seen([3000.0] * 10))

    assert result.status == "fail"


def test_one_slow_turn_in_ten_is_no_sure_failure() -> None:
    """It happens by chance in 40 % of runs whose p95 holds."""
    result = evaluate(parse_threshold("turn_p95<2s"), seen([1.0] * 9 + [3000.0]))

    assert result.status == "inconclusive"


@pytest.mark.parametrize("name", ["error_rate", "memory_peak", "fds_leaked", "budget_overshoot", "turns_per_s"])
def test_a_measure_that_was_not_taken_is_inconclusive(name: str) -> None:
    """Neither absent nor None nor NaN is below a limit."""
    threshold = parse_threshold(f"{name}<1")

    for values in ({}, {name: None}, {name: float("nan")}):
        assert evaluate(threshold, Observation({}, values)).status == "inconclusive"


def test_a_zero_limit_holds_at_zero() -> None:
    """`fds_leaked<=0` is how people write it."""
    threshold = parse_threshold("fds_leaked<=0")

    assert evaluate(threshold, Observation({}, {"fds_leaked": 0})).status == "pass"
    assert evaluate(threshold, Observation({}, {"fds_leaked": 1})).status == "fail"


def test_defaults_can_be_read() -> None:
    """Every tier has some."""
    assert set(DEFAULTS) == {"interactive", "background", "batch"}
    assert all(parse_threshold(text) for texts in DEFAULTS.values() for text in texts)
