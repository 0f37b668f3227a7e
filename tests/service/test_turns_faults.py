"""Faults through real HTTP: each has its code, places and counts come back, everyone else is served."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import socket
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from agentao_gov.errors import ConfigError
from agentao_gov.governor.types import SessionKey
from agentao_gov.pool import PoolLimits, SessionState
from tests.e2e.raw import raw
from tests.e2e.service import running
from tests.pool.bench import eventually
from tests.pool.scripted import HANG_S, ScriptedHosts
from tests.service.live import Live

MakeLive = Callable[..., Live]


@pytest.fixture
def hosts() -> Iterator[ScriptedHosts]:
    made = ScriptedHosts()
    yield made
    made.release(*list(made.held), *list(made.gates))


def is_empty(live: Live) -> bool:
    return live.counts() == (0, 0, 0)


@pytest.fixture
def make_live(tmp_path: Path, hosts: ScriptedHosts) -> Iterator[MakeLive]:
    """Makes services; nothing is left running or counted at the end."""
    made: list[Live] = []

    def make(**settings: Any) -> Live:
        live = Live(tmp_path, hosts, **settings)
        made.append(live)
        return live

    yield make
    hosts.release(*list(hosts.held), *list(hosts.gates))
    for live in made:
        eventually(partial(is_empty, live), "every place and count back")
        live.close()


def resized(live: Live, **limits: Any) -> None:
    """New limits that no deployment file sets."""
    old = live.pool.limits
    live.pool.resize(PoolLimits(**{**{name: getattr(old, name) for name in PoolLimits.__dataclass_fields__}, **limits}))


# -- agents --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ConfigError("mcp server at /srv/secret/path is wrong"), "invalid_configuration"),
        (RuntimeError("boom at /srv/secret/path"), "internal_error"),
        (MemoryError(), "internal_error"),
    ],
)
def test_an_agent_that_cannot_be_built_is_500_and_tells_no_path(
    make_live: MakeLive, hosts: ScriptedHosts, error: BaseException, code: str
) -> None:
    """The session is not there afterwards, and the next try begins anew."""
    live = make_live()
    hosts.open_error = error
    refused = live.turn("s", "hello")
    resident = live.pool.stats().resident
    hosts.open_error = None
    after = live.turn("s", "hello")

    assert (refused.status, refused.code) == (500, code)
    assert b"/srv/secret" not in refused.body
    assert resident == 0
    assert after.status == 200


def test_an_agent_whose_construction_hangs_is_given_up_and_others_are_served(
    make_live: MakeLive, hosts: ScriptedHosts
) -> None:
    """Two hang, as many as open at once: the rest goes on, the turns meet their time, late agents are closed."""
    live = make_live(max_opening=2)
    resized(live, open_patience_s=0.1, open_timeout_s=0.5)
    hosts.hold("open h0", "open h1")

    with running(lambda: live.turn("h0", "hello"), lambda: live.turn("h1", "hello")) as hung:
        hosts.arrive("open h0")
        hosts.arrive("open h1")
        others = [live.turn(f"s{n}", "hello").status for n in range(3)]
    again = live.turn("h0", "hello")
    during = live.pool.stats()
    hosts.release("open h0", "open h1")

    assert others == [200] * 3
    assert [(answer.status, answer.code) for answer in hung] == [(504, "turn_timeout")] * 2
    assert all(b"limit for openings" in answer.body for answer in hung)
    assert (again.status, again.code) == (500, "stuck")
    assert (during.busy, during.queue_length, during.sessions[SessionState.STUCK]) == (0, 0, 2)
    eventually(lambda: live.pool.stats().resident == 3, "the late agents' close")
    assert live.turn("h0", "hello").status == 200


@pytest.mark.parametrize("accept", ["application/json", "text/event-stream"])
def test_the_turns_own_time_ends_its_wait_for_an_agent(make_live: MakeLive, hosts: ScriptedHosts, accept: str) -> None:
    """With a long `queue_timeout` and a longer limit for openings; the agent that comes late serves the next turn."""
    live = make_live(queue_timeout="1h")
    hosts.hold("open late")

    refused = live.turn("late", "hello", profile="quick", headers={"Accept": accept})
    hosts.release("open late")
    eventually(lambda: live.pool.stats().sessions[SessionState.IDLE] == 1, "the late agent")
    after = live.turn("late", "hello", profile="quick")

    assert (refused.status, refused.code) == (504, "turn_timeout")
    assert b"met its time limit" in refused.body
    assert after.status == 200
    assert hosts.opened[SessionKey("default", "late")] == 1


def test_a_close_that_raises_frees_its_place_and_its_processes_are_killed(
    make_live: MakeLive, hosts: ScriptedHosts
) -> None:
    """Room for one: the next session has it."""
    live = make_live(max_sessions=1)
    live.turn("a", "hello")
    hosts.close_error = RuntimeError("no")

    after = live.turn("b", "hello")

    assert after.status == 200
    assert [key.session for key in hosts.killed] == ["a"]
    hosts.close_error = None


def test_a_close_that_hangs_costs_the_others_half_a_second_once(make_live: MakeLive, hosts: ScriptedHosts) -> None:
    """Room for two, one of them closing for ever: the other place goes on serving, and the hung one is counted."""
    live = make_live(max_sessions=2)
    live.turn("a", "hello")
    hosts.hold("close a")

    began = time.monotonic()
    answers = [live.turn(f"s{n}", "hello").status for n in range(8)]
    took_s = time.monotonic() - began
    closing = live.status()["pool"]["sessions"]["closing"]

    assert answers == [200] * 8
    assert closing == 1
    assert took_s < 10  # a hang guard: a place that is lost for 30 s would show
    hosts.release("close a")


def test_a_host_that_raises_or_crashes_has_its_code_and_the_session_goes_on(make_live: MakeLive) -> None:
    """The agent is replaced; the conversation is the archive's."""
    live = make_live()
    live.turn("s", "remember me")

    crashed = live.turn("s", "crash")
    raised = live.turn("s", "raise")
    after = live.turn("s", "recall")

    assert (crashed.status, crashed.code) == (500, "internal_error")
    assert (raised.status, raised.code) == (502, "model_error")
    assert after.json["answer"] == "remember me"


