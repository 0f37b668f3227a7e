"""Fixtures of the governor's tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from agentao_gov.governor.http import HttpClient
from agentao_gov.simulator import Simulator
from tests.governor.harness import Harness
from tests.support.simulator import simulator, simulator_process

__all__ = ["simulator", "simulator_process"]


@pytest.fixture(scope="session")
def http() -> Iterator[HttpClient]:
    """The process's one client."""
    client = HttpClient()
    yield client
    client.close()


@pytest.fixture
def harness(simulator: Simulator, tmp_path: Path, http: HttpClient) -> Iterator[Harness]:
    """Sessions on the simulated model."""
    made = Harness(simulator, tmp_path, http)
    yield made
    made.close()
