"""The stores that the contract suite runs over."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from agentao_gov.budget import RedisStore, Store
from agentao_gov.clock import Clock
from tests.budget.stores import ALL, LASTING, OpenStore, opener
from tests.support.clock import FakeClock
from tests.support.redis_server import RedisServer, redis_server

__all__ = ["redis_server"]


@pytest.fixture(scope="session")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server that many tests share, each with a ledger of its own name."""
    shared = RedisServer(tmp_path_factory.mktemp("r"))
    yield shared.url
    shared.close()


@pytest.fixture
def redis_ledger(redis_url: str, tmp_path: Path) -> Callable[[Clock], RedisStore]:
    """Opens this test's own ledger on the shared server."""
    return lambda clock: RedisStore(redis_url, clock=clock, name=tmp_path.name)


@pytest.fixture(params=ALL)
def open_store(request: pytest.FixtureRequest, tmp_path: Path, clock: FakeClock) -> Iterator[OpenStore]:
    """Opens the ledger under test; closes what was opened."""
    opened: list[Store] = []
    open_one = opener(request, tmp_path, clock)

    def make() -> Store:
        opened.append(open_one())
        return opened[-1]

    yield make
    for store in opened:
        store.close()


@pytest.fixture
def store(open_store: OpenStore) -> Store:
    """One opening of the ledger under test."""
    return open_store()


@pytest.fixture(params=LASTING)
def place(request: pytest.FixtureRequest, tmp_path: Path) -> dict[str, str]:
    """Where workers of a test find their ledger."""
    if request.param == "sqlite":
        return {"store": str(tmp_path / "ledger.db"), "name": ""}
    return {"store": request.getfixturevalue("redis_url"), "name": tmp_path.name}
