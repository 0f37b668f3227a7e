"""Whatever hangs, the turn ends by its deadline plus grace, with one report, and nothing it started lives on.

Asserted on the report and on processes; the only timing is a hang guard many times the limit.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import pytest
from agentao.host import AsyncToolBase, Tool

from agentao_gov.governor import Outcome, TurnReport
from tests.governor.harness import HANG_S, Harness, say

pytestmark = pytest.mark.usefixtures("on_each_wire")

SHELL: dict[str, Any] = {"permission_mode": "full-access", "allow": ["run_shell_command"], "sandbox": "off"}
SHORT = {"turn_timeout": 1.0, "cancel_grace": 2.0, "tool_timeout": 0.5}
PATIENT = {"turn_timeout": 1.5, "cancel_grace": 2.0, "tool_timeout": 60.0}


def wait_until(holds: Callable[[], bool]) -> bool:
    """Waits for a condition that another process brings about; False if it hangs."""
    until = time.monotonic() + HANG_S
    while time.monotonic() < until:
        if holds():
            return True
        threading.Event().wait(0.01)
    return False


def gone(pid: int) -> bool:
    """Whether a process runs no more; a zombie does not run."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] in "ZX"
    except OSError:
        return True


def pids(directory: Path) -> list[int]:
    """What the commands of a test wrote down about themselves."""
    return [int(line) for file in sorted(directory.glob("pid*")) for line in file.read_text().split()]


def shell(command: str, **more: Any) -> str:
    return say(text="after", tool={"name": "run_shell_command", "args": {"command": command, **more}})


@pytest.mark.parametrize("fault", ["hang", "stall", "drip"])
def test_a_model_that_says_nothing_more_is_left_at_the_deadline(harness: Harness, fault: str) -> None:
    """No first byte, silence in mid-stream, a byte now and then for ever."""
    report = harness.run(say(text="a b c d e f", fault=fault), limits=SHORT)

    assert report.outcome == Outcome.TURN_TIMEOUT
    # The provider sees the connection go: it stops generating.
    assert harness.simulator.wait_for(client_gone=1).total.in_flight == 0


@pytest.mark.parametrize("status", [429, 500])
def test_a_long_retry_after_does_not_outlast_the_turn(harness: Harness, status: int) -> None:
    """The reason is reported instead of a time-out that would hide it."""
    fault = {"kind": "status", "status": status, "retry_after": 3600}

    report = harness.run(say(fault=fault), limits=SHORT)

    assert report.outcome == Outcome.MODEL_ERROR
    assert str(status) in (report.detail or "")
    assert "3600" in (report.detail or "")


def test_a_cancel_wakes_a_retry_pause(harness: Harness) -> None:
    """The pause is not waited out."""
    session = harness.open(limits={"turn_timeout": 60})
    reports: list[TurnReport] = []
    message = say(fault={"kind": "status", "status": 429, "retry_after": 50})
    thread = threading.Thread(target=lambda: reports.append(harness.ask(session, message)), daemon=True)
    thread.start()
    harness.simulator.wait_for(refused=1)

    session.cancel("cancelled")

    thread.join(HANG_S)
    assert reports[0].outcome == Outcome.CANCELLED
    assert reports[0].usage.llm_calls == 1


def test_a_wait_for_tokens_ends_at_the_deadline_and_at_a_cancel(harness: Harness) -> None:
    """Another turn holds the budget; this one waits fairly, but not for ever."""
    from agentao_gov.budget.types import ReserveRequest, Scope, ScopeLimit
    from agentao_gov.clock import Deadline

    tenant = ScopeLimit(Scope("tenant", "acme"), 10_000)
    holder = ReserveRequest("held", (tenant,), 9_000, 1, 1, "acme", "bob")
    harness.ledger.reserve(holder, deadline=Deadline.after(5))
    session = harness.open(limits=SHORT)
    scopes = session._scopes
    session._scopes = lambda request: (tenant, *scopes(request)[1:])

    report = harness.ask(session, "hello")

    assert report.outcome == Outcome.TURN_TIMEOUT
    assert harness.simulator.truth(requests=False).total.calls == 0


