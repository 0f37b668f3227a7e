"""Fixtures of the pool's tests."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.pool.bench import PoolBench
from tests.pool.scripted import ScriptedHosts


@pytest.fixture
def hosts() -> Iterator[ScriptedHosts]:
    """Scripted hosts; nothing they hold back is held back past the test."""
    made = ScriptedHosts()
    yield made
    made.release(*list(made.held), *list(made.gates))


MakePool = Callable[..., PoolBench]


@pytest.fixture
def make_pool(tmp_path: Path, hosts: ScriptedHosts) -> Iterator[MakePool]:
    """Makes pools over the scripted hosts, with the settings of `[pool]` as keywords."""
    made: list[PoolBench] = []

    def make(**settings: Any) -> PoolBench:
        bench = PoolBench(tmp_path, settings.pop("hosts", hosts), **settings)
        made.append(bench)
        return bench

    yield make
    hosts.release(*list(hosts.held), *list(hosts.gates))
    for bench in made:
        bench.close()
    assert hosts.twice == [], "two agents for one session"
