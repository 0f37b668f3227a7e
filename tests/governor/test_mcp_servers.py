"""MCP servers of a profile: allowed, limited, marked, and gone with the session."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from agentao_gov.clock import Deadline
from agentao_gov.errors import ConfigError
from agentao_gov.governor import Outcome
from agentao_gov.governor.session import GovernedSession
from agentao_gov.process.sandbox import SandboxLayers, find_layers
from tests.governor.harness import Harness, say
from tests.governor.test_session_hangs import gone, wait_until
from tests.support.clock import FakeClock

SERVER = Path(__file__).with_name("mcp_server.py")
ODD = Path(__file__).with_name("odd_mcp_server.py")


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


@pytest.mark.slow
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


@pytest.mark.slow
@pytest.mark.parametrize("layer", ["bubblewrap", "landlock"])
def test_a_server_in_a_sandbox_works_and_sees_its_session_s_directory_alone(
    harness: Harness, limits: dict[str, Any], tmp_path: Path, layer: str
) -> None:
    """What it starts is held, too; its own program and what its arguments name it may read."""
    found = find_layers()
    only = SandboxLayers(found.bubblewrap) if layer == "bubblewrap" else SandboxLayers(landlock=found.landlock)
    if only.best is None:
        pytest.skip(f"{layer} does not work here")
    (tmp_path / "secret.txt").write_text("the neighbour's secret")
    options = {"sandbox_layers": lambda: only}
    session = harness.open(mcp=servers(sandbox=True), limits=limits, options=options)
    (session._spec.workdir / "own.txt").write_text("my own text")

    added = harness.ask(session, call("add", a=20, b=22))
    harness.ask(session, call("read", path=str(tmp_path / "secret.txt")))
    harness.ask(session, call("read", path="own.txt"))
    told = [str(message["content"]) for message in session.snapshot().messages if message["role"] == "tool"]
    session.close(Deadline.after(10))

    assert tool_outcomes(added) == [("add", "ok")]
    assert "neighbour" not in told[1]
    assert "my own text" in told[2]
    assert session.process_ids() == ()


def test_a_server_that_wants_a_sandbox_does_not_start_without_one(harness: Harness) -> None:
    """Its session does not open, and the error says what is missing."""
    with pytest.raises(ConfigError, match="MCP server my-lab says sandbox = true"):
        harness.open(mcp=servers(sandbox=True), options={"sandbox_layers": SandboxLayers})


@pytest.mark.slow
def test_killing_a_session_ends_its_servers_at_once(harness: Harness, session: GovernedSession) -> None:
    """The pool's last resort."""
    (pid,) = session.process_ids()

    session.kill()

    assert wait_until(lambda: gone(pid))


@pytest.mark.slow
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


@pytest.mark.slow
def test_a_server_that_does_not_start_is_a_warning_not_a_failure(harness: Harness) -> None:
    """The session works without it, and every report says so."""
    session = harness.open(mcp=servers(args=["-c", "raise SystemExit(1)"], startup_timeout=5))

    report = harness.ask(session, say(text="ok"))

    assert report.outcome == Outcome.ANSWERED
    assert any("my-lab" in warning for warning in report.warnings)


@pytest.mark.slow
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


def odd(name: str, *tools: str, share: str = "session", **does: Any) -> dict[str, Any]:
    """A server of plain Python, which starts fast and does as it is told."""
    said = json.dumps({"name": name, "tools": tools, **does})
    return {"command": sys.executable, "args": ["-I", "-S", str(ODD), said], "share": share, "startup_timeout": 15}


def use(tool: str) -> str:
    return say(text="after", tool={"name": tool, "args": {}})


def told(session: GovernedSession) -> list[str]:
    """What tools answered the model."""
    return [str(message["content"]) for message in session.snapshot().messages if message["role"] == "tool"]


def test_what_a_server_writes_to_its_standard_error_is_bounded_harmless_and_named(
    harness: Harness, caplog: pytest.LogCaptureFixture
) -> None:
    """An endless writer made 6 GB of log in 70 s, with escapes for terminals and forged records."""
    session = harness.open(mcp={"servers": {"loud": odd("loud", "ask", stderr=-1)}}, limits={"turn_timeout": 30})

    report = harness.ask(session, use("mcp_loud_ask"))

    assert [call.outcome for call in report.tool_calls] == ["ok"]
    said = [record.getMessage() for record in caplog.records if "forged" in record.getMessage()]
    assert 0 < len(said) <= 60
    assert all(text.startswith("In the MCP server loud of session acme/s1: ") for text in said)
    assert "\x1b" not in caplog.text


