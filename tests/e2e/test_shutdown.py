"""The ladder on the real service under its warden: numbered steps, real signals, exit codes, nothing left behind."""

from __future__ import annotations

import signal
import time
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest

from agentao_gov.simulator import Simulator
from tests.e2e.service import START_S_MAX, Deployment, Service, running, say, wait_until

pytestmark = pytest.mark.timeout(90)


def rungs(service: Service) -> list[str]:
    """The rungs the log tells of."""
    return [line["rung"] for line in service.events("shutdown rung")]


def entered(service: Service, count: int) -> bool:
    """So many rungs at least."""
    return len(rungs(service)) >= count


def tree(service: Service) -> list[psutil.Process]:
    """Everything below the process that was started."""
    return psutil.Process(service.process.pid).children(recursive=True)


@pytest.mark.slow
def test_an_idle_service_ends_at_once_with_143_and_leaves_nothing(deployment: Deployment) -> None:
    """1. serve  2. one turn  3. SIGTERM  → all rungs in order, 143, no process, the session on disk."""
    service = deployment.start()
    service.turn("s", say(text="x"))
    below = tree(service)

    service.signal()
    code = service.wait()
    _, alive = psutil.wait_procs(below, timeout=10)

    assert code == 143
    assert alive == []
    assert rungs(service) == ["lame_duck", "draining", "cancelling", "closing", "killing", "gone"]
    assert list((service.state / "sessions").glob("t-default/s-s/session"))


@pytest.mark.slow
@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGHUP, 129)])
@pytest.mark.parametrize("how", ["--no-warden", "--workers=2"])
def test_a_ctrl_c_and_a_closed_terminal_walk_the_ladder_too(
    deployment: Deployment, signum: signal.Signals, code: int, how: str
) -> None:
    """1. serve  2. SIGINT or SIGHUP → in order, 130 or 129."""
    service = deployment.start(how)

    service.signal(signum)

    assert service.wait() == code
    assert set(rungs(service)) == {"lame_duck", "draining", "cancelling", "closing", "killing", "gone"}


@pytest.mark.slow
@pytest.mark.parametrize("how", ["--no-warden", "--warden", "--workers=2"])
def test_below_nohup_a_closed_terminal_ends_nothing(deployment: Deployment, how: str) -> None:
    """1. SIGHUP is ignored, serve  2. SIGHUP  3. a turn  → answered; SIGTERM ends it all the same."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        service = deployment.start(how)
    finally:
        signal.signal(signal.SIGHUP, before)

    service.signal(signal.SIGHUP)
    answer = service.turn("s", say(text="x"))
    service.signal()

    assert answer.status == 200
    assert service.wait() == 143


@pytest.mark.slow
def test_a_turn_in_flight_is_answered_and_a_new_one_is_told_to_go_elsewhere(
    deployment: Deployment, simulator: Simulator
) -> None:
    """1. a turn runs  2. SIGTERM  3. a new turn: 503  4. the turn ends  → answered, 143."""
    service = deployment.start(shutdown={"drain": "15s"}, server={"shutdown_budget": "25s"})
    with running(lambda: service.turn("s", say(hold="answer", text="kept my word"))) as results:
        simulator.wait_for(held=1)
        service.signal()
        ready = wait_until(lambda: (r := service.get("/readyz")).status == 503 and r, "not ready")
        wait_until(lambda: service.get("/readyz").json["rung"] == "draining", "the drain")
        refused = service.turn("other", "hello")
        status = service.status()
        metrics = service.metrics()
        simulator.release("answer")

    assert service.wait() == 143
    assert (refused.status, refused.code) == (503, "draining")
    assert int(refused.headers["retry-after"]) >= 1
    assert ready.json["ready"] is False
    assert status["shutdown_rung"] == {"name": "draining", "number": 2}
    assert metrics["shutdown_rung"] == 2
    assert (results[0].status, results[0].json["answer"]) == (200, "kept my word")


@pytest.mark.slow
def test_a_hung_turn_is_cancelled_and_told_to_its_client_and_the_log(
    deployment: Deployment, simulator: Simulator
) -> None:
    """1. a turn hangs  2. SIGTERM  3. the drain's time is up  → 503 draining with its report, named in the log."""
    service = deployment.start(shutdown={"drain": "0.5s"})
    with running(lambda: service.turn("hung", say(hold="never"))) as results:
        simulator.wait_for(held=1)
        service.signal()

    assert service.wait() == 143
    assert (results[0].status, results[0].code) == (503, "draining")
    assert results[0].json["agentao_gov"]["outcome"] == "shutdown"
    assert [line["what"] for line in service.events("ended by shutdown")] == ["default/hung"]


@pytest.mark.slow
def test_waiting_turns_are_answered_at_once(deployment: Deployment, simulator: Simulator) -> None:
    """1. one place, one turn runs, three wait  2. SIGTERM  → the three are refused while the one still runs."""
    service = deployment.start(pool={"max_busy": 1})
    jobs = [lambda: service.turn("first", say(hold="first", text="done"))]
    with running(*jobs) as results:
        simulator.wait_for(held=1)
        with running(*[lambda n=n: service.turn(f"w{n}", "hello") for n in range(3)]) as waiting:
            wait_until(lambda: service.status()["queue"]["length"] == 3, "three waiting turns")
            service.signal()
        simulator.release("first")

    assert service.wait() == 143
    assert [(answer.status, answer.code) for answer in waiting] == [(503, "draining")] * 3
    assert results[0].json["answer"] == "done"


