"""The core under random callers, hosts and clocks: no rule broken, nothing left at the end."""

from __future__ import annotations

import multiprocessing
from collections import Counter
from concurrent.futures import ProcessPoolExecutor

import pytest

from agentao_gov.pool.core import PoolCore
from agentao_gov.pool.records import Group, SessionTable
from tests.pool.simulation import Simulation, Violation

#: What a simulation must have met to have proved something.
EXPECTED = (
    "grant", "cancelled", "leak", "close refused",
    "close ttl", "close lru", "close memory", "close drain", "close once", "close deleted", "close stale",
    "close broken", "close unstuck",
    "refused draining", "refused queue_full", "refused queue_timeout", "refused tenant_session_limit",
    "refused user_session_limit", "refused open_failed", "refused open_timeout", "refused open_hung", "refused stuck",
    "refused deleted", "refused store",
)  # fmt: skip


def run_seeds(seeds: range, steps: int) -> Counter[str]:
    """Runs one simulation per seed; a violation names its seed and step."""
    seen: Counter[str] = Counter()
    for seed in seeds:
        seen += Simulation(seed).run(steps)
    return seen


def test_no_rule_is_broken_in_a_hundred_thousand_steps() -> None:
    """Every rule after every step, quiescence at the end of each of 100 worlds, and every event met."""
    seen = run_seeds(range(10_000, 10_100), 1_000)

    assert [name for name in EXPECTED if not seen[name]] == []


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_no_rule_is_broken_in_two_million_steps() -> None:
    """2,000 worlds of 1,000 steps, on two processes."""
    chunks = [range(first, first + 100) for first in range(0, 2_000, 100)]

    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as processes:
        seen = sum(processes.map(run_seeds, chunks, [1_000] * len(chunks)), Counter[str]())

    assert [name for name in EXPECTED if not seen[name]] == []


def test_a_seed_replays_its_run() -> None:
    """The same seed is the same run: a failure's seed and step are enough to see it again."""
    first, second = Simulation(7), Simulation(7)

    assert first.run(500) == second.run(500)
    assert first.now == second.now
    assert first.core.counters == second.core.counters


@pytest.mark.parametrize(
    ("owner", "name", "broken"),
    [
        (SessionTable, "list_idle", lambda self, entry: None),
        (Group, "has_room", property(lambda self: True)),
        (PoolCore, "_make_room", lambda self, out: False),
        (PoolCore, "_is_free", lambda self, entry: False),
        (PoolCore, "_enqueue_first", lambda self, waiter, entry: self._enqueue(waiter, entry)),
        (PoolCore, "_head_changed", lambda self, entry, out: None),
        (PoolCore, "_refuse_all", lambda self, entry, reason, out: None),
    ],
)
def test_the_simulation_finds_a_broken_core(
    owner: type, name: str, broken: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Seven ways to break the core on purpose; a check that cannot fail would prove nothing."""
    monkeypatch.setattr(owner, name, broken)

    with pytest.raises((Violation, KeyError, LookupError, ValueError)):
        run_seeds(range(40), 500)
