"""The operating system's limits are named when they strike."""

from __future__ import annotations

import signal
from collections.abc import Callable
from dataclasses import replace

import pytest

from agentao_gov.clock import Deadline
from agentao_gov.governor import Outcome
from agentao_gov.process.oslimits import OsLimits
from agentao_gov.worker.factory import SubprocessFactory
from agentao_gov.worker.host import SubprocessHost
from tests.governor.harness import say
from tests.worker.sessions import PATIENT, SHELL, Subprocesses, python, shell


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


def tool_text(host: SubprocessHost) -> str:
    """What the model was told by its last tool."""
    return next(str(m["content"]) for m in reversed(host.snapshot().messages) if m["role"] == "tool")


def test_a_tool_that_writes_too_large_a_file_is_told_which_limit(subprocesses: Subprocesses) -> None:
    """The command ends, the file stays at the limit, the model reads the setting's name, the turn goes on."""
    host = subprocesses.open(tools=SHELL, limits=PATIENT)

    report = subprocesses.ask(host, shell("exec head -c 3000000 /dev/zero > big"))

    assert report.answer == "after"
    assert "[pool] session_file_size = 1048576" in tool_text(host)
    assert (host.spec.workdir / "big").stat().st_size == 1 << 20


def test_a_tool_that_opens_too_many_files_is_told_so(subprocesses: Subprocesses) -> None:
    """The system's own words and the setting's name; nobody else runs out of descriptors."""
    host = subprocesses.open(tools=SHELL, limits=PATIENT)

    report = subprocesses.ask(host, shell(python('import os\nwhile True: os.open("/dev/null", 0)')))

    assert report.answer == "after"
    assert "Too many open files" in tool_text(host)
    assert "[pool] session_files = 256" in tool_text(host)


def test_a_program_that_meets_the_file_size_as_an_error_is_told_which_limit(subprocesses: Subprocesses) -> None:
    """Python ignores the signal and raises: the limit is named all the same."""
    host = subprocesses.open(tools=SHELL, limits=PATIENT)

    report = subprocesses.ask(host, shell(python('open("big", "wb").write(b"x" * (3 << 20))')))

    assert report.answer == "after"
    assert "File too large" in tool_text(host)
    assert "[pool] session_file_size = 1048576" in tool_text(host)


def test_words_that_are_no_failure_name_no_limit(subprocesses: Subprocesses) -> None:
    """A command that reads about descriptors has not run out of them."""
    host = subprocesses.open(tools=SHELL, limits=PATIENT)

    subprocesses.ask(host, shell("echo Too many open files"))

    assert "session_files" not in tool_text(host)


def test_a_session_process_without_descriptors_says_which_limit(
    subprocesses: Subprocesses, make_factory: Callable[..., SubprocessFactory]
) -> None:
    """It cannot even start a command: the model reads the setting's name, and the session goes on."""
    subprocesses.factory = make_factory(limits=OsLimits(files=10), ready=0)
    subprocesses.factory.prepare(Deadline.after(60))
    host = subprocesses.open(tools=SHELL, limits=PATIENT)

    report = subprocesses.ask(host, shell("true"))

    assert report.answer == "after"
    assert "[pool] session_files = 10" in tool_text(host)


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_a_tool_that_used_its_processor_time_ends(
    subprocesses: Subprocesses, make_factory: Callable[..., SubprocessFactory]
) -> None:
    """A loop without end meets `session_cpu` long before its own time limit, and the turn goes on."""
    subprocesses.factory = make_factory(limits=OsLimits(cpu_s=3), ready=0)
    subprocesses.factory.prepare(Deadline.after(60))
    host = subprocesses.open(tools=SHELL, limits={"turn_timeout": 80, "tool_timeout": 80})
    loop = {"name": "run_shell_command", "args": {"command": "while :; do :; done", "timeout": 80}}

    report = subprocesses.ask(host, say(text="after", tool=loop))

    assert (report.outcome, report.answer) == (Outcome.ANSWERED, "after")
    assert report.tool_calls[0].outcome != "timeout"
    assert "[pool] session_cpu = 3s" in tool_text(host)


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_a_session_process_that_used_its_processor_time_is_replaced(
    subprocesses: Subprocesses, make_factory: Callable[..., SubprocessFactory]
) -> None:
    """Its turn names the setting; the conversation goes on in a new process."""
    subprocesses.factory = make_factory(limits=OsLimits(cpu_s=1), ready=0)
    subprocesses.factory.prepare(Deadline.after(60))
    host = subprocesses.open()
    subprocesses.ask(host, say("remember 17", text="noted"))

    for _ in range(1000):  # each turn costs some milliseconds of processor time
        report = subprocesses.ask(host, say(text="after"))
        if report.outcome is not Outcome.ANSWERED:
            break

    assert report.outcome is Outcome.INTERNAL_ERROR
    assert "[pool] session_cpu = 1s" in (report.detail or "")
    assert subprocesses.ask(host, say(text="17")).answer == "17"
    assert "noted" in [m["content"] for m in host.snapshot().messages]
