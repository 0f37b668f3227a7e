"""Whatever dies, and wherever in its life: no MCP server, helper, daemon or shell outlives its service."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from agentao_gov.process import procfs
from agentao_gov.process.procfs import ProcessRef
from agentao_gov.process.sweep import SweepResult, sweep
from agentao_gov.process.tags import Tag
from agentao_gov.process.tree import send_signal
from agentao_gov.simulator import Simulator
from tests.process import zoo
from tests.process.kill_points import in_place, scenarios

#: From the service's death to the last of its processes' end, not counting the time in which somebody waited for a
#: processor: on a machine with other work a second passes before anybody of ours was let run at all.
SURVIVE_S = 1.0
#: In any case: a hang guard.
GONE_S_MAX = 10.0
#: One of each mode for every run; the rest is slow. Mid-turn with a background shell, closing, draining.
QUICK = {
    ("fresh", "working", "background_running"),
    ("in-process", "working", "shell_running"),
    ("in-process", "evicting", "closing"),
    ("subprocess", "working", "shell_running"),
    ("subprocess", "draining", "cancelling"),
}


class Driver:
    """The process that forks services."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.process.kill_driver"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._line() == "ready"

    def _line(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()

    def start(self, order: dict[str, Any]) -> ProcessRef:
        """Starts a service; returns its outer warden."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        stat = procfs.read_stat(int(self._line()))
        assert stat is not None
        return stat.ref

    def close(self) -> None:
        self._process.communicate(timeout=10)


@pytest.fixture(scope="module")
def driver() -> Iterator[Driver]:
    driver = Driver()
    yield driver
    driver.close()


def refs(file: Path) -> list[ProcessRef]:
    """Processes that wrote themselves down."""
    if not file.exists():
        return []
    words = [line.split() for line in file.read_text().splitlines()]
    return [ProcessRef(int(pid), int(start)) for pid, start, *_ in words]


def survivors(directory: Path, service: ProcessRef) -> list[int]:
    """Who is left: by the tag of the dead service, and by what the servers wrote down about themselves."""
    tagged = [
        stat.ref.pid
        for stat in procfs.stats()
        if not stat.dead and (tag := Tag.of(stat.ref.pid)) is not None and tag.owner.ref == service
    ]
    return [*tagged, *(ref.pid for ref in refs(directory / "alive") if procfs.alive(ref))]


def parameters() -> list[Any]:
    return [
        pytest.param(*case, id="-".join(case), marks=() if case in QUICK else pytest.mark.slow) for case in scenarios()
    ]


def test_there_are_at_least_twenty_points_in_each_mode_with_a_pool() -> None:
    """The matrix is what the issue asks for."""
    by_mode = {mode: [case for case in scenarios() if case[0] == mode] for mode, _, _ in scenarios()}

    assert len(by_mode["in-process"]) >= 20
    assert len(by_mode["subprocess"]) >= 20
    assert len(by_mode["fresh"]) >= 20
    for mode, cases in by_mode.items():
        names = {name for _, *phase_and_point in cases for name in phase_and_point}
        assert {"opening", "working", "hibernating", "draining", "closing"} <= names
        # Nobody evicts a fresh session: it leaves after its turn.
        assert {"leaving" if mode == "fresh" else "evicting"} <= names


@pytest.mark.timeout(60)
@pytest.mark.parametrize(("mode", "phase", "point"), parameters())
def test_nothing_outlives_a_service_that_is_killed(
    driver: Driver, simulator: Simulator, tmp_path: Path, mode: str, phase: str, point: str
) -> None:
    """SIGKILL at a named point, five tempers of MCP server and background shells: nobody is left after a second."""
    order = {"mode": mode, "phase": phase, "point": point, "directory": str(tmp_path), "base_url": simulator.base_url}
    outer = driver.start(order)

    assert zoo.until(lambda: (tmp_path / "reached").exists() or not procfs.alive(outer), within_s=40)
    reached_at, waited_before_s = time.monotonic(), zoo.waited_for_processor_s()
    (service,) = refs(tmp_path / "owner")
    try:
        assert (tmp_path / "reached").exists(), (tmp_path / "log").read_text()
        gone = zoo.until(lambda: not procfs.alive(outer) and not survivors(tmp_path, service), within_s=GONE_S_MAX)
        took_s = time.monotonic() - reached_at
        waited_s = zoo.waited_for_processor_s() - waited_before_s

        alive = Counter((tmp_path / "reached").read_text().split())
        assert not in_place(mode, phase, point) - alive, alive
        assert gone, survivors(tmp_path, service)
        assert took_s - waited_s < SURVIVE_S
        assert sweep(lambda owner: owner.ref == service) == SweepResult(killed=0, owners=0)
    finally:
        for ref in refs(tmp_path / "alive"):
            send_signal(ref, 9)
        send_signal(outer, 9)
