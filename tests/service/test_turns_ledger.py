"""The ledger through the real service: what a client that leaves is charged, and that no store means no model call."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from agentao_gov.budget import Scope, ScopeLimit, SqliteStore
from agentao_gov.budget.journal import decode
from agentao_gov.simulator import Simulator
from tests.budget.test_store_fail_closed import flip, other_file
from tests.e2e.raw import raw
from tests.e2e.service import Answer, Deployment, Service, running, say, wait_until
from tests.support.redis_server import RedisServer, redis_server

__all__ = ["redis_server"]

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]

#: Holds the file until its standard input ends, from a process of its own.
HOLDER = """
import sqlite3, sys
held = sqlite3.connect(sys.argv[1], isolation_level=None)
held.execute("BEGIN EXCLUSIVE")
print("held", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def deployment(tmp_path: Path, simulator: Simulator) -> Iterator[Deployment]:
    made = Deployment(tmp_path, simulator)
    yield made
    made.close()


def calls(simulator: Simulator) -> int:
    return simulator.truth(requests=False).total.calls


# ── a client that leaves ──────────────────────────────────────────────────────────────────────────


def is_idle(service: Service, session: str) -> bool:
    return bool(service.get(f"/v1/sessions/{session}").json["state"] == "idle")


def leave(service: Service, path: str, body: Any, headers: dict[str, str]) -> None:
    """Reads a stream until the model's first words are there, and closes the connection."""
    with raw(service) as connection:
        connection.request("POST", path, body, headers)
        seen = b""
        while b"alpha" not in seen:
            found = connection.sock.recv(65536)
            assert found, seen
            seen += found


def test_a_client_gone_in_mid_stream_is_charged_what_may_have_been_produced(
    deployment: Deployment, simulator: Simulator
) -> None:
    """Truth ≤ ledger ≤ truth + the bound of the call, and nothing stays reserved: with either way of streaming."""
    service = deployment.start("--no-warden")
    message = say(text="alpha beta gamma delta " * 20, fault={"kind": "stall", "after": 20})
    chat = {"model": "qa", "stream": True, "messages": [{"role": "user", "content": message}]}
    native = {"message": message, "profile": "qa"}
    books = []

    leave(service, "/v1/chat/completions", chat, {"X-Session-Id": "chat"})
    leave(service, "/v1/sessions/native/turns", native, {"Accept": "text/event-stream"})
    truth = simulator.wait_for(client_gone=2, idle=True).total
    for session in ("chat", "native"):
        wait_until(partial(is_idle, service, session), "the idle session")
    with closing(SqliteStore(service.state / "ledger.db")) as store:
        (tenant,) = store.balances([ScopeLimit(Scope("tenant", "default"), None)])
        books = [balance for balance in store.all_balances() if balance.used]
        bounds = [entry.reserved for _, text, _ in store.journal() if (entry := decode(text)).kind == "reserve"]

    assert len(bounds) == truth.calls == 2
    assert truth.completion_tokens >= 40
    assert truth.total_tokens <= tenant.used <= truth.total_tokens + sum(bounds)
    assert tenant.estimated == tenant.used
    assert {balance.scope.kind for balance in books} == {"tenant", "user", "session"}
    assert all(balance.reserved == 0 for balance in books)


# ── a store that fails ────────────────────────────────────────────────────────────────────────────


def ask(service: Service) -> list[Answer]:
    """All ways at once: in a session that is there, in a new one, without one, streamed."""
    chat = {"model": "qa", "messages": [{"role": "user", "content": "hello"}]}
    with running(
        lambda: service.turn("old", "hello"),
        lambda: service.turn("new", "hello"),
        lambda: service.post("/v1/chat/completions", chat),
        lambda: service.post("/v1/chat/completions", chat | {"stream": True}),
    ) as answers:
        pass
    return answers


def assert_refused(service: Service, simulator: Simulator) -> None:
    """503 for everyone, with nothing of this machine in it, and not one model call."""
    before = calls(simulator)
    answers = ask(service)

    assert [(answer.status, answer.code) for answer in answers] == [(503, "ledger_unavailable")] * len(answers)
    assert all(str(service.state).encode() not in answer.body for answer in answers)
    assert all(int(answer.headers["retry-after"]) >= 1 for answer in answers)
    assert calls(simulator) == before
    wait_until(lambda: service.get("/readyz").status == 503, "the service to say that it is not ready")


@contextmanager
def held(path: Path) -> Iterator[None]:
    """Another process holds the file exclusively."""
    command = [sys.executable, "-c", HOLDER, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        yield
        holder.communicate(timeout=20)


def test_a_damaged_file_put_in_its_place_refuses(deployment: Deployment, simulator: Simulator) -> None:
    """As an editor or a restore writes it: a new file under the old name."""
    service = deployment.start("--no-warden")
    assert service.turn("old", "hello").status == 200
    ledger = service.state / "ledger.db"
    copy = ledger.with_name("copy.db")
    copy.write_bytes(ledger.read_bytes())
    flip(copy)

    copy.replace(ledger)
    # The path is looked at every 50 ms.
    wait_until(lambda: service.turn("old", "hello").status == 503, "the first refusal")

    assert_refused(service, simulator)


def test_an_older_copy_written_over_it_refuses(deployment: Deployment, simulator: Simulator) -> None:
    """`cp backup.db ledger.db`: the name and the file are the same, and what is in it is yesterday's."""
    service = deployment.start("--no-warden")
    ledger = service.state / "ledger.db"
    assert service.turn("old", "hello").status == 200
    backup = ledger.with_name("backup.db")
    shutil.copyfile(ledger, backup)
    # The counter that tells the two apart is raised with every heartbeat.
    before = counter(ledger)
    wait_until(lambda: counter(ledger) > before + 1, "two heartbeats")

    shutil.copyfile(backup, ledger)
    wait_until(lambda: service.turn("old", "hello").status == 503, "the first refusal")

    assert_refused(service, simulator)


def counter(ledger: Path) -> int:
    """SQLite's change counter of a file."""
    return int.from_bytes(ledger.read_bytes()[24:28])


@pytest.mark.parametrize("damage", [flip, other_file])
def test_on_a_damaged_file_no_service_begins(
    deployment: Deployment, simulator: Simulator, damage: Callable[[Path], None]
) -> None:
    """Exit code 9 before it listens."""
    service = deployment.start("--no-warden")
    assert service.turn("old", "hello").status == 200
    service.stop()
    before = calls(simulator)
    damage(service.state / "ledger.db")

    again = deployment.launch("--no-warden")

    assert again.wait() == 9
    assert not again.events("listening")
    assert calls(simulator) == before


def test_a_file_that_another_process_holds_refuses_and_serves_again_after_it(
    deployment: Deployment, simulator: Simulator
) -> None:
    """Somebody's tool with an open transaction."""
    service = deployment.start("--no-warden")
    assert service.turn("old", "hello").status == 200

    with held(service.state / "ledger.db"):
        assert_refused(service, simulator)
    answers = ask(service)

    assert [answer.status for answer in answers] == [200] * len(answers)
    wait_until(lambda: service.get("/readyz").status == 200, "readiness")


@pytest.mark.redis
def test_a_lost_redis_refuses(deployment: Deployment, simulator: Simulator, redis_server: RedisServer) -> None:
    """The connection is gone in the middle of the service's life."""
    service = deployment.start("--no-warden", budget={"store": redis_server.url})
    assert service.turn("old", "hello").status == 200

    redis_server.kill()

    assert_refused(service, simulator)
