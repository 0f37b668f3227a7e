"""What a refusal tells: a tenant nothing of others' load nor of the operator's settings, the log all of it."""

from __future__ import annotations

import dataclasses
import hashlib
import logging
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from agentao_gov.governor.types import SessionKey
from agentao_gov.monitor import logs
from agentao_gov.service import request_limits
from tests.e2e.service import Answer, running
from tests.pool.bench import eventually
from tests.pool.scripted import ScriptedHosts
from tests.service.live import Live

#: Words that are about the whole service, or for whoever can edit its files.
OPERATORS = ("[pool]", "max_", "queue_", "Raise", "raise", "turns run", "in memory", "agentao-gov", "restart", "MCP")

#: Headers that differ from answer to answer.
OWN = ("date", "x-request-id")

TENANTS = {
    name: {"api_key_sha256": [hashlib.sha256(name.encode()).hexdigest()], "max_sessions": 2, "max_sessions_per_user": 1}
    for name in ("acme", "bolt")
}


@pytest.fixture
def hosts() -> ScriptedHosts:
    return ScriptedHosts()


@pytest.fixture
def live(tmp_path: Path, hosts: ScriptedHosts) -> Iterator[Live]:
    """Two tenants; one turn at a time, one that waits."""
    made = Live(tmp_path, hosts, tenants=TENANTS, max_busy=1, queue_limit=1)
    made.key = "bolt"
    yield made
    hosts.release(*list(hosts.held), *list(hosts.gates))
    made.close()


def queue_full(live: Live, hosts: ScriptedHosts) -> Answer:
    """Another tenant's turn runs, one of its own waits, and no more may."""
    live.turn("w", "hello")
    with running(lambda: live.turn("a", "hold g", key="acme")):
        hosts.arrive("g")
        with running(lambda: live.turn("w", "hello")):
            eventually(lambda: live.pool.stats().queue_length == 1)
            refused = live.turn("w2", "hello", user="bob")
            hosts.release("g")
    return refused


def queue_timeout(live: Live, hosts: ScriptedHosts) -> Answer:
    """Another tenant's turn runs for longer."""
    live.pool.resize(dataclasses.replace(live.pool.limits, queue_timeout_s=0.2))
    with running(lambda: live.turn("a", "hold g", key="acme")):
        hosts.arrive("g")
        refused = live.turn("b", "hello")
        hosts.release("g")
    return refused


def user_session_limit(live: Live, hosts: ScriptedHosts) -> Answer:
    """The user's one session is busy."""
    with running(lambda: live.turn("a", "hold g")):
        hosts.arrive("g")
        refused = live.turn("b", "hello")
        hosts.release("g")
    return refused


def turn_timeout(live: Live, hosts: ScriptedHosts) -> Answer:
    """The agent is not there in the turn's time."""
    hosts.hold("open b")
    refused = live.turn("b", "hello", profile="quick")
    hosts.release("open b")
    return refused


def stuck(live: Live, hosts: ScriptedHosts) -> Answer:
    """An earlier turn of the session never came back."""
    live.turn("b", "stick")
    return live.turn("b", "hello")


@pytest.mark.parametrize("refuse", [queue_full, queue_timeout, user_session_limit, turn_timeout, stuck])
def test_a_refusal_tells_the_tenant_what_it_may_know_and_the_log_the_rest(
    live: Live,
    hosts: ScriptedHosts,
    refuse: Callable[[Live, ScriptedHosts], Answer],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The same text whatever others do; settings and figures are on the log's line, with the turn's id."""
    with caplog.at_level(logging.INFO, "agentao_gov.service"):
        refused = refuse(live, hosts)
    lines = [line.gov_fields for line in caplog.records if line.getMessage() == "turn refused"]  # type: ignore[attr-defined]

    assert refused.code == refuse.__name__
    assert [word for word in (*OPERATORS, "acme") if word in refused.json["error"]["message"]] == []
    mine = [line for line in lines if line["turn_id"] == refused.headers["x-turn-id"]]
    assert [(line["tenant"], line["code"]) for line in mine] == [("bolt", refuse.__name__)]
    assert [word for word in OPERATORS if word in mine[0]["reason"]]


def test_a_full_door_tells_no_figures(
    tmp_path: Path, hosts: ScriptedHosts, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """How many requests are open is the operator's; counted, too."""
    monkeypatch.setattr(request_limits, "SPARE_REQUESTS", -4)
    monkeypatch.setattr(request_limits, "GUARANTEED_REQUESTS", 0)
    live = Live(tmp_path, hosts, max_busy=1, queue_limit=1)

    with caplog.at_level(logging.INFO, "agentao_gov.service"):
        refused = live.get("/v1/models")
    rejected = live.metrics()['rejections_total{reason="queue_full"}']
    live.close()

    assert (refused.status, refused.code) == (429, "queue_full")
    assert not any(letter.isdigit() for letter in refused.json["error"]["message"])
    assert "0 requests of tenant" in str([line.gov_fields for line in caplog.records])  # type: ignore[attr-defined]
    assert rejected == 1


def test_a_flood_of_those_turned_away_does_not_flood_the_log(
    tmp_path: Path, hosts: ScriptedHosts, caplog: pytest.LogCaptureFixture
) -> None:
    """Each is refused and counted; a page elsewhere, which needs no key, can ask for ever."""
    live = Live(tmp_path, hosts)
    asked = logs.RECORDS_MAX + 20

    with caplog.at_level(logging.INFO, "agentao_gov.service"):
        statuses = [live.get("/v1/models", headers={"Origin": "https://evil.example"}).status for _ in range(asked)]

    rejected = live.metrics()['rejections_total{reason="forbidden_origin"}']
    live.close()

    assert set(statuses) == {403}
    assert len([record for record in caplog.records if record.message == "request refused"]) == logs.RECORDS_MAX
    assert rejected == asked


def test_another_tenants_session_and_none_at_all_look_alike(live: Live) -> None:
    """Busy or not, in memory or on disk: status, headers and body are those of a session that was never there."""

    def answers() -> list[tuple[int, bytes, dict[str, str]]]:
        """What the other tenant reads; `date` is the clock's."""
        asked = [("GET", ""), ("DELETE", ""), ("POST", "/cancel")]
        got = [live.send(method, f"/v1/sessions/s{path}", {} if method == "POST" else None) for method, path in asked]
        return [
            (answer.status, answer.body, {name: value for name, value in answer.headers.items() if name not in OWN})
            for answer in got
        ]

    never = answers()
    live.turn("s", "remember x", key="acme")
    in_memory = answers()
    live.pool.resize(type(live.pool.limits)(max_sessions=0))
    eventually(lambda: live.pool.stats().resident == 0)
    on_disk = answers()

    assert live.archive.head(SessionKey("acme", "s")) is not None
    assert [status for status, _, _ in never] == [404] * 3
    assert b"session_not_found" in never[0][1]
    assert never == in_memory == on_disk
    assert live.get("/v1/sessions").json["data"] == []
