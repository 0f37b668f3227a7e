"""What a session's tools do to what hosts them: each attack ends in a typed outcome, and nobody else is touched."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from agentao_gov.clock import Deadline
from agentao_gov.errors import InternalError
from agentao_gov.governor import Outcome
from agentao_gov.process import survey_layers
from agentao_gov.worker.factory import SubprocessFactory
from agentao_gov.worker.host import SubprocessHost
from tests.governor.harness import HANG_S, say
from tests.process import zoo
from tests.worker.sessions import PATIENT, SHELL, SHORT, Subprocesses, alive, background, python, shell

#: The process that runs the agent is the shell's parent, the warden that one's.
WARDEN = "$(cut -d' ' -f4 /proc/$PPID/stat)"
#: A daemon with neither descent nor environment: the warden is the only one who still finds it.
DAEMON = """import os
if os.fork() == 0:
  os.setsid()
  if os.fork(): os._exit(0)
  os.execve("/bin/sleep", ["sleep", "300"], {})
os.wait()"""
#: Forks into a session of its own for ever, each process a millisecond long, under a false name.
REFORKS = """import os, time
if os.fork() == 0:
  os.setsid()
  while True:
    open("/proc/self/comm", "w").write("gov-session")
    if os.fork(): os._exit(0)
    time.sleep(.001)"""

#: name -> (command, how its turn may end).
ATTACKS: dict[str, tuple[str, set[Outcome]]] = {
    "kills its own process": ("kill -9 $PPID; sleep 300", {Outcome.INTERNAL_ERROR}),
    "kills its warden": (f"kill -9 {WARDEN}; sleep 300", {Outcome.INTERNAL_ERROR}),
    "asks its warden to end": (f"kill -TERM {WARDEN}; sleep 300", {Outcome.INTERNAL_ERROR, Outcome.SHUTDOWN}),
    "stops its own process": ("kill -STOP $PPID; sleep 300", {Outcome.TURN_TIMEOUT}),
    "stops its warden": (f"kill -STOP {WARDEN}", {Outcome.ANSWERED}),
    "stops itself": ("kill -STOP $$", {Outcome.ANSWERED}),
    "blocks every signal": ("trap '' TERM INT HUP QUIT USR1; while :; do sleep 300; done", {Outcome.ANSWERED}),
    "fills its output": ("yes filled | head -c 300000000", {Outcome.ANSWERED}),
    "closes its descriptors": ("exec 0<&- 1>&- 2>&-; sleep 300", {Outcome.ANSWERED}),
    "leaves a daemon": (python(DAEMON), {Outcome.ANSWERED}),
    "re-forks under a false name": (python(REFORKS), {Outcome.ANSWERED}),
    "fills its home": ("head -c 100000000 /dev/zero > $HOME/big; true", {Outcome.ANSWERED}),
}


#: The others wait for a tool's time limit, or longer.
QUICK = {"kills its own process", "kills its warden", "asks its warden to end", "fills its home"}


@pytest.mark.parametrize(
    "attack", [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in ATTACKS]
)
def test_an_attack_ends_in_a_typed_outcome_and_touches_nobody_else(subprocesses: Subprocesses, attack: str) -> None:
    """The turn ends, the session goes on, its neighbour answers meanwhile, and a close leaves nothing of it."""
    command, ends = ATTACKS[attack]
    limits = {"turn_timeout": 3, "tool_timeout": 1, "cancel_grace": 1}
    hog = subprocesses.open(limits=limits, tools=SHELL)
    neighbour = subprocesses.open(limits=PATIENT)

    thread, reports = background(subprocesses, hog, shell(command))
    beside = subprocesses.ask(neighbour, say(text="not disturbed"))
    thread.join(HANG_S)

    assert beside.answer == "not disturbed"
    assert reports, "the turn did not end"
    assert reports[0].outcome in ends, reports[0].detail
    assert subprocesses.balance(reports[0]).reserved == 0
    assert subprocesses.ask(hog, say(text="on it goes"), deadline_s=10).answer == "on it goes"
    hog.close(Deadline.after(5))
    assert zoo.until(lambda: not alive(hog))


def test_a_warden_that_is_stopped_does_not_keep_a_turn_beyond_its_grace(
    subprocesses: Subprocesses, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody is left to kill the stopped process but the service itself: it does not wait for the warden to do it."""
    host = subprocesses.open(limits={"turn_timeout": 1, "tool_timeout": 1, "cancel_grace": 1}, tools=SHELL)
    # Where a warden is waited for at all; whoever waits for this one waits for a minute.
    monkeypatch.setattr(SubprocessHost._end_process, "__defaults__", (60.0,))

    report = subprocesses.ask(host, shell(f"kill -STOP {WARDEN}; kill -STOP $PPID; sleep 300"))

    assert report.outcome is Outcome.TURN_TIMEOUT
    # Deadline and grace are two seconds; the rest is for a busy machine.
    assert report.timing_ms.total < 20_000
    assert not host.stuck


