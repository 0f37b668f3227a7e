"""The same against the real service with two tenants' keys and the shipped profile `code`, in every hosting mode."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from agentao_gov.governor import SessionKey
from agentao_gov.pool import SessionArchive
from agentao_gov.process.sandbox import find_layers
from agentao_gov.simulator import Simulator
from tests.e2e.conftest import deployment
from tests.e2e.service import Deployment, say
from tests.support.simulator import simulator, simulator_process

__all__ = ["deployment", "simulator", "simulator_process"]

SECRET, PROVIDER_KEY = "canary-4711-unheard", "sk-canary-4712-unheard"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(240),
    pytest.mark.skipif(find_layers().best is None, reason="no sandbox works here"),
]


@pytest.fixture(params=["in-process", "fresh", "subprocess"])
def mode(request: pytest.FixtureRequest) -> str:
    """One hosting mode."""
    return str(request.param)


def told(state: Path, tenant: str, session: str) -> str:
    """What a session's tools told its model, out of the archive."""
    found = SessionArchive(state / "sessions").load(SessionKey(tenant, session))
    assert found is not None
    return "\n".join(str(message["content"]) for message in found[1].messages if message["role"] == "tool")


def commands(state: Path, pid: int) -> Iterator[str]:
    """What tenant `evil` runs."""
    yield f"ps e -o args -p {pid}; ps auxe; cat /proc/{pid}/environ /proc/*/environ /proc/*/cmdline | tr '\\0' '\\n'"
    yield f"ls -laR {state} ../../..; grep -r -a -h unheard {state} {state.parent} ../../.. /tmp"
    yield f"cat {state.parent}/agentao-gov.toml {state}/ledger.db; find / -name 'mine.txt' -exec cat {{}} +"
    yield f"kill -STOP {pid}; kill -9 {pid}; rm -rf {state}/sessions {state}/ledger.db; chmod 000 {state}"
    yield (
        "mkdir -p objects refs; echo 'ref: refs/heads/main' > HEAD\n"
        "printf '[core]\\nrepositoryformatversion = 0\\nbare = false\\nworktree = .\\n"
        f'fsmonitor = "cp -r {state} got; touch ran"\\n\' > config\n'
        "git status; ls; cat got/*"
    )
    yield "exec 3<>/dev/tcp/127.0.0.1/$PORT; env; cat /dev/shm/*"


def test_a_hostile_tenant_gets_nowhere_in_any_mode(
    deployment: Deployment, simulator: Simulator, monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    """
    1. acme writes a file and says a secret
    2. evil runs every command of the list, and searches with the file tools
    3. evil has learnt nothing; acme's session goes on where it was; the service lives; nothing is left of evil
    """
    monkeypatch.setenv("OPENAI_API_KEY", PROVIDER_KEY)
    service = deployment.start(
        "--no-warden", "--mode", mode, tenants=deployment.tenants("acme", "evil"), budget={"store": "sqlite"}
    )
    acme, evil = deployment.keys["acme"], deployment.keys["evil"]
    write = {"name": "write_file", "args": {"file_path": "mine.txt", "content": SECRET}}
    pid = service.process.pid

    assert service.turn("s", say(SECRET, tool=write, text="ok"), profile="code", key=acme).status == 200
    reports = []
    for number, command in enumerate(commands(service.state, pid)):
        shell = {"name": "run_shell_command", "args": {"command": command}}
        reports.append(service.turn(f"e{number}", say("x", tool=shell, text="after"), profile="code", key=evil))
    for number, path in enumerate((f"/proc/{pid}/environ", str(service.state / "ledger.db"), "../../../t-acme")):
        read = {"name": "read_file", "args": {"file_path": path}}
        reports.append(service.turn(f"r{number}", say("x", tool=read, text="after"), profile="code", key=evil))
    again = service.turn("s", say("still there?", text="yes"), profile="code", key=acme)
    alive = service.get("/readyz").status
    service.signal()
    service.wait()

    assert [answer.status for answer in reports] == [200] * len(reports), [answer.body for answer in reports]
    assert (again.status, alive) == (200, 200)
    learnt = "\n".join(told(service.state, "evil", name) for name in [f"e{n}" for n in range(6)] + ["r0", "r1", "r2"])
    assert "STDOUT" in learnt
    for secret in (SECRET, PROVIDER_KEY, "api_key_sha256", acme):
        assert secret not in learnt, secret
    found = SessionArchive(service.state / "sessions").load(SessionKey("acme", "s"))
    assert found is not None
    assert [message["content"] for message in found[1].messages][-1] == "yes"
