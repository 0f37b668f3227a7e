"""What one tenant does to the service keeps no other tenant out: two tenants with keys, one of them hostile."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

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

    with running(*[lambda: live.get("/v1/sessions/slow", key="evil") for _ in range(60)]) as asked:
        eventually(lambda: sum(answer is not None for answer in asked) >= 20, "evil's own refusals")
        seen = everything_of(live, hosts, "acme")
        writer = os.open(file, os.O_RDWR)
        file.unlink()
        os.write(writer, b"no session\n" * 100)
        os.close(writer)

    assert seen == WELL
    assert {answer.status for answer in asked} <= {404, 429, 503}
