"""Fixtures of the end-to-end tests: one service for those that leave it as it was, fresh ones for the others."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from agentao_gov.simulator import Simulator
from tests.e2e.service import Deployment, Service

#: A small profile with a short time limit, so that hung turns end soon.
BRISK = """
extends = "qa"
name = "brisk"
[limits]
turn_timeout = "2s"
cancel_grace = "1s"
tool_timeout = "1s"
max_iterations = 3
llm_retries = 0
[limits.tool_timeouts]
run_shell_command = "1s"
"""


@pytest.fixture
def deployment(tmp_path: Path, simulator: Simulator) -> Iterator[Deployment]:
    """For tests that need a service of their own."""
    made = Deployment(tmp_path, simulator)
    made.profile("brisk", BRISK)
    yield made
    made.close()


@pytest.fixture(scope="session")
def shared_service(tmp_path_factory: pytest.TempPathFactory, simulator_process: Simulator) -> Iterator[Service]:
    """One service for all tests that neither stop it nor fill it; two tenants with keys."""
    made = Deployment(tmp_path_factory.mktemp("shared"), simulator_process)
    made.profile("brisk", BRISK)
    tenants = made.tenants("acme", "bolt")
    tenants["bolt"]["profiles"] = ["qa"]
    service = made.start("--no-warden", tenants=tenants, capacity={"sessions": 500, "memory": "4GiB"})
    service.key = made.keys["acme"]
    yield service
    made.close()


@pytest.fixture
def service(shared_service: Service, simulator: Simulator) -> Service:
    """The shared service, with a clean simulator behind it."""
    del simulator
    return shared_service
