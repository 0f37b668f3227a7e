"""The stores that the contract suite runs over."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from agentao_gov.budget import MemoryStore, SqliteStore, Store
from tests.support.clock import FakeClock

OpenStore = Callable[[], Store]


@pytest.fixture(params=["memory", "sqlite", pytest.param("redis", marks=pytest.mark.redis)])
def open_store(request: pytest.FixtureRequest, tmp_path: Path, clock: FakeClock) -> Iterator[OpenStore]:
    """Opens the ledger under test; each call is one more owner of the same ledger (memory: the same one)."""
    opened: list[Store] = []
    memory = MemoryStore(clock)

    def make() -> Store:
        if request.param == "memory":
            return memory
        if request.param == "sqlite":
            opened.append(SqliteStore(tmp_path / "ledger.db", clock))
        else:
            opened.append(request.getfixturevalue("redis_ledger")(clock))
        return opened[-1]

    yield make
    for store in opened:
        store.close()


@pytest.fixture
def store(open_store: OpenStore) -> Store:
    """One opening of the ledger under test."""
    return open_store()
