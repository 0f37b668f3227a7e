"""A service that can no longer help itself is replaced: its warden ends it and starts another, and sessions go on."""

from __future__ import annotations

import contextlib
import os
import signal
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from agentao_gov.simulator import Simulator
from tests.e2e.service import START_S_MAX, Deployment, Service, say, wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]

#: In every Python below the test: SIGUSR1 runs a pattern that backtracks for minutes and holds the interpreter lock.
LOCK_HOLDER = """
import re, signal
signal.signal(signal.SIGUSR1, lambda *_: re.match(r"(a+)+$", "a" * 40 + "b"))
"""


#: A profile whose tool waits for a lock that a test may hold: nothing can cancel it.
STICKY = """
extends = "qa"
name = "sticky"
[limits]
turn_timeout = "1s"
cancel_grace = "500ms"
tool_timeout = "500ms"
[limits.tool_timeouts]
run_shell_command = "500ms"
[tools]
permission_mode = "full-access"
allow = ["save_memory"]
"""
REMEMBER = say("Remember.", text="x", tool={"name": "save_memory", "args": {"key": "k", "value": "v"}})


@contextlib.contextmanager
def locked(database: Path) -> Iterator[None]:
    """Holds the write lock of a session's memory."""
    with contextlib.closing(sqlite3.connect(database, isolation_level=None)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        yield
        connection.execute("ROLLBACK")


def customized(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str) -> None:
    """Runs the code at the start of every Python below the test."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(code)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "site"))


def second_life(service: Service) -> None:
    """Waits until another process serves, and talks to that one."""
    found = wait_until(lambda: len(e := service.events("listening")) > 1 and e, "the second start", 90)
    service.port = int(found[-1]["address"].rpartition(":")[2])
    wait_until(lambda: service.get("/readyz").status == 200, "readiness", START_S_MAX)


def test_a_call_that_holds_the_interpreter_lock_is_ended_by_the_watchdog(
    deployment: Deployment, simulator: Simulator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """1. a turn  2. a C call holds the lock  3. no heartbeat for 30 s  → dumped, killed, started anew."""
    customized(tmp_path, monkeypatch, LOCK_HOLDER)
    service = deployment.start()
    service.turn("s", say("first", text="x"))
    before = service.pid

    os.kill(before, signal.SIGUSR1)
    second_life(service)
    after = service.turn("s", say("second", text="still here"))

    assert not psutil.pid_exists(before)
    assert service.pid != before
    assert after.json["answer"] == "still here"
    assert simulator.truth().requests[-1].messages == 4
    # The stacks say where the call was.
    assert "re/__init__.py" in service.log.read_text(errors="replace")


def test_one_of_several_workers_that_holds_its_interpreter_lock_is_replaced(
    deployment: Deployment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """1. a C call holds one worker's lock  2. its parent hears nothing for 30 s  → dumped, ended, another in its place.

    The warden hears the parent alone, which is well.
    """
    customized(tmp_path, monkeypatch, LOCK_HOLDER)
    service = deployment.start("--workers", "2")
    parent = service.pid
    workers = {told["worker"]: told["pid"] for told in (service.status()["instance"] for _ in range(40))}

    os.kill(workers[1], signal.SIGUSR1)
    wait_until(lambda: not psutil.pid_exists(workers[1]), "the end of the worker that hangs", 90)
    again = wait_until(lambda: service.status()["instance"]["pid"] not in workers.values(), "another worker", 60)

    assert again
    assert service.pid == parent
    assert psutil.pid_exists(workers[0])
    assert [event["worker"] for event in service.events("worker hung, ending it")] == [1]
    assert "re/__init__.py" in service.log.read_text(errors="replace")


def test_too_many_stuck_turns_drain_and_replace_the_service(deployment: Deployment) -> None:
    """1. a tool never returns  2. its turn is told `stuck`  3. the cap is met  → not ready, drained, started anew."""
    deployment.profile("sticky", STICKY)
    service = deployment.start(pool={"max_stuck": 1})
    service.turn("s", say("first", text="x"), profile="sticky")
    (database,) = (service.state / "sessions" / "t-default" / "s-s").rglob("memory.db")
    before = service.pid

    with locked(database):
        stuck = service.turn("s", REMEMBER, profile="sticky")
        second_life(service)
    after = service.turn("s", say("second", text="still here"), profile="sticky")

    assert (stuck.status, stuck.code) == (500, "stuck")
    assert service.events("turn abandoned")
    assert service.events("too many turns are stuck, restarting")
    assert service.pid != before
    assert after.json["answer"] == "still here"