def test_a_stuck_turn_quarantines_its_session_alone(make_live: MakeLive) -> None:
    """500 `stuck`, also for the next turn; the others never notice."""
    live = make_live()

    stuck = live.turn("s", "stick")
    again = live.turn("s", "hello")

    assert (stuck.status, stuck.code) == (again.status, again.code) == (500, "stuck")
    assert live.turn("other", "hello").status == 200
    assert live.metrics()['sessions{state="stuck"}'] == 1
    with contextlib.suppress(KeyError):
        live.pool._engine.residents[next(iter(live.pool._engine.residents))].host.is_stuck = False  # type: ignore[attr-defined]
    eventually(lambda: live.pool.stats().busy == 0, "the end of the quarantine")


# -- clients -------------------------------------------------------------------------------------------------------


def test_a_reader_that_does_not_read_costs_a_fixed_amount_and_its_turn(
    make_live: MakeLive, hosts: ScriptedHosts
) -> None:
    """A gigabyte is on offer: the turn is cancelled after some megabytes, connection and place are free."""
    live = make_live(max_busy=1)
    with raw(live, receive_bytes=4096) as client:
        body = {"message": f"pour {1 << 30}"}
        client.request("POST", "/v1/sessions/s/turns", body, {"Accept": "text/event-stream"})
        client.sock.recv(1)
        after = live.turn("other", "hello")  # waits for the only place
        closed = eventually_closed(client.sock)

    assert after.status == 200
    assert hosts.poured < 32 << 20
    assert closed
    assert live.turn("s", "hello").status == 200


def eventually_closed(sock: socket.socket) -> bool:
    """Whether the other end closes; what is still on its way is read."""
    sock.settimeout(HANG_S)
    with contextlib.suppress(ConnectionError):
        while sock.recv(1 << 20):
            pass
    return True


@pytest.mark.parametrize("when", ["in the queue", "in mid-turn", "in mid-stream"])
def test_a_client_that_vanishes_loses_its_turn_alone(make_live: MakeLive, hosts: ScriptedHosts, when: str) -> None:
    """A reset, as from a machine that fell over: the place is free, and the turns beside it are answered."""
    live = make_live(max_busy=1 if when == "in the queue" else 2)
    with running(lambda: live.turn("first", "hold first")) as first:
        hosts.arrive("first")
        with raw(live) as client:
            client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            message = f"pour {1 << 30}" if when == "in mid-stream" else "hold gone"
            headers = {"Accept": "text/event-stream"} if when == "in mid-stream" else {}
            client.request("POST", "/v1/sessions/s/turns", {"message": message}, headers)
            if when == "in the queue":
                eventually(lambda: live.pool.stats().queue_length == 1, "the waiting turn")
            elif when == "in mid-turn":
                hosts.arrive("gone")
            else:
                assert client.sock.recv(100)
        eventually(lambda: live.counts() == (1, 0, 1), "the place of the one that left")
        hosts.gates["first"].set()

    assert first[0].status == 200
    assert live.turn("s", "hello").status == 200


