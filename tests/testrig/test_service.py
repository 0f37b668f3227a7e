"""A private service is started as production starts one, and nothing of it is left."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import psutil
import pytest

from agentao_gov.simulator import Simulator
from agentao_gov.testrig.service import PrivateService, ServiceStartError

CALM = {"shutdown": {"lame_duck": "0s", "drain": "2s", "cancel": "1s", "close": "2s", "kill": "1s"}}


def service(folder: Path, simulator: Simulator, **tables: object) -> PrivateService:
    flags = ("--model", "simulated-model", "--base-url", simulator.base_url)
    return PrivateService(folder / "service", {**CALM, **tables}, flags=flags)


def test_it_serves_below_wardens_of_its_own_with_the_callers_environment(
    tmp_path: Path, simulator: Simulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A gate that starts its service otherwise passes where production fails."""
    monkeypatch.setenv("SOMETHING_OF_THE_CALLER", "is there")

    with service(tmp_path, simulator) as running:
        answer = running.client().turn("s", "Hello.", profile="qa")
        serving = psutil.Process(running.pid)
        above = [process.name() for process in serving.parents()]
        environment = serving.environ()

    assert answer.answered
    assert above[:3] == ["gov-init", "gov-warden", "gov-guard"]
    assert running.root_pid != serving.pid
    assert environment["SOMETHING_OF_THE_CALLER"] == "is there"
    assert environment.get("TIKTOKEN_CACHE_DIR") == os.environ.get("TIKTOKEN_CACHE_DIR")
    assert not serving.is_running()
    assert not running.folder.exists()


def test_stop_is_orderly_and_leaves_nobody(tmp_path: Path, simulator: Simulator) -> None:
    """SIGTERM, the ladder, its exit code; the log is still there to be read."""
    running = service(tmp_path, simulator)
    running.start()

    left = running.stop()

    assert left == 0
    assert running.wait(0) == 128 + signal.SIGTERM
    assert running.log_tail()
    running.end()


def test_one_that_cannot_start_says_why_and_is_gone(tmp_path: Path, simulator: Simulator) -> None:
    """The last lines of its log are what a person needs."""
    broken = service(tmp_path, simulator, pool={"max_sessions": "many"})

    with pytest.raises(ServiceStartError, match="max_sessions") as failed:
        broken.start()

    assert failed.value.ended
    assert not broken.folder.exists()


def test_what_was_ended_does_not_begin(tmp_path: Path, simulator: Simulator) -> None:
    """An interrupt may come before the start."""
    never = service(tmp_path, simulator)
    never.end()

    with pytest.raises(ServiceStartError, match="ended before it began"):
        never.start()
    assert not never.folder.exists()