@pytest.mark.slow
@pytest.mark.parametrize("signals", [2, 3])
def test_each_further_signal_steps_one_rung(deployment: Deployment, simulator: Simulator, signals: int) -> None:
    """1. a turn hangs, rungs are long  2. SIGTERM n times  → the n-th rung is entered long before its time."""
    rung = ["lame_duck", "draining", "cancelling"][signals - 1]
    service = deployment.start(
        shutdown={"lame_duck": "20s", "drain": "20s", "cancel": "2s"}, server={"shutdown_budget": "60s"}
    )
    with running(lambda: service.turn("hung", say(hold="never"))) as results:
        simulator.wait_for(held=1)
        for n in range(signals):
            service.signal()
            wait_until(partial(entered, service, n + 1), "the next rung")
        seen = rungs(service)
        for _ in range(3 - signals):
            service.signal()
            time.sleep(0.2)  # two signals in one instant are one signal: the system does not queue them

    assert service.wait() == 143
    assert seen[-1] == rung or seen[signals - 1] == rung
    assert results[0].status == 503


@pytest.mark.slow
def test_a_signal_during_the_start_ends_it(deployment: Deployment) -> None:
    """1. serve  2. SIGTERM before it listens  → 143, soon, nothing left."""
    service = deployment.launch()
    wait_until(lambda: len(tree(service)) > 1 or service.process.poll() is not None, "the start", START_S_MAX)
    below = tree(service)

    service.signal()
    code = service.wait()
    _, alive = psutil.wait_procs(below, timeout=10)

    assert code == 143
    assert alive == []


@pytest.mark.slow
def test_when_the_whole_service_is_killed_nothing_stays_behind(deployment: Deployment, tmp_path: Path) -> None:
    """1. a session with an MCP server  2. SIGKILL for the serving process  → its children are gone."""
    stub = Path(__file__).resolve().parents[2] / "cli/agentao_gov/checklist/mcp_stub.py"
    deployment.profile("tools", _profile_with_server(stub))
    service = deployment.start()
    assert service.turn("s", say(text="x"), profile="tools").status == 200
    below = tree(service)
    servers = [p for p in below if "mcp_stub" in " ".join(p.cmdline())]

    psutil.Process(service.process.pid).kill()
    _, alive = psutil.wait_procs(below, timeout=15)

    assert servers
    assert alive == []


@pytest.mark.slow
def test_a_session_goes_on_after_a_restart_and_after_a_kill(deployment: Deployment, simulator: Simulator) -> None:
    """1. a turn  2. SIGTERM, start  3. a turn  4. SIGKILL, start  5. a turn  → each knows all before it."""
    seen = []
    for signum in (signal.SIGTERM, signal.SIGKILL, signal.SIGTERM):
        service = deployment.start("--no-warden")
        service.turn("s", say("word", text="ok"))
        seen.append(simulator.truth().requests[-1].messages)
        if signum == signal.SIGKILL:
            service.process.kill()
        else:
            service.signal(signum)
        service.wait()

    # system and question; then two more for each turn before
    assert seen == [2, 4, 6]


def _profile_with_server(stub: Path) -> str:
    import sys

    return f"""
extends = "qa"
name = "tools"
[mcp.servers.stub]
command = "{sys.executable}"
args = ["-I", "{stub}"]
startup_timeout = "15s"
request_timeout = "5s"
"""


@pytest.mark.slow
def test_open_streams_are_told_of_their_end(deployment: Deployment, simulator: Simulator) -> None:
    """1. two streams run, one has begun  2. SIGTERM, the drain's time is up  → the last event says `shutdown`, 143."""
    service = deployment.start(shutdown={"drain": "0.5s"})
    message = say("x", text="one two three " * 40, chunk_tokens=1, per_token="500ms")
    chat = {"model": "qa", "messages": [{"role": "user", "content": say(hold="never")}], "stream": True}
    with running(
        lambda: service.turn("a", message, headers={"Accept": "text/event-stream"}),
        lambda: service.post("/v1/chat/completions", chat, headers={"X-Session-Id": "b"}),
    ) as results:
        simulator.wait_for(held=1, calls=2)
        service.signal()

    assert service.wait() == 143
    for answer in results:
        assert b'"shutdown"' in answer.body
        assert answer.status in (200, 503)


@pytest.mark.slow
def test_two_workers_go_down_together_and_tell_their_clients(deployment: Deployment, simulator: Simulator) -> None:
    """1. turns hang in both workers  2. SIGTERM twice  → all answered 503, not ready, 143, nothing left."""
    service = deployment.start("--workers", "2", shutdown={"drain": "15s"}, server={"shutdown_budget": "25s"})
    below = tree(service)
    results: list[Any] = []
    with ExitStack() as turns:
        # Which worker takes a connection is the system's to choose, and one without a turn would be gone at once.
        while len(_with_turns(below, simulator)) < 2:
            assert len(results) < 60
            name = f"s{len(results)}"
            results.append(turns.enter_context(running(partial(service.turn, name, say(hold="never")))))
            simulator.wait_for(held=len(results))
        service.signal()
        wait_until(lambda: rungs(service).count("draining") == 2, "both drains")
        ready = service.get("/readyz")
        rung = service.metrics()["shutdown_rung"]
        service.signal()
    code = service.wait()
    _, alive = psutil.wait_procs(below, timeout=10)

    assert code == 143
    assert (ready.status, ready.json["rung"]) == (503, "draining")
    assert rung == 2
    assert [(answer.status, answer.code) for (answer,) in results] == [(503, "draining")] * len(results)
    assert len(service.events("ended by shutdown")) == len(results)
    assert alive == []


def _with_turns(processes: list[psutil.Process], simulator: Simulator) -> set[int]:
    """Those that wait for an answer of the model."""
    return {
        process.pid
        for process in processes
        for connection in process.net_connections()
        if connection.status == "ESTABLISHED" and connection.raddr.port == simulator.port
    }
