"""The operating system's limits are named when they strike."""

from __future__ import annotations

import signal
from collections.abc import Callable
from dataclasses import replace

import pytest

from agentao_gov.clock import Deadline
from agentao_gov.governor import Outcome
from agentao_gov.pool.subprocess_factory import SubprocessFactory
from agentao_gov.process.oslimits import OsLimits
from tests.governor.harness import say
from tests.process.conftest import Subprocesses


@pytest.mark.parametrize(
    ("code", "struck", "named"),
    [
        (-signal.SIGKILL, "session_memory 314572800 209715200", "300 MiB, over [pool] session_memory = 200 MiB"),
        (-signal.SIGKILL, "session_processes 70 64", "70 processes, over [pool] session_processes = 64"),
        (-signal.SIGXCPU, None, "session_cpu = 5s"),
        (-signal.SIGXFSZ, None, "session_file_size = 1000"),
    ],
)
def test_a_limit_is_named_with_its_setting(code: int, struck: str | None, named: str) -> None:
    """The sentence says which key of `[pool]` to change."""
    assert named in (OsLimits(cpu_s=5, file_bytes=1000).explain_exit(code, struck) or "")


def test_an_ordinary_end_names_no_limit() -> None:
    """Neither an exit code nor another signal is a limit's."""
    assert OsLimits().explain_exit(0, None) is None
    assert OsLimits().explain_exit(-signal.SIGKILL, None) is None


def test_limits_cross_the_wire() -> None:
    """As JSON and back."""
    limits = replace(OsLimits(), memory_bytes=1, cpu_s=2.5)

    assert OsLimits.from_wire(limits.to_wire()) == limits


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_a_tool_that_used_its_processor_time_ends(
    subprocesses: Subprocesses, make_factory: Callable[..., SubprocessFactory]
) -> None:
    """A loop without end meets `session_cpu` long before its own time limit, and the turn goes on."""
    subprocesses.factory = make_factory(limits=OsLimits(cpu_s=3), ready=0)
    subprocesses.factory.prepare(Deadline.after(60))
    tools = {"permission_mode": "full-access", "allow": ["run_shell_command"]}
    host = subprocesses.open(tools=tools, limits={"turn_timeout": 80, "tool_timeout": 80})
    loop = {"name": "run_shell_command", "args": {"command": "while :; do :; done", "timeout": 80}}

    report = subprocesses.ask(host, say(text="after", tool=loop))

    assert (report.outcome, report.answer) == (Outcome.ANSWERED, "after")
    assert report.tool_calls[0].outcome != "timeout"
