"""A session in a process of its own: the same turn, the same report, and whatever happens in it stays in it."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from agentao_gov.clock import Deadline
from agentao_gov.config.profile import ApiFormat
from agentao_gov.errors import InternalError
from agentao_gov.governor import Outcome, SessionKey, SessionSpec, TextEvent, ToolEvent
from agentao_gov.process import procfs
from agentao_gov.process.stderr import StderrReader
from agentao_gov.process.tags import child_env, session_tag
from agentao_gov.worker.factory import SubprocessFactory
from agentao_gov.worker.host import SubprocessHost
from agentao_gov.worker.spawn import SessionProcess
from tests.governor.harness import HANG_S, say
from tests.process import zoo
from tests.worker.sessions import PATIENT, SHELL, SHORT, Subprocesses, alive, background, python, shell, worker_pid


def test_a_turn_reports_what_the_provider_counted(subprocesses: Subprocesses) -> None:
    """Exact usage over the wire: report, ledger and the model's own ledger agree."""
    host = subprocesses.open(tools={"allow": ["glob"]})

    report = subprocesses.ask(host, say(text="Done.", tool={"name": "glob", "args": {"pattern": "*"}}))

    truth = subprocesses.simulator.truth(requests=False).total
    assert (report.outcome, report.answer, report.mode) == (Outcome.ANSWERED, "Done.", "subprocess")
    assert report.usage.total_tokens == truth.prompt_tokens + truth.completion_tokens
    assert subprocesses.balance(report).used == report.usage.total_tokens
    assert subprocesses.balance(report).reserved == 0
    cost = report.usage.prompt_tokens * 2_000_000 + report.usage.completion_tokens * 8_000_000
    assert (subprocesses.balance(report).unpriced, subprocesses.balance(report).cost_pico_usd) == (0, cost)
    assert {line.scope for line in report.budget} == {"tenant", "user", "session", "turn"}
    assert "".join(e.delta for e in subprocesses.events if isinstance(e, TextEvent)) == "Done."
    assert [e.name for e in subprocesses.events if isinstance(e, ToolEvent)] == ["glob"]


@pytest.mark.parametrize("wire", ["anthropic-messages", "openai-responses"])
def test_a_native_wire_is_spoken_in_a_process_of_its_own(subprocesses: Subprocesses, wire: ApiFormat) -> None:
    """The choice of the wire reaches the process, and its reports reach the owner's ledger, the cache's part too."""
    subprocesses.api_format = wire
    host = subprocesses.open(tools={"allow": ["glob"]})

    report = subprocesses.ask(host, say(text="Done.", tool={"name": "glob", "args": {"pattern": "*"}, "rounds": 2}))

    truth = subprocesses.simulator.truth()
    assert (report.outcome, report.answer) == (Outcome.ANSWERED, "Done.")
    assert {f"{report.model}/{record.wire}" for record in truth.requests} == {f"simulated/{wire.partition('-')[2]}"}
    assert report.usage.total_tokens == truth.total.total_tokens == subprocesses.balance(report).used
    assert report.usage.cached_tokens == truth.total.cached_tokens
    assert report.usage.cache_write_tokens == truth.total.cache_write_tokens


def test_a_conversation_goes_on_in_another_process(subprocesses: Subprocesses) -> None:
    """What a snapshot holds is what the next process starts from."""
    first = subprocesses.open()
    subprocesses.ask(first, say("remember 17", text="noted"))
    subprocesses.ask(first, say("and 18", text="noted too"))

    second = subprocesses.open(first.snapshot())
    subprocesses.ask(second, say("which numbers?", text="17 and 18"))

    texts = [message["content"] for message in second.snapshot().messages if message["role"] == "assistant"]
    assert texts == ["noted", "noted too", "17 and 18"]


def test_a_model_that_hangs_is_left_at_the_deadline(subprocesses: Subprocesses) -> None:
    """The process keeps the deadline itself and stays for the next turn."""
    host = subprocesses.open(limits=SHORT)

    report = subprocesses.ask(host, say(fault="hang"))

    assert report.outcome == Outcome.TURN_TIMEOUT
    assert subprocesses.ask(host, say(text="still here")).answer == "still here"


