"""MCP servers of a profile: allowed, limited, marked, and gone with the session."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from agentao_gov.clock import Deadline
from agentao_gov.governor import Outcome
from agentao_gov.governor.session import GovernedSession
from tests.governor.harness import Harness, say
from tests.governor.test_session_hangs import gone, wait_until

pytestmark = pytest.mark.slow

SERVER = Path(__file__).with_name("mcp_server.py")


def servers(**settings: Any) -> dict[str, Any]:
    command = {"command": sys.executable, "args": [str(SERVER)], "startup_timeout": 20, "request_timeout": 1}
    return {"servers": {"my-lab": {**command, **settings}}}


def call(name: str, **arguments: Any) -> str:
    return say(text="after", tool={"name": f"mcp_my_lab_{name}", "args": arguments})


@pytest.fixture(scope="module")
def limits() -> dict[str, Any]:
    return {"turn_timeout": 30, "cancel_grace": 2}


@pytest.fixture
def session(harness: Harness, limits: dict[str, Any]) -> Iterator[GovernedSession]:
    """One server for several turns of one test: starting it takes a second."""
    return harness.open(mcp=servers(), limits=limits)  # type: ignore[return-value]


def tool_outcomes(report: Any) -> list[tuple[str, str]]:
    return [(done.name.removeprefix("mcp_my_lab_"), done.outcome) for done in report.tool_calls]


def test_a_configured_server_is_used_limited_and_ended(harness: Harness, session: GovernedSession) -> None:
    """
    1. its tools run, also in read-only mode: configuring the server is the permission
    2. a call at its limit ends, the model is told, the server stays usable
    3. a call in flight ends with the turn
    4. its process is the session's
    5. closing ends it and what it started
    """
    added = harness.ask(session, call("add", a=20, b=22))
    late = harness.ask(session, call("slow"))
    helped = harness.ask(session, call("helper"))
    cut = harness.ask(session, call("slow", seconds=59), deadline_s=0.4)
    told = [str(message["content"]) for message in session.snapshot().messages if message["role"] == "tool"]
    pids = [int(word) for word in told[2].split() if word.isdigit()]
    roots = session.process_ids()
    session.close(Deadline.after(10))

    assert (tool_outcomes(added), added.outcome) == ([("add", "ok")], Outcome.ANSWERED)
    assert "42" in told[0]
    assert (tool_outcomes(late), late.outcome) == ([("slow", "timeout")], Outcome.ANSWERED)
    assert tool_outcomes(helped) == [("helper", "ok")]
    assert (tool_outcomes(cut), cut.outcome) == ([("slow", "cancelled")], Outcome.TURN_TIMEOUT)
    assert pids[0] in roots
    assert wait_until(lambda: all(map(gone, pids)))
    assert session.process_ids() == ()


def test_killing_a_session_ends_its_servers_at_once(harness: Harness, session: GovernedSession) -> None:
    """The pool's last resort."""
    (pid,) = session.process_ids()

    session.kill()

    assert wait_until(lambda: gone(pid))


def test_closing_does_not_wait_for_a_stubborn_server_beyond_its_deadline(harness: Harness) -> None:
    """One that ignores end-of-input takes agentao four seconds."""
    stubborn = (
        "import runpy, sys, threading; sys.argv[0] = sys.argv[1]; runpy.run_path(sys.argv[1], run_name='__main__')"
    )
    code = f"{stubborn}; threading.Event().wait()"
    session = harness.open(mcp=servers(args=["-c", code, str(SERVER)]))
    (pid,) = session.process_ids()
    began = time.monotonic()

    session.close(Deadline.after(0.3))

    assert time.monotonic() - began < 3
    assert wait_until(lambda: gone(pid))


def test_a_server_that_does_not_start_is_a_warning_not_a_failure(harness: Harness) -> None:
    """The session works without it, and every report says so."""
    session = harness.open(mcp=servers(args=["-c", "raise SystemExit(1)"], startup_timeout=5))

    report = harness.ask(session, say(text="ok"))

    assert report.outcome == Outcome.ANSWERED
    assert any("my-lab" in warning for warning in report.warnings)


def test_a_shared_server_serves_two_sessions_and_outlives_each(harness: Harness) -> None:
    """
    1. two sessions of a tenant, one process
    2. neither session owns it: killing one leaves the other's tool working
    3. it ends with the governor
    """
    governor = harness.governor()
    spec = partial(harness.spec, mcp=servers(share="tenant"))
    one, two = (governor.open(spec(name), None, Deadline.after(30)) for name in ("one", "two"))

    first, second = harness.ask(one, call("helper")), harness.ask(two, call("helper"))
    told = [str(m["content"]) for s in (one, two) for m in s.snapshot().messages if m["role"] == "tool"]
    pids = [[int(word) for word in text.split() if word.isdigit()] for text in told]
    owned = (one.process_ids(), two.process_ids())
    one.kill()
    after = harness.ask(two, call("add", a=1, b=2))
    two.close(Deadline.after(10))
    alive = not gone(pids[0][0])
    governor._shared.close()

    assert [tool_outcomes(report) for report in (first, second)] == [[("helper", "ok")]] * 2
    assert pids[0][0] == pids[1][0]
    assert owned == ((), ())
    assert tool_outcomes(after) == [("add", "ok")]
    assert alive
    assert wait_until(lambda: all(gone(pid) for pair in pids for pid in pair))
