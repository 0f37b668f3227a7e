"""Fixtures of the governor's tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from agentao_gov.governor.http import HttpClient
from agentao_gov.simulator import Simulator
from tests.governor.harness import Harness
from tests.governor.provider import Answer, Provide, Provider
from tests.support.simulator import simulator, simulator_process

__all__ = ["simulator", "simulator_process"]


@pytest.fixture(scope="session")
def http(simulator_process: Simulator, tmp_path_factory: pytest.TempPathFactory) -> Iterator[HttpClient]:
    """The process's one client, after one turn: first use of agentao and tiktoken costs a second on a busy machine."""
    client = HttpClient()
    warm = Harness(simulator_process, tmp_path_factory.mktemp("warm"), client)
    warm.run("hello", tools={"permission_mode": "full-access", "allow": ["run_shell_command"]})
    warm.close()
    yield client
    client.close()


@pytest.fixture
def harness(simulator: Simulator, tmp_path: Path, http: HttpClient) -> Iterator[Harness]:
    """Sessions on the simulated model."""
    made = Harness(simulator, tmp_path, http)
    yield made
    made.close()


@pytest.fixture(params=["openai-completions", "anthropic-messages", "openai-responses"])
def on_each_wire(request: pytest.FixtureRequest, harness: Harness) -> str:
    """Runs a test once a wire: what holds of one holds of all. Use `pytest.mark.usefixtures`."""
    harness.api_format = request.param
    return str(request.param)


@pytest.fixture
def provide() -> Iterator[Provide]:
    """Starts providers that answer as the test says."""
    started: list[Provider] = []

    def start(answer: Answer) -> Provider:
        started.append(Provider(answer))
        return started[-1]

    yield start
    for provider in started:
        provider.close()