def test_a_shell_command_with_children_is_gone_with_the_turn(harness: Harness) -> None:
    """The whole process group, and who left it."""
    command = "echo $$ > pid1; (sleep 300 & echo $! > pid2; setsid sleep 300 & echo $! > pid3; sleep 300)"

    report = harness.run(shell(command), tools=SHELL, limits=PATIENT)

    assert report.outcome == Outcome.TURN_TIMEOUT
    assert [(call.name, call.outcome) for call in report.tool_calls] == [("run_shell_command", "cancelled")]
    started = pids(harness.opened[0]._spec.workdir)
    assert len(started) == 3
    assert wait_until(lambda: all(map(gone, started)))


def test_a_shell_command_at_its_limit_is_gone_and_the_model_goes_on(harness: Harness) -> None:
    """The tool's own limit: the process group dies, the model is told, the turn is answered."""
    command = "echo $$ > pid1; echo partial; sleep 300 & echo $! > pid2; setsid sleep 300 & echo $! > pid3; sleep 300"

    report = harness.run(shell(command, timeout=9999), tools=SHELL, limits={"tool_timeout": 0.7})

    assert (report.outcome, report.answer) == (Outcome.ANSWERED, "after")
    assert [call.outcome for call in report.tool_calls] == ["timeout"]
    started = pids(harness.opened[0]._spec.workdir)
    assert len(started) == 3
    assert wait_until(lambda: all(map(gone, started)))
    told = [m for m in harness.opened[0].snapshot().messages if m["role"] == "tool"]
    assert "0.7 s" in told[0]["content"]
    assert "partial" in told[0]["content"]


def test_a_silent_command_cannot_ask_for_more_than_its_limit(harness: Harness) -> None:
    """agentao's shell takes its inactivity limit from the model, without an upper bound."""
    limits = {"tool_timeouts": {"run_shell_command": 0.5}, "tool_timeout": 30}

    report = harness.run(shell("sleep 300", timeout=9999), tools=SHELL, limits=limits)

    assert [call.outcome for call in report.tool_calls] == ["timeout"]


def test_background_shells_end_with_the_turn(harness: Harness) -> None:
    """They outlive even `agent.close()` in plain agentao."""
    message = shell("echo $$ > pid1; setsid sleep 300 & echo $! > pid2; sleep 300", is_background=True)

    report = harness.run(message, tools=SHELL, limits={"turn_timeout": 30})

    assert report.outcome == Outcome.ANSWERED
    started = pids(harness.opened[-1]._spec.workdir)
    assert wait_until(lambda: all(map(gone, started)))


def test_what_a_finished_command_left_running_ends_with_the_turn(harness: Harness) -> None:
    """`cmd &` is no way to get a process that lives on."""
    report = harness.run(shell("sleep 300 > /dev/null 2>&1 & echo $! > pid1"), tools=SHELL)

    assert report.outcome == Outcome.ANSWERED
    started = pids(harness.opened[-1]._spec.workdir)
    assert len(started) == 1
    assert wait_until(lambda: all(map(gone, started)))


class Sleeper(Tool):
    """A Python tool that does not look at its cancellation."""

    name = "sleeper"
    description = "sleeps"
    is_read_only = True
    parameters: ClassVar[dict[str, Any]] = {"type": "object", "properties": {}}

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.begun = threading.Event()
        self.release = threading.Event()

    def execute(self, **_: Any) -> str:
        self.begun.set()
        self.release.wait(HANG_S * 4)
        return "late"


class AsyncSleeper(AsyncToolBase):
    """An async tool that waits for ever, and cleans up when it is cancelled."""

    name = "async_sleeper"
    description = "sleeps"
    is_read_only = True
    parameters: ClassVar[dict[str, Any]] = {"type": "object", "properties": {}}

    def __init__(self, *, stubborn: bool = False) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.cleaned = threading.Event()
        self._stubborn = stubborn
        self.release = threading.Event()

    async def async_execute(self, **_: Any) -> str:
        try:
            if self._stubborn:
                self.release.wait(HANG_S * 4)  # blocks its loop: nothing can cancel it
            await asyncio.sleep(HANG_S * 4)
        finally:
            self.cleaned.set()
        return "late"


