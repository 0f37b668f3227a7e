"""A regression is called one when it is one, and hardly ever when it is not."""

from __future__ import annotations

import random

import pytest

from agentao_gov.loadtest.compare import _answered, compare_percentile, differences


def latencies(rng: random.Random, count: int, factor: float = 1.0) -> list[float]:
    return sorted(factor * 100 * rng.lognormvariate(0, 0.5) for _ in range(count))


@pytest.mark.parametrize("count", [300, 1000])
def test_the_same_build_is_hardly_ever_a_regression(count: int) -> None:
    """A naive gate fails 39 % (300) and 21 % (1,000) of A/A runs; this one at most 4 of 50."""
    rng = random.Random(count)

    failed = sum(
        compare_percentile("p95", 95, latencies(rng, count), latencies(rng, count), allowance=0.05, seed=n).status
        == "fail"
        for n in range(50)
    )

    assert failed <= 4


def test_a_quarter_slower_is_found() -> None:
    """+25 % at 1,000 samples is found in at least 38 of 40 runs."""
    rng = random.Random(2)

    found = sum(
        compare_percentile("p95", 95, latencies(rng, 1000), latencies(rng, 1000, 1.25), allowance=0.05, seed=n).status
        == "fail"
        for n in range(40)
    )

    assert found >= 38


def test_a_small_sure_change_is_allowed() -> None:
    """3 % slower beyond chance is within an allowance of 5 %."""
    before = [100.0] * 500
    after = [103.0] * 500

    assert compare_percentile("p50", 50, before, after, allowance=0.05).status == "pass"
    assert compare_percentile("p50", 50, before, after, allowance=0.02).status == "fail"


def test_too_few_samples_say_nothing() -> None:
    """Twenty turns do not compare p95."""
    result = compare_percentile("p95", 95, [1.0] * 20, [9.0] * 500, allowance=0.05)

    assert result.status == "inconclusive"
    assert "59" in result.reason


def test_the_fast_bootstrap_is_the_real_one() -> None:
    """Drawing the order statistic gives the interval that resampling and sorting gives."""
    rng = random.Random(5)
    before, after = latencies(rng, 200), latencies(rng, 200, 1.2)
    quick = compare_percentile("p90", 90, before, after, allowance=0.05)

    ratios = sorted(
        sorted(rng.choices(after, k=200))[179] / sorted(rng.choices(before, k=200))[179] for _ in range(1500)
    )

    assert quick.low == pytest.approx(ratios[37], rel=0.06)
    assert quick.high == pytest.approx(ratios[1462], rel=0.06)


def test_differences_name_key_and_values() -> None:
    """Why two runs do not compare is said in full."""
    assert differences({"rate": 5}, {"rate": 6}, ["rate", "shape"]) == ["rate: 5 then, 6 now"]


@pytest.mark.parametrize(
    ("before", "after", "status", "ratio", "reason"),
    [
        (0, 0, "pass", 1.0, ""),
        (0, 1, "pass", None, "1 of 100 turns unanswered, and none of 100 in the baseline"),
        (0, 30, "fail", None, "30 of 100 turns unanswered, and none of 100 in the baseline"),
        (10, 40, "fail", 4.0, ""),
    ],
)
def test_unanswered_turns_are_told_as_what_they_are(
    before: int, after: int, status: str, ratio: float | None, reason: str
) -> None:
    """Where there were none before no ratio is made up."""
    reports = ({"turns": {"attempted": 100, "answered": 100 - bad}} for bad in (before, after))

    found = _answered(*reports)

    assert (found.status, found.ratio, found.reason) == (status, ratio, reason)
