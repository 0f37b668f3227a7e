"""What a running service says about its processes: metrics, status, a session's own figures, orphans killed."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from agentao_gov.process import survey_layers
from agentao_gov.simulator import Simulator
from tests.e2e.service import Deployment, say, wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]

ZOO = Path(__file__).parents[1] / "process" / "mcp_zoo.py"


@pytest.fixture
def deployment(tmp_path: Path, simulator: Simulator) -> Iterator[Deployment]:
    """A profile with a server that leaves a helper behind when it is asked to go."""
    made = Deployment(tmp_path, simulator)
    made.profile(
        "with_server",
        f"""
        extends = "qa"
        name = "with_server"
        [mcp.servers.zoo]
        command = "{sys.executable}"
        args = ["-I", "-S", "{ZOO}", "helper", "{tmp_path}"]
        startup_timeout = "15s"
        """.replace("        ", ""),
    )
    yield made
    made.close()


#: Of one idle session: its server and the server's helper; in subprocess mode its own process and the warden too, and
#: in a namespace that one's first process.
HELD = {
    "in-process": {"mcp": 2},
    "subprocess": {"mcp": 2, "session": 1, "other": 1},
    "namespace": {"mcp": 2, "session": 1, "other": 2},
}


@pytest.mark.parametrize("arrangement", HELD)
def test_processes_are_shown_per_session_and_by_kind(deployment: Deployment, arrangement: str) -> None:
    """
    1. two sessions with a server each: both are told what is theirs, status and metrics count them by kind
    2. deleted: nothing is left, and the helpers that would have stayed are counted as orphans killed
    """
    apart = arrangement == "namespace"
    if apart and not {layer.name: layer for layer in survey_layers()}["pid namespace"].available:
        pytest.skip("no pid namespaces on this machine")
    mode = "in-process" if arrangement == "in-process" else "subprocess"
    service = deployment.start(pool={"mode": mode, "ready_workers": 0, "session_pid_namespace": apart})
    for name in ("one", "two"):
        assert service.turn(name, say(text="ok"), profile="with_server").json["outcome"] == "answered"

    def seen() -> bool:
        return bool(service.metrics()['child_processes{kind="mcp"}'] == 4)

    wait_until(seen, "the look that counts them", 30)
    session, status, metrics = service.get("/v1/sessions/one").json, service.status(), service.metrics()
    for name in ("one", "two"):
        assert service.send("DELETE", f"/v1/sessions/{name}").json["deleted"]
    wait_until(lambda: service.metrics()['child_processes{kind="mcp"}'] == 0, "their end", 30)

    each = sum(HELD[arrangement].values())
    assert session["processes"] == HELD[arrangement]
    assert session["memory_bytes"] > 2**20
    assert status["processes"]["per_session"] == {"p50": each, "max": each}
    assert status["processes"]["children"]["mcp"] == status["processes"]["mcp"] == 4
    assert metrics['session_processes{quantile="1"}'] == each
    assert metrics['child_processes{kind="session"}'] == (2 if mode == "subprocess" else 0)
    wait_until(lambda: service.metrics()["orphans_killed_total"] >= 2, "the count of their helpers")
    assert service.status()["processes"]["orphans_killed"] == service.metrics()["orphans_killed_total"]


def test_a_fresh_session_s_processes_are_seen_during_its_turn_and_gone_after(deployment: Deployment) -> None:
    """There is nothing to show between turns: that is the mode."""
    service = deployment.start(pool={"mode": "fresh"})
    turn = say(steps=[{"tool": {"name": "mcp_zoo_wait", "args": {"seconds": 4}}}, {"text": "ok"}])

    thread = threading.Thread(target=lambda: service.turn("one", turn, profile="with_server"))
    thread.start()
    wait_until(lambda: service.metrics()['child_processes{kind="mcp"}'] == 2, "the look during the turn", 30)
    thread.join()

    wait_until(lambda: service.metrics()['child_processes{kind="mcp"}'] == 0, "their end", 30)
    wait_until(lambda: service.metrics()["orphans_killed_total"] >= 1, "the count of its helper")


def test_what_a_dead_worker_leaves_is_ended_at_once_and_counted(deployment: Deployment, tmp_path: Path) -> None:
    """
    1. two workers, a session with a server that ignores signals in one of them
    2. that worker is killed: its parent ends the server before another worker takes its place, whose metrics tell of it
    """
    file = tmp_path / "profiles" / "with_server.toml"
    file.write_text(file.read_text().replace('"helper"', '"stubborn"'))
    service = deployment.start("--workers", "2")
    assert service.turn("one", say(text="ok"), profile="with_server").json["outcome"] == "answered"
    (server,) = (psutil.Process(int(line.split()[0])) for line in (tmp_path / "alive").read_text().splitlines())
    worker = server.parent()
    assert worker is not None

    worker.kill()
    (died,) = wait_until(lambda: service.events("worker died"), "the parent's word")

    assert died["orphans_killed"] >= 1
    assert not server.is_running() or server.status() == psutil.STATUS_ZOMBIE
    wait_until(lambda: service.metrics()["orphans_killed_total"] >= 1, "the count in the new worker's metrics", 60)