#: Programs in place of a session process.
IMPOSTORS = {
    "garbage": "import sys\nsys.stdout.write('x' * 100 + chr(10)); sys.stdout.flush(); sys.stdin.read()",
    "a list": "import sys\nprint('[1, 2]', flush=True); sys.stdin.read()",
    "no answer": "import sys, time\nsys.stdin.readline(); time.sleep(300)",
    "ends at once": "raise SystemExit(3)",
    "asks for what is not there": (
        'import sys\nfor n in range(200): print(\'{"jsonrpc":"2.0","id":%d,"method":"_gov/ledger",'
        '"params":{"op":"settle","id":"none","prompt_tokens":-1}}\' % n, flush=True)\n'
        "for n in range(200): sys.stdin.readline()"
    ),
}


@pytest.mark.parametrize("impostor", IMPOSTORS)
def test_a_process_that_speaks_nonsense_is_an_error_and_is_ended(
    subprocesses: Subprocesses, make_factory: Callable[..., SubprocessFactory], tmp_path: Path, impostor: str
) -> None:
    """What comes up the wire is data from a stranger: never more than a session that does not open."""
    program = tmp_path / "impostor"
    program.write_text(f"#!{sys.executable}\n{IMPOSTORS[impostor]}\n")
    program.chmod(0o700)
    spec = subprocesses.spec()
    factory = make_factory(pythons={spec.key.tenant: str(program)}, ready=0)

    with pytest.raises(InternalError):
        factory.open(spec, None, Deadline.after(1))

    assert zoo.until(lambda: not zoo.running(str(program)))


@pytest.fixture
def apart(subprocesses: Subprocesses, make_factory: Callable[..., SubprocessFactory]) -> Subprocesses:
    """Sessions in pid namespaces of their own."""
    if not {layer.name: layer for layer in survey_layers()}["pid namespace"].available:
        pytest.skip("no pid namespaces on this machine")
    subprocesses.factory = make_factory(pid_namespace=True, ready=0, limits=subprocesses.factory._settings.limits)
    subprocesses.factory.prepare(Deadline.after(60))
    return subprocesses


def test_in_a_namespace_killing_everybody_kills_one_session(apart: Subprocesses) -> None:
    """`kill -9 -1` of the same user, which nothing else on a machine survives: neighbour and service do."""
    hog = apart.open(limits=SHORT, tools=SHELL)
    neighbour = apart.open(limits=PATIENT)

    report = apart.ask(hog, shell("kill -9 -1; sleep 300"))

    assert report.outcome in {Outcome.INTERNAL_ERROR, Outcome.ANSWERED, Outcome.TURN_TIMEOUT}
    assert apart.ask(neighbour, say(text="alive")).answer == "alive"
    assert apart.ask(hog, say(text="again"), deadline_s=10).answer == "again"


def test_in_a_namespace_nobody_else_s_secrets_can_be_read(apart: Subprocesses, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tool finds its own session's processes in /proc and no others: no environment, no memory, no descriptors."""
    monkeypatch.setenv("SERVICE_KEY", "open sesame")
    host = apart.open(limits=PATIENT, tools=SHELL)

    apart.ask(host, shell("cat /proc/[0-9]*/environ > seen; ls -d /proc/[0-9]* | wc -l >> count"))

    assert "open sesame" not in (host.spec.workdir / "seen").read_text(errors="replace")
    assert int((host.spec.workdir / "count").read_text()) < 10