@pytest.mark.parametrize("part", ["nothing", "half a line", "half a body"])
def test_a_request_that_never_gets_whole_holds_nothing(
    make_live: MakeLive, monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    """Head and body have their time; then the connection is closed, the body's with a 400."""
    monkeypatch.setattr("agentao_gov.service.endpoints.BODY_S_MAX", 0.5)
    live = make_live()
    with raw(live) as client:
        if part == "half a line":
            client.sock.sendall(b"POST /v1/sess")
        elif part == "half a body":
            client.sock.sendall(client.head("POST", "/v1/sessions/s/turns", {"Content-Length": "99"}) + b'\r\n{"mess')
        answer = client.answer()
        meanwhile = live.turn("other", "hello")

    assert meanwhile.status == 200
    assert (b"400" in answer and b"invalid_request" in answer) if part == "half a body" else answer == b""


# -- many ----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_ten_thousand_sessions_of_one_tenant_cost_the_others_nothing(make_live: MakeLive) -> None:
    """They are counted, 1,000 are listed at a time, and a turn of another tenant has nothing to do with them."""
    live = make_live()
    live.turn("s", "hello")
    template = (live.archive.root / "t-default" / "s-s" / "session").read_bytes()
    for n in range(10_000):
        place = live.archive.root / "t-default" / f"s-many-{n}"
        place.mkdir(mode=0o700)
        (place / "session").write_bytes(template.replace(b'"session":"s"', f'"session":"many-{n}"'.encode()))

    listed = live.get("/v1/sessions?limit=1000").json
    one = live.turn("many-77", "recall")

    assert (listed["total"], len(listed["data"]), listed["has_more"]) == (10_001, 1_000, True)
    assert one.json["answer"] == "hello"
    assert live.get("/v1/status").status == 200


def test_what_is_wrong_with_a_body_is_said_in_json(make_live: MakeLive) -> None:
    """Deep nesting, NaN, lone surrogates, huge numbers, doubled keys: 400 or the last one's value, never a 500."""
    live = make_live()
    path = "/v1/sessions/s/turns"
    deep = b'{"message":' + b"[" * 100_000 + b"]" * 100_000 + b"}"
    bad = [
        deep,
        b'{"message": NaN}',
        b'{"message": "\\ud800"}',
        b'{"message": 1' + b"0" * 5_000 + b"}",
        b'{"message": ""}',
    ]

    answers = [live.send("POST", path, body) for body in bad]
    doubled = live.send("POST", path, b'{"message": "remember a", "message": "remember b"}')

    assert [(answer.status, answer.code) for answer in answers] == [(400, "invalid_request")] * len(bad)
    assert all(json.loads(answer.body) for answer in answers)
    assert doubled.status == 200


def test_a_session_whose_file_is_damaged_is_one_error_that_waiting_does_not_help(
    make_live: MakeLive, hosts: ScriptedHosts
) -> None:
    """No endless Retry-After, no traceback; it is left out of the list, can be deleted, and others go on."""
    live = make_live()
    live.turn("s", "remember it")
    live.turn("other", "remember it")
    live.pool.resize(dataclasses.replace(live.pool.limits, max_sessions=0))
    eventually(lambda: live.pool.stats().resident == 0, "an empty pool")
    live.pool.resize(dataclasses.replace(live.pool.limits, max_sessions=50))
    (live.archive.root / "t-default" / "s-s" / "session").write_bytes(b"no session\n")

    turn, look, listed = live.turn("s", "recall"), live.get("/v1/sessions/s"), live.get("/v1/sessions")
    deleted = live.send("DELETE", "/v1/sessions/s")

    for answer in (turn, look):
        assert (answer.status, answer.code) == (500, "session_damaged")
        assert "retry-after" not in answer.headers
        assert answer.headers["x-should-retry"] == "false"
        assert str(live.archive.root) not in answer.body.decode()
    assert [row["id"] for row in listed.json["data"]] == ["other"]
    assert (deleted.status, live.turn("s", "hello").status) == (200, 200)
    assert live.turn("other", "recall").json["answer"] == "remember it"
