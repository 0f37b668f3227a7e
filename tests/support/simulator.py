"""The simulated model for tests: one process for the session, clean for each test."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from agentao_gov.simulator import Simulator, start_simulator


@pytest.fixture(scope="session")
def simulator_process() -> Iterator[Simulator]:
    """The process; use `simulator` instead."""
    with start_simulator() as running:
        yield running


@pytest.fixture
def simulator(simulator_process: Simulator) -> Simulator:
    """A simulator without memory of other tests, following its default script."""
    simulator_process.reset()
    return simulator_process