def test_a_process_in_which_nothing_runs_any_more_is_killed_at_the_deadline(subprocesses: Subprocesses) -> None:
    """Stopped, or held by a call that keeps the interpreter lock: the owner keeps the deadline, the session goes on."""
    host = subprocesses.open(limits=SHORT)
    thread, reports = background(subprocesses, host, say(fault="hang"))
    subprocesses.simulator.wait_for(calls=1)
    began = time.monotonic()

    os.kill(worker_pid(host), signal.SIGSTOP)
    thread.join(HANG_S)

    assert reports[0].outcome == Outcome.TURN_TIMEOUT
    assert "killed" in (reports[0].detail or "")
    assert time.monotonic() - began < HANG_S
    assert not host.stuck
    assert subprocesses.ask(host, say(text="on it goes"), deadline_s=10).answer == "on it goes"


def test_a_process_that_does_not_read_keeps_nobody_waiting(subprocesses: Subprocesses) -> None:
    """Stopped between two turns: a message larger than its socket is sent at once, cancelled at once, and given up."""
    host = subprocesses.open(limits=SHORT)
    subprocesses.ask(host, say(text="ok"))
    os.kill(worker_pid(host), signal.SIGSTOP)
    thread, reports = background(subprocesses, host, "x" * 900_000)
    assert zoo.until(lambda: host._record is not None)

    host.cancel("cancelled")
    thread.join(HANG_S)

    assert reports[0].outcome in {Outcome.CANCELLED, Outcome.TURN_TIMEOUT}
    assert subprocesses.ask(host, say(text="on it goes"), deadline_s=10).answer == "on it goes"


def test_a_killed_process_is_a_typed_outcome_and_the_next_turn_goes_on(subprocesses: Subprocesses) -> None:
    """What was held is charged, nothing stays reserved, and the conversation before the turn is kept."""
    host = subprocesses.open(limits={"turn_timeout": 30})
    subprocesses.ask(host, say("remember 17", text="noted"))
    before = subprocesses.simulator.truth(requests=False).total.calls
    thread, reports = background(subprocesses, host, say(fault="hang"))
    subprocesses.simulator.wait_for(calls=before + 1)

    os.kill(worker_pid(host), signal.SIGKILL)
    thread.join(HANG_S)

    assert reports[0].outcome == Outcome.INTERNAL_ERROR
    assert "killed by signal 9" in (reports[0].detail or "")
    assert reports[0].usage.estimated_tokens == reports[0].usage.total_tokens > 0
    assert subprocesses.balance(reports[0]).reserved == 0
    assert subprocesses.ask(host, say("which?", text="17")).answer == "17"
    assert [m["content"] for m in host.snapshot().messages if m["role"] == "assistant"] == ["noted", "17"]


def test_a_warden_that_is_killed_takes_the_session_with_it(subprocesses: Subprocesses) -> None:
    """The worker dies with its warden; what the worker started is found by its tag."""
    host = subprocesses.open(limits={"turn_timeout": 30, "tool_timeout": 20}, tools=SHELL)
    thread, reports = background(subprocesses, host, shell("sleep 300 & sleep 300"))
    assert zoo.until(lambda: len(alive(host)) >= 3)

    os.kill(host.process_ids()[0], signal.SIGKILL)
    thread.join(HANG_S)

    assert reports[0].outcome == Outcome.INTERNAL_ERROR
    assert zoo.until(lambda: not alive(host))


@pytest.mark.parametrize(
    ("program", "limit"),
    [
        ('b = []\nwhile True: b.append(b"x" * (1 << 20))', "session_memory"),
        (
            "import os, time\nfor _ in range(200):\n  if os.fork() == 0: time.sleep(60)\n  time.sleep(.005)",
            "session_processes",
        ),
    ],
    ids=["memory", "processes"],
)
def test_a_session_over_a_limit_ends_and_the_limit_is_named(
    subprocesses: Subprocesses, program: str, limit: str
) -> None:
    """What the tools of a session use counts as the session's; the next turn starts in a new process."""
    host = subprocesses.open(limits=PATIENT, tools=SHELL)

    report = subprocesses.ask(host, shell(python(program)))

    assert report.outcome == Outcome.INTERNAL_ERROR
    assert limit in (report.detail or "")
    assert subprocesses.ask(host, say(text="again")).answer == "again"
    assert len(alive(host)) <= 2


