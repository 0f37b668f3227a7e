"""A client for the running simulator."""

from __future__ import annotations

import pytest

from agentao_gov.simulator import Simulator
from tests.simulator.client import Client


@pytest.fixture
def client(simulator: Simulator) -> Client:
    return Client(simulator)