def test_a_line_that_is_no_json_is_one_line_in_the_log(harness: Harness, caplog: pytest.LogCaptureFixture) -> None:
    """Each wrote a traceback of eleven lines; servers that print a greeting are many."""
    session = harness.open(mcp={"servers": {"chatty": odd("chatty", "ask", stdout=100)}}, limits={"turn_timeout": 30})

    report = harness.ask(session, use("mcp_chatty_ask"))

    assert [call.outcome for call in report.tool_calls] == ["ok"]
    junk = [record for record in caplog.records if "no JSON-RPC message" in record.getMessage()]
    assert 0 < len(junk) <= 60
    assert all(record.exc_info is None for record in junk)
    assert "Traceback" not in caplog.text


@pytest.mark.parametrize(
    ("first", "second"),
    [("session", "session"), ("session", "process"), ("process", "session"), ("process", "process")],
)
def test_of_two_tools_with_one_name_the_first_server_s_is_used_and_the_report_says_so(
    harness: Harness, first: str, second: str
) -> None:
    """`pay` with `test_refund` and `pay_test` with `refund` are one name, and which one ran depended on `share`."""
    pay, pay_test = odd("pay", "test_refund", share=first), odd("pay_test", "refund", share=second)
    governor = harness.governor()
    spec = harness.spec(mcp={"servers": {"pay": pay, "pay_test": pay_test}}, limits={"turn_timeout": 30})
    session = governor.open(spec, None, Deadline.after(30))
    harness.opened.append(session)

    report = harness.ask(session, use("mcp_pay_test_refund"))

    governor._shared.close()
    assert told(session) == ["pay answers"]
    (warning,) = report.warnings
    assert "pay and pay_test have one name, mcp_pay_test_refund: that of pay is used" in warning


@pytest.mark.parametrize("share", ["session", "process"])
def test_a_server_that_does_not_start_is_tried_again_with_a_pause_that_grows(
    harness: Harness, tmp_path: Path, share: str
) -> None:
    """
    1. it is not there, and the report says so
    2. within the pause a turn does not wait for it
    3. after the pause it is tried, and the next pause is longer
    4. once it starts, its tool works in the same session, and nothing is said any more
    """
    clock, starts = FakeClock(), tmp_path / "starts"
    server = odd("late", "ask", share=share, until=str(tmp_path / "ready"), starts=str(starts))
    governor = harness.governor(clock=clock)
    spec = harness.spec(mcp={"servers": {"late": server}}, limits={"turn_timeout": 30})
    session = governor.open(spec, None, Deadline.after(30))
    harness.opened.append(session)
    opening = starts.stat().st_size

    absent = harness.ask(session, say(text="hello"))
    clock.advance(6)
    harness.ask(session, say(text="hello"))
    tried = starts.stat().st_size
    clock.advance(6)
    (tmp_path / "ready").touch()
    paused = harness.ask(session, say(text="hello"))
    clock.advance(6)
    there = harness.ask(session, use("mcp_late_ask"))
    session.close(Deadline.after(10))
    governor._shared.close()

    assert ["late is not available" in warning for warning in absent.warnings] == [True]
    assert (opening, tried, starts.stat().st_size) == (1, 2, 3)
    assert paused.warnings == absent.warnings
    assert [call.outcome for call in there.tool_calls] == ["ok"]
    assert there.warnings == ()


@pytest.mark.parametrize(
    ("limits", "own", "limit"),
    [
        ({"tool_timeout": 0.3}, {}, "0.3 s"),
        ({"tool_timeout": 25}, {"request_timeout": 0.4}, "0.4 s"),
        ({"tool_timeout": 25, "tool_timeouts": {"mcp_lab_hang": 0.5}}, {"request_timeout": 20}, "0.5 s"),
    ],
)
def test_the_tool_timeout_covers_the_tools_of_a_server_that_has_none_of_its_own(
    harness: Harness, limits: dict[str, Any], own: dict[str, Any], limit: str
) -> None:
    """It says every tool call; what is said of one server or of one tool is said more exactly."""
    server = {**odd("lab", "hang"), **own}

    session = harness.open(mcp={"servers": {"lab": server}}, limits={"turn_timeout": 30, **limits})
    report = harness.ask(session, use("mcp_lab_hang"))

    assert [call.outcome for call in report.tool_calls] == ["timeout"]
    assert f"stopped at its limit of {limit}" in told(session)[0]
