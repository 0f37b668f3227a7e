"""Schedules offer what their shape says, in order, and the same again from the same seed."""

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentao_gov.loadtest.schedule import SHAPES, Process, Segment, Shape, expected_count, level_at, schedule, segments

shapes = st.sampled_from(SHAPES)
rates = st.floats(0.1, 200)
durations = st.floats(1, 100)


@settings(max_examples=60, deadline=None)
@given(shapes, rates, durations, st.integers(0, 2**32), st.sampled_from(["poisson", "constant"]))
def test_a_schedule_is_ascending_and_within_its_duration(
    shape: Shape, rate: float, duration: float, seed: int, process: Process
) -> None:
    """Whatever the shape, arrivals come in order and none lies outside."""
    parts = segments(shape, rate, duration)

    times = list(itertools.islice(schedule(parts, seed=seed, process=process), 5_000))

    assert all(a <= b for a, b in itertools.pairwise(times))
    assert all(0 <= t <= duration * (1 + 1e-9) for t in times)


@settings(max_examples=40, deadline=None)
@given(shapes, rates, durations)
def test_a_constant_process_offers_its_integral(shape: Shape, rate: float, duration: float) -> None:
    """Equal steps of the cumulative rate: the count is the integral, give or take one."""
    parts = segments(shape, rate, duration)

    count = sum(1 for _ in schedule(parts, seed=0, process="constant"))

    assert abs(count - expected_count(parts)) <= 1


@settings(max_examples=30, deadline=None)
@given(shapes, st.integers(0, 1000))
def test_a_poisson_process_offers_its_integral_within_chance(shape: Shape, seed: int) -> None:
    """Counts of a Poisson process lie within five standard deviations of the integral."""
    parts = segments(shape, 50, 40)

    count = sum(1 for _ in schedule(parts, seed=seed))

    assert abs(count - expected_count(parts)) < 5 * math.sqrt(expected_count(parts))


def test_the_same_seed_gives_the_same_schedule_and_another_seed_another() -> None:
    """Workers unfold one schedule independently, so it may depend on nothing but the seed."""
    parts = segments("ramp", 20, 30)

    first, again, other = (list(schedule(parts, seed=seed)) for seed in (1, 1, 2))

    assert first == again
    assert first != other


def test_poisson_gaps_are_exponential() -> None:
    """The gaps' standard deviation equals their mean, as open arrivals of independent people have it."""
    times = list(schedule(segments("constant", 100, 200), seed=3))

    gaps = [b - a for a, b in itertools.pairwise(times)]
    mean = sum(gaps) / len(gaps)
    deviation = math.sqrt(sum((gap - mean) ** 2 for gap in gaps) / len(gaps))

    assert deviation == pytest.approx(mean, rel=0.05)


def test_a_ramp_puts_arrivals_where_the_rate_is() -> None:
    """Half-way up a ramp a quarter of its arrivals have come."""
    parts = (Segment(0, 100, 0, 100),)

    times = list(schedule(parts, seed=0, process="constant"))

    assert sum(t < 50 for t in times) / len(times) == pytest.approx(0.25, abs=0.001)


def test_a_spike_is_five_times_as_high_and_goes_away() -> None:
    """The middle fifth is the spike."""
    parts = segments("spike", 10, 100)

    assert [level_at(parts, at) for at in (10, 50, 90)] == [10, 50, 10]


def test_a_soak_rests_between_its_waves() -> None:
    """Without rests nobody sees what stays behind."""
    parts = segments("soak", 10, 600)

    rests = [part for part in parts if part.level_start == 0]

    assert len(rests) == 6
    assert all(part.duration_s == pytest.approx(20) for part in rests)


@pytest.mark.parametrize(("level", "duration"), [(0, 10), (-1, 10), (1, 0), (math.inf, 1), (math.nan, 1)])
def test_a_load_of_nothing_is_refused(level: float, duration: float) -> None:
    """An impossible load is an error, not an empty and therefore green run."""
    with pytest.raises(ValueError, match="positive"):
        segments("constant", level, duration)
