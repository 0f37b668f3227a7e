"""A leak is told from a warm-up and from noise."""

from __future__ import annotations

import math
import random

import pytest

from agentao_gov.loadtest.leaks import WARM_UP_BYTES, memory_slope, theil_sen, wave_floors, wave_leak

KIB = 1024.0
MIB = 1024 * KIB


def memory(
    rng: random.Random, *, per_turn: float, turns: int = 1200, warm_up: float = 20 * MIB
) -> list[tuple[float, float]]:
    """Half-second looks at a service: a warm-up that saturates, sawtooth garbage, noise, and the leak."""
    points = []
    for look in range(240):
        done = turns * look / 240
        warm = warm_up * (1 - 2.7 ** (-done / (turns / 20)))
        garbage = rng.random() * 1.5 * MIB
        points.append((done, 80 * MIB + warm + garbage + per_turn * done))
    return points


def test_50_kib_a_turn_is_found() -> None:
    """In every one of 50 runs of 120 s at 10 turns/s, and most of its size is beyond any warm-up."""
    rng = random.Random(1)

    slopes = [memory_slope(memory(rng, per_turn=50 * KIB)) for _ in range(50)]

    assert all(slope is not None and slope.beyond(WARM_UP_BYTES) > 30 * KIB for slope in slopes)


def test_a_long_warm_up_is_no_leak() -> None:
    """What slows down towards a plateau is judged by where it slows to."""
    points = [(float(n), 100 * MIB * (1 - 0.985**n)) for n in range(400)]

    slope = memory_slope(points)

    assert slope is not None
    assert slope.beyond(WARM_UP_BYTES) < 16 * KIB


def test_too_few_turns_tell_no_leak_from_a_warm_up() -> None:
    """100 turns after the warm-up are too few, whatever they grow by; the threshold is inconclusive."""
    assert memory_slope([(float(n), 50 * KIB * n) for n in range(160)]) is None


def test_smooth_noise_widens_the_interval() -> None:
    """Looks that resemble their neighbours count for fewer: a drift that comes back is no growth beyond doubt."""
    drift = [(float(n), 10 * MIB * math.sin(n / 60)) for n in range(400)]

    slope = memory_slope(drift)

    assert slope is not None
    assert not slope.grows


def test_a_wild_quarter_does_not_move_the_slope() -> None:
    """Theil-Sen holds against 29 % outliers; least squares would not."""
    rng = random.Random(3)
    points = [(float(n), 2.0 * n + (1e6 if rng.random() < 0.2 else 0.0)) for n in range(60)]

    slope = theil_sen(points)

    assert slope is not None
    assert slope.slope == pytest.approx(2.0, rel=0.05)


@pytest.mark.parametrize("points", [[], [(0.0, 1.0)], [(1.0, 1.0)] * 50])
def test_no_growth_can_be_told_from_nothing(points: list[tuple[float, float]]) -> None:
    """None, which makes the threshold inconclusive."""
    assert memory_slope(points) is None


@pytest.mark.parametrize(
    ("floors", "leaked"),
    [
        ((40, 50, 60, 70, 80, 90), 40),
        ((20, 44, 44, 44, 44, 44), 0),
        ((20, 40, 45, 45, 45, 45), 0),
        ((20, 44, 43, 45, 44, 44), 0),
        ((20, 44, 44, 50, 44, 44), 0),
        ((20, 80), 60),
        ((20, 23), 0),
        ((20, 20), 0),
        ((20,), 0),
        ((), 0),
    ],
)
def test_a_count_leaks_when_it_grows_with_the_waves(floors: tuple[int, ...], leaked: int) -> None:
    """A warm-up happens once; a leak happens every time."""
    assert wave_leak(floors).leaked == leaked


def test_what_may_be_kept_is_no_leak_from_wave_to_wave() -> None:
    """Idle worker threads outlive a rest; a thread a session does not stay below what a pool may hold."""
    assert wave_leak((6, 16, 17, 18, 19, 20, 25), kept=64).leaked == 0
    assert wave_leak((6, 40, 70, 100, 130, 160), kept=64).leaked == 120


def test_what_is_opened_once_is_no_leak_of_a_single_load() -> None:
    """Nine descriptors after 100 sessions are a warm-up, one for each of 20 sessions is a leak."""
    assert wave_leak((20, 29), sessions=100).leaked == 0
    assert wave_leak((20, 41), sessions=20).leaked == 21


def test_floors_are_taken_within_the_rests() -> None:
    """And a rest nobody looked at is left out."""
    samples = [(0.0, 5), (1.0, 9), (2.0, 7), (3.0, 6), (9.0, 4)]

    assert wave_floors(samples, [(0.0, 1.0), (1.5, 4.0), (5.0, 6.0)]) == (5, 6)