ALLOWED = {"allow": ["sleeper", "async_sleeper"]}


def use(name: str) -> str:
    return say(text="after", tool={"name": name, "args": {}})


def test_an_async_tool_is_cancelled_at_the_deadline(harness: Harness) -> None:
    """agentao's synchronous path runs it in `asyncio.run`, where no cancel arrives."""
    tool = AsyncSleeper()

    report = run_with(harness, tool, limits=PATIENT)

    assert report.outcome == Outcome.TURN_TIMEOUT
    assert [call.outcome for call in report.tool_calls] == ["cancelled"]
    assert tool.cleaned.wait(HANG_S)
    assert not harness.opened[0].stuck


def test_an_async_tool_at_its_limit_is_cancelled_and_the_model_goes_on(harness: Harness) -> None:
    """The tool's clean-up runs."""
    tool = AsyncSleeper()

    report = run_with(harness, tool, limits={"tool_timeout": 0.3})

    assert report.outcome == Outcome.ANSWERED
    assert [call.outcome for call in report.tool_calls] == ["timeout"]
    assert tool.cleaned.is_set()


@pytest.mark.parametrize("make", [Sleeper, lambda: AsyncSleeper(stubborn=True)], ids=["python", "async"])
def test_a_tool_that_ignores_cancellation_makes_the_turn_stuck(harness: Harness, make: Callable[[], Any]) -> None:
    """The report comes in time; the session is quarantined until the tool returns."""
    tool = make()
    report = run_with(harness, tool, limits={"turn_timeout": 0.5, "cancel_grace": 0.8, "tool_timeout": 60})
    session = harness.opened[0]

    assert (report.outcome, report.exit_code) == (Outcome.STUCK, 5)
    assert session.stuck
    assert any(tool.name in warning for warning in report.warnings)
    tool.release.set()
    if isinstance(tool, Sleeper):
        assert wait_until(lambda: not session.stuck)


def test_a_python_tool_at_its_limit_is_left_and_the_model_goes_on(harness: Harness) -> None:
    """An answer is an answer; that the thread still runs is a warning and a quarantine."""
    tool = Sleeper()

    report = run_with(harness, tool, limits={"tool_timeout": 0.3})

    assert report.outcome == Outcome.ANSWERED
    assert [call.outcome for call in report.tool_calls] == ["timeout"]
    assert harness.opened[0].stuck
    tool.release.set()
    assert wait_until(lambda: not harness.opened[0].stuck)


def run_with(harness: Harness, tool: Any, **settings: Any) -> TurnReport:
    """Runs a turn that calls a custom tool."""
    session = harness.open(custom=[tool], tools=ALLOWED, **settings)
    return harness.ask(session, use(tool.name))


@pytest.mark.slow
def test_the_process_ends_although_a_tool_never_returns(tmp_path: Path) -> None:
    """Abandoned threads are daemons: an interpreter must not wait for them."""
    root = Path(__file__).parents[2]
    code = f"""
import sys, threading, pathlib
sys.path.insert(0, {str(root)!r})
from agentao_gov.governor.http import HttpClient
from agentao_gov.simulator import start_simulator
from tests.governor.harness import Harness
from tests.governor.test_session_hangs import Sleeper, run_with
with start_simulator() as simulator:
    harness = Harness(simulator, pathlib.Path({str(tmp_path)!r}), HttpClient())
    report = run_with(harness, Sleeper(), limits={{"turn_timeout": 4, "cancel_grace": 0.8, "tool_timeout": 60}})
print(report.outcome.value, flush=True)
"""

    ended = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, env={**os.environ}, check=False
    )

    assert ended.stdout.strip() == "stuck", ended.stderr
    assert ended.returncode == 0
