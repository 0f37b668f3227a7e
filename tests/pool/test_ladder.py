"""The shutdown ladder: its rungs, its budget, its signals."""

from __future__ import annotations

import itertools
import random

import pytest

from agentao_gov.pool import Ladder, Rung, RungTimes

TIMES = RungTimes(lame_duck_s=2, drain_s=12, cancel_s=4, close_s=6, kill_s=1, budget_s=25)


def test_it_serves_until_the_first_signal() -> None:
    """Time alone moves nothing."""
    ladder = Ladder(TIMES)

    assert ladder.tick(1e9, busy=0, resident=0) == []
    assert ladder.rung is Rung.SERVING


def test_a_busy_service_takes_each_rung_for_its_time() -> None:
    """Nothing ends by itself: every rung lasts as long as it may, and the whole as long as the budget."""
    ladder = Ladder(TIMES)
    entered = {ladder.signal(0.0)[0]: 0.0}

    for tenth in range(1, 300):
        for rung in ladder.tick(tenth / 10, busy=1, resident=1):
            entered[rung] = tenth / 10

    assert entered == {
        Rung.LAME_DUCK: 0,
        Rung.DRAINING: 2,
        Rung.CANCELLING: 14,
        Rung.CLOSING: 18,
        Rung.KILLING: 24,
        Rung.GONE: 25,
    }


def test_an_empty_service_waits_for_load_balancers_alone() -> None:
    """After the lame duck nothing is left to wait for, and all rungs are still entered in their order."""
    ladder = Ladder(TIMES)
    ladder.signal(0.0)

    assert ladder.tick(1.9, busy=0, resident=0) == []
    assert ladder.tick(2.0, busy=0, resident=0) == [
        Rung.DRAINING,
        Rung.CANCELLING,
        Rung.CLOSING,
        Rung.KILLING,
        Rung.GONE,
    ]


def test_time_that_draining_did_not_need_goes_to_closing() -> None:
    """Turns ended after a second: closes have until the last rung must begin."""
    ladder = Ladder(TIMES)
    ladder.signal(0.0)
    ladder.tick(2.0, busy=1, resident=9)

    assert ladder.tick(3.0, busy=0, resident=9) == [Rung.CANCELLING, Rung.CLOSING]
    assert ladder.ends_at == 24.0


def test_each_further_signal_is_one_rung() -> None:
    """Whatever the time, and past the end nothing happens."""
    ladder = Ladder(TIMES)

    entered = [ladder.signal(0.1 * n) for n in range(8)]

    assert entered == [[rung] for rung in list(Rung)[1:]] + [[], []]


@pytest.mark.parametrize("seed", range(50))
def test_no_order_of_events_exceeds_the_budget_or_skips_a_rung(seed: int) -> None:
    """Random signals, loads and pauses: rungs come one by one, and all is over when the budget is."""
    pick = random.Random(seed)
    times = RungTimes(*[pick.uniform(0, 5) for _ in range(5)])
    ladder = Ladder(times)
    entered = ladder.signal(100.0)
    now = 100.0

    while now < 100 + times.total_s:
        now = min(now + pick.uniform(0, 1), 100 + times.total_s)
        if pick.random() < 0.05:
            entered += ladder.signal(now)
        entered += ladder.tick(now, busy=pick.randint(0, 1), resident=pick.randint(0, 1))
    entered += ladder.tick(now + 1e-6, busy=1, resident=1)

    assert ladder.rung is Rung.GONE
    assert all(after == before + 1 for before, after in itertools.pairwise(entered))
