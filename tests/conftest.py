"""Fixtures every test may use. Those of one folder stand in that folder's own conftest."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from tests.support.clock import FakeClock
from tests.support.simulator import simulator, simulator_process  # noqa: F401 - fixtures for everyone


def pytest_configure() -> None:
    """A shell starts background jobs with SIGINT ignored, children would inherit that, and no Ctrl-C be tried."""
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture(autouse=True)
def clean_environment(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A private HOME and state directory, and none of the caller's model or product variables."""
    home = tmp_path_factory.mktemp("home")
    for name in list(os.environ):
        if name.startswith(("OPENAI_", "AGENTAO_GOV", "LLM_")) or name in {"NO_COLOR", "FORCE_COLOR", "GITHUB_ACTIONS"}:
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("AGENTAO_GOV_STATE", str(home / "state"))
    return home