def test_limits_of_each_process_hold_in_what_it_starts(subprocesses: Subprocesses) -> None:
    """Open files and file sizes are bounded in a tool's own processes."""
    host = subprocesses.open(limits=PATIENT, tools=SHELL)

    subprocesses.ask(host, shell("ulimit -n > files; head -c 3000000 /dev/zero > big; true"))

    assert (host.spec.workdir / "files").read_text().strip() == "256"
    assert (host.spec.workdir / "big").stat().st_size <= 1 << 20


def test_the_service_s_environment_and_home_stay_its_own(
    subprocesses: Subprocesses, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A tool sees neither the service's variables nor the model's key, and a home that is only its session's."""
    monkeypatch.setenv("DATABASE_PASSWORD", "open sesame")
    # An address the model is not reached by, since it is on this machine.
    monkeypatch.setenv("HTTPS_PROXY", "http://svc:hunter2@127.0.0.1:9")
    host = subprocesses.open(limits=PATIENT, tools=SHELL)

    subprocesses.ask(host, shell("env > seen; cat /proc/$PPID/environ >> seen"))

    seen = (host.spec.workdir / "seen").read_text(errors="replace")
    assert "open sesame" not in seen
    assert "hunter2" not in seen
    assert "sk-simulated" not in seen
    home = next(line for line in seen.splitlines() if line.startswith("HOME="))
    assert Path(home[5:]).stat().st_mode & 0o077 == 0
    host.close(Deadline.after(5))
    assert not Path(home[5:]).exists()


@pytest.mark.parametrize("reason", ["cancelled", "client_gone", "shutdown"])
def test_a_cancel_crosses_the_wire(subprocesses: Subprocesses, reason: str) -> None:
    """The turn in flight ends with the outcome of its reason, and the process stays."""
    host = subprocesses.open(limits={"turn_timeout": 30})
    thread, reports = background(subprocesses, host, say(fault="hang"))
    subprocesses.simulator.wait_for(calls=1)

    host.cancel(reason)
    thread.join(HANG_S)

    assert reports[0].outcome == (Outcome.SHUTDOWN if reason == "shutdown" else Outcome.CANCELLED)
    assert subprocesses.ask(host, say(text="ok")).outcome == Outcome.ANSWERED


@pytest.mark.parametrize("how", ["end of input", "SIGTERM"])
def test_a_worker_with_a_hung_model_call_ends_within_a_second(subprocesses: Subprocesses, how: str) -> None:
    """End-of-input and SIGTERM both end it, whatever its turn waits for."""
    host = subprocesses.open(limits={"turn_timeout": 30})
    thread, _ = background(subprocesses, host, say(fault="hang"))
    subprocesses.simulator.wait_for(calls=1)
    stat = procfs.read_stat(worker_pid(host))
    assert stat is not None
    live = host._live
    assert live is not None

    if how == "SIGTERM":
        os.kill(stat.ref.pid, signal.SIGTERM)
    else:
        live.peer.close()

    assert zoo.until(lambda: not procfs.alive(stat.ref), within_s=2)
    thread.join(HANG_S)
    assert not thread.is_alive()


def test_a_closed_session_leaves_nothing(subprocesses: Subprocesses) -> None:
    """Close ends the process and what it started; a turn afterwards is refused."""
    host = subprocesses.open(limits=PATIENT, tools=SHELL)
    subprocesses.ask(host, say(text="ok"))

    host.close(Deadline.after(5))

    assert alive(host) == []
    with pytest.raises(InternalError):
        subprocesses.ask(host, "more")


def test_a_session_is_killed_also_where_no_descriptor_is_left(subprocesses: Subprocesses) -> None:
    """Its death is what gives some back; whoever is left would run until the service ends."""
    host = subprocesses.open(limits=PATIENT, tools=SHELL)

    with zoo.no_descriptors():
        host.kill()

    assert alive(host) == []
    assert not host.stuck


@pytest.mark.parametrize("what", ["home", "errors"])
def test_a_session_that_cannot_be_opened_leaves_no_process(subprocesses: Subprocesses, what: str) -> None:
    """Where a home cannot be made, or no pipe is to be had once the process runs."""
    spawned: list[SessionProcess] = []
    parts = subprocesses.factory._parts
    spec = subprocesses.spec()
    spec = dataclasses.replace(spec, child_env=dict(child_env(session_tag(spec.key.tenant, spec.key.session))))

    def spawn(spec: SessionSpec, deadline: Deadline) -> SessionProcess:
        spawned.append(parts.spawn(spec, deadline))
        if what == "errors":
            scarce.enter_context(zoo.no_descriptors())
        return spawned[-1]

    def home(key: SessionKey) -> Path:
        raise OSError(errno.ENOSPC, "No space left on device")

    errors = StderrReader()
    parts = dataclasses.replace(parts, errors=errors)
    host = SubprocessHost(spec, dataclasses.replace(parts, spawn=spawn, home=home), None)
    with contextlib.ExitStack() as scarce, pytest.raises(InternalError, match=r"No space left|Too many open files"):
        host.start(Deadline.after(30))

    (process,) = spawned
    assert not process.alive
    assert (process.lifeline, process.errors, process.status) == (-1, -1, -1)
    assert host.process_ids() == ()
    errors.close()


def test_kill_ends_a_turn_at_once(subprocesses: Subprocesses) -> None:
    """Force does not wait for a tool that ignores everything."""
    host = subprocesses.open(limits={"turn_timeout": 30, "tool_timeout": 20}, tools=SHELL)
    thread, reports = background(subprocesses, host, shell("trap '' TERM INT HUP; sleep 300"))
    assert zoo.until(lambda: len(alive(host)) >= 2)

    host.kill()
    thread.join(HANG_S)

    assert reports[0].outcome in {Outcome.SHUTDOWN, Outcome.INTERNAL_ERROR}
    assert alive(host) == []


def test_an_exhausted_budget_is_the_same_outcome_as_anywhere(subprocesses: Subprocesses) -> None:
    """The owner's ledger refuses; the figures cross the wire."""
    host = subprocesses.open(limits={"turn_tokens": 500})

    report = subprocesses.ask(host, say(text="x"))

    assert report.outcome == Outcome.BUDGET_IMPOSSIBLE
    assert "500" in (report.detail or "")
    assert report.usage.llm_calls == 0


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_sessions_in_a_namespace_do_not_see_each_other(
    subprocesses: Subprocesses, make_factory: Callable[..., SubprocessFactory]
) -> None:
    """Where the system allows it, a session's tools see the processes of their session alone."""
    from agentao_gov.process import survey_layers

    if not {layer.name: layer for layer in survey_layers()}["pid namespace"].available:
        pytest.skip("no pid namespaces on this machine")
    subprocesses.factory = make_factory(pid_namespace=True, ready=0)
    subprocesses.factory.prepare(Deadline.after(60))
    host = subprocesses.open(limits=PATIENT, tools=SHELL)

    subprocesses.ask(host, shell("ls -d /proc/[0-9]* > seen"))

    assert len((host.spec.workdir / "seen").read_text().splitlines()) < 10


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_the_zygote_is_replaced_when_it_dies(
    subprocesses: Subprocesses, make_factory: Callable[..., SubprocessFactory]
) -> None:
    """Running sessions go on, the next opening starts cold and asks for another zygote."""
    subprocesses.factory = make_factory(own_zygote=True, ready=0)
    subprocesses.factory.prepare(Deadline.after(60))
    first = subprocesses.open()
    (zygote,) = subprocesses.factory.process_ids()

    os.kill(zygote, signal.SIGKILL)

    assert subprocesses.ask(first, say(text="one")).answer == "one"
    assert subprocesses.ask(subprocesses.open(), say(text="two")).answer == "two"
    subprocesses.factory.prepare(Deadline.after(60))
    assert subprocesses.factory.process_ids() not in {(), (zygote,)}


def test_the_stock_of_ready_processes_is_kept(
    subprocesses: Subprocesses, make_factory: Callable[..., SubprocessFactory]
) -> None:
    """From the first session on: each that is taken is replaced, and a dead one is not handed out."""
    subprocesses.factory = make_factory(ready=2)
    subprocesses.factory.warm_up()
    assert zoo.until(lambda: subprocesses.factory.ready_count() == 2, within_s=60)

    first = subprocesses.open()

    assert zoo.until(lambda: subprocesses.factory.ready_count() == 2)
    for pid in subprocesses.factory.process_ids()[1:]:
        os.kill(pid, signal.SIGKILL)
        assert zoo.until(lambda pid=pid: not running(pid))  # type: ignore[misc]
    assert subprocesses.ask(subprocesses.open(), say(text="alive")).answer == "alive"
    assert subprocesses.ask(first, say(text="too")).answer == "too"


def running(pid: int) -> bool:
    stat = procfs.read_stat(pid)
    return stat is not None and not stat.dead
