"""The ledger's core, lived through by the million steps."""

from __future__ import annotations

import pytest

from tests.budget.simulation import Life


@pytest.mark.parametrize("seed", range(4))
def test_every_rule_holds_after_every_step(seed: int) -> None:
    """Limits, balances, journal and queue, over random reservations, endings, crashes, grants and clocks."""
    life = Life(seed)

    for _ in range(2_500):
        life.step()
    life.quiesce()

    assert min(life.outcomes.values()) > 10, "every kind of answer has to occur"
    assert set(life.outcomes) == {"Reservation", "Refused", "Waiting"}


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_a_million_steps_keep_every_rule() -> None:
    """From two hundred seeds, each ending in quiescence."""
    steps = 0
    for seed in range(1_000, 1_200):
        life = Life(seed)
        for _ in range(5_000):
            life.step()
        life.quiesce()
        steps += life.steps

    assert steps == 1_000_000
