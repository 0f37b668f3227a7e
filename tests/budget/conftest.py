"""The stores that the contract suite runs over."""

from __future__ import annotations

import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from agentao_gov.budget import RedisStore, Store
from agentao_gov.clock import Clock
from tests.budget.stores import ALL, LASTING, OpenStore, opener
from tests.support.clock import FakeClock


@pytest.fixture(scope="session")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A Redis or Valkey server of our own, on a socket in a private directory."""
    program = shutil.which("redis-server") or shutil.which("valkey-server")
    if program is None:
        pytest.skip("no redis-server or valkey-server here: `apt-get install redis-server` runs these tests too")
    # Not the test's own directory: a socket's path has to be short.
    directory = tmp_path_factory.mktemp("r")
    path = directory / "s"
    command = [program, "--port", "0", "--unixsocket", str(path), "--save", "", "--dir", str(directory)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        give_up = time.monotonic() + 15
        while True:
            with socket.socket(socket.AF_UNIX) as probe:
                if probe.connect_ex(str(path)) == 0:
                    break
            assert server.poll() is None, "the server ended"
            assert time.monotonic() < give_up, "the server does not listen"
            time.sleep(0.01)
        yield f"unix://{path}"
    finally:
        server.terminate()
        server.wait(10)


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
