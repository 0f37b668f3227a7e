"""What one tenant does to the service keeps no other tenant out: two tenants with keys, one of them hostile."""

from __future__ import annotations

import contextlib
import hashlib
import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from agentao_gov.service.executors import RUNNING_MAX
from tests.e2e.service import Answer, running
from tests.pool.bench import eventually
from tests.pool.scripted import HANG_S, ScriptedHosts
from tests.service.live import Live

TENANTS: dict[str, Any] = {
    name: {"api_key_sha256": [hashlib.sha256(name.encode()).hexdigest()]} for name in ("acme", "evil")
}


@pytest.fixture
def hosts() -> Iterator[ScriptedHosts]:
    made = ScriptedHosts()
    yield made
    made.release(*list(made.held), *list(made.gates))


@pytest.fixture
def live(tmp_path: Path, hosts: ScriptedHosts) -> Iterator[Live]:
    made = Live(tmp_path, hosts, tenants=TENANTS)
    yield made
    hosts.release(*list(hosts.held), *list(hosts.gates))
    eventually(lambda: made.counts() == (0, 0, 0), "every place and count back")
    made.close()


def everything_of(live: Live, hosts: ScriptedHosts, key: str) -> dict[str, int]:
    """Each thing that a tenant does, and the status it gets."""
    answers: dict[str, Answer] = {}
    hosts.hold("mine")
    with running(lambda: live.turn("mine", "hold mine", key=key)):
        assert hosts.reached["mine"].wait(HANG_S)
        answers["list"] = live.get("/v1/sessions", key=key)
        answers["session"] = live.get("/v1/sessions/mine", key=key)
        answers["status"] = live.get("/v1/status", key=key)
        answers["models"] = live.get("/v1/models", key=key)
        answers["cancel"] = live.post("/v1/sessions/mine/cancel", None, key=key)
        hosts.release("mine")
    answers["turn"] = live.turn("mine", "remember it", key=key)
    answers["delete"] = live.send("DELETE", "/v1/sessions/mine", key=key)
    answers["metrics"] = live.get("/metrics")
    answers["ready"] = live.get("/readyz")
    return {name: answer.status for name, answer in answers.items()}


#: What it gets when nobody is in its way.
WELL = dict.fromkeys(("list", "session", "status", "models", "cancel", "turn", "delete", "metrics", "ready"), 200)


def test_reads_of_a_tenant_that_hang_keep_nobody_else_waiting(live: Live, hosts: ScriptedHosts) -> None:
    """Sixty looks at a session whose file never answers, more than all threads there are: others' calls are served."""
    live.turn("slow", "remember it", key="evil")
    (file,) = (live.archive.root / "t-evil" / "s-slow").glob("session*")
    live.send("DELETE", "/v1/sessions/slow", key="evil")
    file.parent.mkdir(exist_ok=True, mode=0o700)
    os.mkfifo(file)

    def reading() -> bool:
        return sum(thread.name.startswith("gov-reads") for thread in threading.enumerate()) >= RUNNING_MAX

    with running(*[lambda: live.get("/v1/sessions/slow", key="evil") for _ in range(60)]) as asked:
        try:
            eventually(reading, "all of evil's threads")
            seen = everything_of(live, hosts, "acme")
        finally:
            # Ends the reads, also where the test has failed: a thread that reads for ever would keep the tests alive.
            writer = os.open(file, os.O_RDWR)
            file.unlink()
            os.write(writer, b"no session\n" * 100)
            os.close(writer)

    assert seen == WELL
    assert {answer.status for answer in asked} <= {404, 429, 500, 503}


def half_sent(live: Live, key: str | None) -> socket.socket:
    """A turn whose body will never be whole."""
    client = socket.create_connection(("127.0.0.1", live.port), timeout=HANG_S)
    authorization = f"Authorization: Bearer {key}\r\n" if key else ""
    head = f"POST /v1/sessions/x/turns HTTP/1.1\r\nHost: a\r\nContent-Length: 1000\r\n{authorization}\r\n"
    client.sendall(head.encode() + b"{")
    return client


def status_of(client: socket.socket) -> int | None:
    """What was answered so far."""
    client.setblocking(False)
    with contextlib.suppress(BlockingIOError):
        return int(client.recv(65536).split(b" ", 2)[1])
    return None


def test_slow_bodies_of_a_tenant_keep_nobody_else_out(live: Live, hosts: ScriptedHosts) -> None:
    """It opens requests until it is refused; everyone else is served as if it were not there."""
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(half_sent(live, "evil")) for _ in range(600)]
        eventually(lambda: live.get("/v1/models", key="evil").status == 429, "evil's own refusal")
        seen = everything_of(live, hosts, "acme")
        statuses = {status_of(client) for client in clients}

    assert seen == WELL
    assert statuses == {None, 429}


def test_a_body_without_a_key_is_refused_before_it_is_read(live: Live, hosts: ScriptedHosts) -> None:
    """Each of them is answered at once, and none of them holds anything."""
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(half_sent(live, None)) for _ in range(100)]
        for client in clients:
            assert client.recv(65536).startswith(b"HTTP/1.1 401 ")
        seen = everything_of(live, hosts, "acme")

    assert seen == WELL


@pytest.mark.parametrize(
    ("given", "kept"), [("abc-123", True), (None, False), ("", False), ("a b", False), ("x" * 129, False)]
)
def test_every_answer_has_a_request_id_and_a_callers_own_is_kept(live: Live, given: str | None, kept: bool) -> None:
    """Also of what is refused, and of what is no HTTP."""
    headers = {} if given is None else {"X-Request-Id": given}
    for path in ("/healthz", "/v1/models", "/nowhere"):
        told = live.get(path, headers=headers).headers["x-request-id"]

        assert (told == given) is kept
        assert told
