"""A full disk, a server that will not end, no descriptors, under the real service: answers and sessions are kept."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from agentao_gov.simulator import Simulator
from tests.e2e.service import Deployment, Service, running, say, wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(90)]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 300 KB, where this user may mount one."""
    place = tmp_path / "state" / "sessions"
    place.mkdir(parents=True, mode=0o700)
    mount = shutil.which("mount")
    done = mount and subprocess.run(
        [mount, "-t", "tmpfs", "-o", "size=300k,nr_inodes=60,mode=700", "tmpfs", place], check=False
    )
    if not done or done.returncode != 0:
        pytest.skip("this user may not mount a file system")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def fill(disk: Path) -> Path:
    """A file that takes all the room there is."""
    ballast = disk / "ballast"
    with contextlib.suppress(OSError), ballast.open("wb", buffering=0) as out:
        while True:
            out.write(bytes(1024))
    return ballast


def test_a_full_disk_under_the_sessions_loses_no_answer_and_no_session(
    small_disk: Path, deployment: Deployment, simulator: Simulator
) -> None:
    """The turn is answered with a warning, its session stays in memory; with room again it is written and goes on."""
    service = deployment.start("--no-warden", pool={"max_sessions": 3})
    service.turn("small", say("first", text="x"))
    ballast = fill(small_disk)
    big = os.urandom(10_000).hex()

    full = service.turn("big", say(f"first {big}", text="kept"))
    again = service.turn("big", say("second", text="kept too"))
    other = service.turn("small", say("second", text="y"))
    ballast.unlink()
    after = service.turn("big", say("third", text="written"))
    service.signal()
    service.wait()
    restarted = deployment.start("--no-warden")
    back = restarted.turn("big", say("fourth", text="still here"))

    assert (full.status, full.json["answer"]) == (200, "kept")
    assert any("Not saved yet" in warning for warning in full.json["warnings"])
    assert str(small_disk) not in json.dumps(full.json)
    assert [again.status, other.status, after.status, back.status] == [200] * 4
    assert after.json["warnings"] == []
    # system, and four questions with the three answers before the last
    assert simulator.truth().requests[-1].messages == 8


def test_a_full_disk_from_the_start_refuses_new_sessions_alone(small_disk: Path, deployment: Deployment) -> None:
    """No directory can be made for them: 503, nothing stays counted; those that are there go on."""
    service = deployment.start("--no-warden")
    service.turn("old", say(text="x"))
    fill(small_disk)
    with contextlib.suppress(OSError):  # an empty directory needs an inode and no block
        for n in range(1_000):
            (small_disk / f"i{n}").touch()

    refused = service.turn("new", say(text="x"))
    old = service.turn("old", say(text="y"))

    assert (refused.status, refused.code) == (503, "ledger_unavailable")
    assert int(refused.headers["retry-after"]) >= 1
    assert old.status == 200
    wait_until(lambda: service.status()["pool"]["resident"] == 1, "the counts")


STUBBORN = """
import json, signal, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
for line in sys.stdin:
    asked = json.loads(line)
    if "id" not in asked:
        continue
    if asked["method"] == "initialize":
        result = {"protocolVersion": asked["params"]["protocolVersion"], "capabilities": {"tools": {}},
                  "serverInfo": {"name": "stubborn", "version": "1"}}
    else:
        result = {"tools": []}
    print(json.dumps({"jsonrpc": "2.0", "id": asked["id"], "result": result}), flush=True)
time.sleep(600)
"""


def test_an_mcp_server_that_ignores_its_end_delays_nobody_and_leaves_nothing(deployment: Deployment) -> None:
    """Its session is evicted: the next one does not wait for it, and at the end no process of it is left."""
    script = deployment.root / "stubborn.py"
    script.write_text(STUBBORN)
    deployment.profile("stubborn", _with_server(script))
    service = deployment.start("--no-warden", pool={"max_sessions": 2})
    assert service.turn("held", say(text="x"), profile="stubborn").status == 200
    assert service.metrics()["mcp_processes"] == 1

    with running(lambda: service.send("DELETE", "/v1/sessions/held")) as deleted:
        quick = [service.turn(f"s{n}", say(text="x")).status for n in range(4)]
    wait_until(lambda: service.metrics()["mcp_processes"] == 0, "the end of the server", 30)

    assert quick == [200] * 4
    assert deleted[0].status == 200
    assert service.status()["pool"]["sessions"]["closing"] == 0


def _with_server(script: Path) -> str:
    return f"""
extends = "qa"
name = "stubborn"
[mcp.servers.stubborn]
command = "{sys.executable}"
args = ["-I", "{script}"]
startup_timeout = "15s"
request_timeout = "5s"
"""


def idle_connections(service: Service, count: int, stack: contextlib.ExitStack) -> list[socket.socket]:
    """Connections that send nothing."""
    return [
        stack.enter_context(socket.create_connection(("127.0.0.1", service.port), timeout=20)) for _ in range(count)
    ]


def test_more_than_1024_open_descriptors_are_served(deployment: Deployment) -> None:
    """What waits for one of them must not use select(), which knows no more: model calls did."""
    service = deployment.start("--no-warden")
    with contextlib.ExitStack() as stack:
        idle_connections(service, 1_100, stack)
        wait_until(lambda: service.metrics()["open_fds"] > 1_100, "as many descriptors")
        whole = service.turn("s", say(text="whole"))
        streamed = service.post(
            "/v1/sessions/t/turns", {"message": say(text="streamed")}, headers={"Accept": "text/event-stream"}
        )

    assert (whole.status, whole.json["answer"]) == (200, "whole")
    assert b"streamed" in streamed.body


def test_running_out_of_descriptors_is_one_line_a_second_and_passes(deployment: Deployment) -> None:
    """No traceback a connection, and once there are descriptors again everybody is served."""
    service = deployment.start("--no-warden")
    process = psutil.Process(service.pid)
    limit = process.num_fds() + 10
    _, hard = process.rlimit(psutil.RLIMIT_NOFILE)
    process.rlimit(psutil.RLIMIT_NOFILE, (limit, hard))
    with contextlib.ExitStack() as stack:
        idle_connections(service, 60, stack)
        wait_until(lambda: service.events("out of descriptors, accepting later"), "the line in the log")
    process.rlimit(psutil.RLIMIT_NOFILE, (hard, hard))
    answer = service.turn("s", say(text="again"))
    lines = service.log.read_text().splitlines()

    assert (answer.status, answer.json["answer"]) == (200, "again")
    assert not [line for line in lines if "Traceback" in line or "accept() out of system" in line]
    assert len(service.events("out of descriptors, accepting later")) < 10
