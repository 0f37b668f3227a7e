"""Sessions in processes: one zygote and one ledger for all tests, a session of its own for each."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from agentao_gov.budget import MemoryStore, StoreSettings, TokenLedger
from agentao_gov.budget.reservation import Price
from agentao_gov.budget.types import Balance, Scope, ScopeLimit
from agentao_gov.clock import SYSTEM_CLOCK, Deadline
from agentao_gov.config import ModelChoice
from agentao_gov.governor import Conversation, SessionKey, SessionSpec, TurnEvent, TurnReport, TurnRequest
from agentao_gov.process.oslimits import OsLimits
from agentao_gov.simulator import Simulator
from agentao_gov.worker.factory import SubprocessFactory, SubprocessSettings
from agentao_gov.worker.host import SubprocessHost
from tests.governor.harness import resolved
from tests.process import zoo
from tests.support.simulator import simulator, simulator_process
from tests.support.zygote import shared_zygote

__all__ = ["simulator", "simulator_process"]

_numbers = itertools.count(1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The zygote's start falls into the first test that needs it: seconds, on a busy machine tens of them."""
    for item in items:
        if "subprocesses" in getattr(item, "fixturenames", ()) and item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(90))


class Subprocesses:
    """Opens sessions in processes on the simulated model; closes what it opened."""

    def __init__(self, simulator: Simulator, root: Path, factory: SubprocessFactory, ledger: TokenLedger) -> None:
        self.simulator = simulator
        self.factory = factory
        self.ledger = ledger
        self.root = root
        self.opened: list[SubprocessHost] = []
        self.events: list[TurnEvent] = []

    def spec(self, **settings: Any) -> SessionSpec:
        """A session nobody else has, under a profile with these tables."""
        session = f"s{next(_numbers)}"
        choice = ModelChoice(
            kind="simulated",
            name="simulated",
            base_url=self.simulator.base_url,
            api_key=SecretStr("sk-simulated-0123456789"),
            context_window=None,
            source="test",
        )
        # A tenant of its own, so that balances are this test's alone.
        key = SessionKey(f"tenant-{session}", session)
        return SessionSpec(key, "ann", resolved(**settings), choice, self.root / session, "subprocess")

    def open(self, conversation: Conversation | None = None, **settings: Any) -> SubprocessHost:
        host = self.factory.open(self.spec(**settings), conversation, Deadline.after(30))
        self.opened.append(host)
        return host

    def ask(self, host: SubprocessHost, message: str, *, deadline_s: float | None = None) -> TurnReport:
        deadline = Deadline.after(deadline_s) if deadline_s is not None else None
        return host.turn(TurnRequest(f"turn-{next(_numbers)}", message, "ann", deadline), self.events.append)

    def balance(self, report: TurnReport) -> Balance:
        (balance,) = self.ledger.balances([ScopeLimit(Scope("tenant", report.tenant), None)])
        return balance

    def close(self) -> None:
        for host in self.opened:
            host.close(Deadline.after(5))
        assert zoo.until(lambda: not any(alive(host) for host in self.opened))


def alive(host: SubprocessHost) -> Sequence[int]:
    """The processes of a session's tree, and those that left it but carry its tag."""
    from agentao_gov.process import SessionTree
    from agentao_gov.process.tags import TAG_VARIABLE

    tree = SessionTree(host.spec.child_env[TAG_VARIABLE])
    return sorted({*host.process_ids(), *(ref.pid for ref in tree.members())})


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
