"""Sessions in processes: one zygote and one ledger for all tests, a session of its own for each."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from agentao_gov.budget import MemoryStore, StoreSettings, TokenLedger
from agentao_gov.budget.reservation import Price
from agentao_gov.clock import SYSTEM_CLOCK, Deadline
from agentao_gov.process.oslimits import OsLimits
from agentao_gov.simulator import Simulator
from agentao_gov.worker.factory import SubprocessFactory, SubprocessSettings
from tests.support.zygote import shared_zygote
from tests.worker.sessions import Subprocesses


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The zygote's start falls into the first test that needs it: seconds, on a busy machine tens of them."""
    for item in items:
        if "subprocesses" in getattr(item, "fixturenames", ()) and item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(90))


@pytest.fixture(scope="session")
def ledger() -> Iterator[TokenLedger]:
    prices = {"simulated": Price(2_000_000, 8_000_000)}
    settings = StoreSettings(price=prices.get)
    ledger = TokenLedger(MemoryStore(SYSTEM_CLOCK), SYSTEM_CLOCK, settings=settings, heartbeat_s=None)
    yield ledger
    ledger.close()


@pytest.fixture(scope="session")
def make_factory(ledger: TokenLedger) -> Iterator[Callable[..., SubprocessFactory]]:
    """Makes factories that are shut down at the end."""
    made: list[SubprocessFactory] = []

    def make(*, own_zygote: bool = False, **settings: Any) -> SubprocessFactory:
        zygote = None if own_zygote else shared_zygote()
        made.append(SubprocessFactory(ledger=ledger, settings=SubprocessSettings(**settings), zygote=zygote))
        return made[-1]

    yield make
    for factory in made:
        factory.shutdown(Deadline.after(5))
    shared_zygote().end()


@pytest.fixture(scope="session")
def limited_factory(make_factory: Callable[..., SubprocessFactory]) -> SubprocessFactory:
    """The factory of most tests: limits low enough to be met, high enough to work."""
    limits = OsLimits(memory_bytes=160 << 20, processes=40, files=256, file_bytes=1 << 20)
    factory = make_factory(limits=limits, ready=1)
    factory.prepare(Deadline.after(60))
    return factory


@pytest.fixture
def subprocesses(
    simulator: Simulator, tmp_path: Path, limited_factory: SubprocessFactory, ledger: TokenLedger
) -> Iterator[Subprocesses]:
    made = Subprocesses(simulator, tmp_path, limited_factory, ledger)
    yield made
    made.close()
