"""MCP servers that sessions share in one process: how many there are, for whom, and until when."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from agentao_gov.clock import Deadline
from agentao_gov.governor import Governor, SessionKey
from agentao_gov.governor.session import GovernedSession
from agentao_gov.process import take_census
from tests.governor.harness import Harness, say
from tests.process import zoo

ZOO = Path(__file__).parents[1] / "process" / "mcp_zoo.py"
Open = Callable[[str, str, str], GovernedSession]


@pytest.fixture
def governor(harness: Harness) -> Iterator[Governor]:
    governor = Governor(ledger=harness.ledger)  # with an HTTP client of its own, which it closes
    yield governor
    governor.close()


@pytest.fixture
def open_session(harness: Harness, governor: Governor, tmp_path: Path) -> Iterator[Open]:
    """Opens a session of a tenant, whose server is shared so; closes it at the end."""
    opened: list[GovernedSession] = []

    def open_one(tenant: str, name: str, share: str) -> GovernedSession:
        server: dict[str, Any] = {"command": sys.executable, "args": ["-I", "-S", str(ZOO), "polite", str(tmp_path)]}
        tables: dict[str, Any] = {"mcp": {"servers": {"zoo": {**server, "share": share, "startup_timeout": 20}}}}
        spec = replace(harness.spec(name, **tables), key=SessionKey(tenant, name))
        opened.append(governor.open(spec, None, Deadline.after(30)))
        return opened[-1]

    yield open_one
    for session in opened:
        session.close(Deadline.after(5))


def servers(tmp_path: Path) -> list[int]:
    """The pids of the servers that were started, in order."""
    return [int(line.split()[0]) for line in (tmp_path / "started").read_text().splitlines()]


@pytest.mark.slow
@pytest.mark.timeout(60)
@pytest.mark.parametrize(("share", "expected"), [("session", 4), ("tenant", 2), ("process", 1)])
def test_sessions_share_what_the_profile_says(
    harness: Harness, open_session: Open, tmp_path: Path, share: str, expected: int
) -> None:
    """Two tenants with two sessions each: a server each, one a tenant, or one for all; every session can use it."""
    before = take_census().counts["mcp"]

    sessions = [open_session(tenant, f"{tenant}-{name}", share) for tenant in ("acme", "umbrella") for name in "ab"]
    reports = [harness.ask(s, say(text="after", tool={"name": "mcp_zoo_wait", "args": {}})) for s in sessions]

    assert [[call.outcome for call in report.tool_calls] for report in reports] == [["ok"]] * 4
    assert len(servers(tmp_path)) == expected
    assert take_census().counts["mcp"] - before == expected


def test_a_tenant_s_server_is_never_another_tenant_s(open_session: Open, tmp_path: Path) -> None:
    """Whatever one tenant's server keeps in its memory, the other's does not see."""
    open_session("acme", "a", "tenant")
    (first,) = servers(tmp_path)
    open_session("umbrella", "b", "tenant")
    open_session("acme", "c", "tenant")

    assert len(servers(tmp_path)) == 2
    assert servers(tmp_path)[0] == first


def test_a_shared_server_outlives_its_sessions_and_ends_with_the_governor(
    governor: Governor, open_session: Open, tmp_path: Path
) -> None:
    """The next session does not pay its start again; nobody outlives the service."""
    before = take_census().counts["mcp"]
    for name in "ab":
        open_session("acme", name, "tenant").close(Deadline.after(5))

    still = take_census().counts["mcp"] - before
    open_session("acme", "c", "tenant").kill()
    governor.close()

    assert (still, len(servers(tmp_path))) == (1, 1)
    assert zoo.until(lambda: take_census().counts["mcp"] == before)
