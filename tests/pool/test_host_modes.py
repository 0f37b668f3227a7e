"""Every hosting mode keeps the same promises: real agentao on the simulated model."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import pytest

from agentao_gov.budget import MemoryStore, StoreSettings, TokenLedger
from agentao_gov.clock import SYSTEM_CLOCK, Deadline
from agentao_gov.governor import Governor
from agentao_gov.governor.report import Mode
from agentao_gov.pool import GovernorHosts, HostFactory
from agentao_gov.simulator import Simulator
from agentao_gov.worker.factory import SubprocessFactory, SubprocessSettings
from tests.pool.bench import PoolBench, a_model
from tests.pool.contract import HostingContract
from tests.support.simulator import simulator, simulator_process
from tests.support.zygote import shared_zygote

__all__ = ["simulator", "simulator_process"]

#: The zygote's start falls into the first test that needs it.
pytestmark = pytest.mark.timeout(90)


def a_governor_factory(root: Path) -> HostFactory:
    """Sessions in this process; `root` is where a mode may keep what it needs."""
    del root
    ledger = TokenLedger(MemoryStore(SYSTEM_CLOCK, StoreSettings()), SYSTEM_CLOCK, heartbeat_s=None)
    return GovernorHosts(Governor(ledger=ledger))


def a_subprocess_factory(root: Path) -> HostFactory:
    """Sessions in processes of their own."""
    ledger = TokenLedger(MemoryStore(SYSTEM_CLOCK, StoreSettings()), SYSTEM_CLOCK, heartbeat_s=None)
    settings = SubprocessSettings(ready=0)
    factory = SubprocessFactory(ledger=ledger, settings=settings, homes=root / "homes", zygote=shared_zygote())
    factory.prepare(Deadline.after(60))
    return factory


#: How to make each mode's factory; a new mode is added here.
FACTORIES = {"fresh": a_governor_factory, "in-process": a_governor_factory, "subprocess": a_subprocess_factory}


@pytest.fixture(scope="module", autouse=True)
def zygote_ends_with_the_module() -> Iterator[None]:
    yield
    shared_zygote().end()


class TestHostingModes(HostingContract):
    """The contract, over every mode there is."""

    @pytest.fixture(params=sorted(FACTORIES))
    def pool(self, request: pytest.FixtureRequest, tmp_path: Path, simulator: Simulator) -> Iterator[PoolBench]:
        """A pool in one mode."""
        mode: Mode = request.param
        assert mode in get_args(Mode)
        bench = PoolBench(tmp_path, FACTORIES[mode](tmp_path), mode=mode, model=a_model(simulator.base_url))
        yield bench
        bench.close()
