"""The warden ends the whole tree when either side dies, and is otherwise not felt."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from agentao_gov.process import SessionTree, procfs, session_tag, warden
from tests.process import zoo

PROGRAM = warden.PROGRAM
ISOLATED = (sys.executable, "-I", "-S")


@pytest.fixture
def tree() -> Iterator[SessionTree]:
    """Marks everything a test starts, so that it can ask who is left. The warden must do without it."""
    tree = SessionTree(session_tag("acme", uuid.uuid4().hex))
    yield tree
    tree.kill(within_s=5)


class Guarded:
    """A program below a warden, with the owner's end of the lifeline and the status lines."""

    def __init__(self, tree: SessionTree, program: str, *options: str) -> None:
        lifeline_r, self.lifeline = os.pipe()
        self.status, status_w = os.pipe()
        self.warden = subprocess.Popen(
            [
                *(*ISOLATED, PROGRAM, "--lifeline", str(lifeline_r), "--status", str(status_w), *options),
                *("--", *ISOLATED, "-c", program),
            ],
            pass_fds=(lifeline_r, status_w),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, **tree.env()},
        )
        os.close(lifeline_r)
        os.close(status_w)
        self.pid = self.child_pid()

    def line(self) -> bytes:
        assert self.warden.stdout is not None
        return self.warden.stdout.readline().strip()

    def child_pid(self) -> int:
        return int(self.status_line().split()[1])

    def status_line(self) -> str:
        """The next line the warden says; empty at its end."""
        text = b""
        while not text.endswith(b"\n"):
            assert select.select([self.status], [], [], 10)[0], "the warden says nothing"
            byte = os.read(self.status, 1)
            if not byte:
                break
            text += byte
        return text.decode().strip()

    def wait(self) -> int:
        code = self.warden.wait(10)
        for stream in (self.warden.stdin, self.warden.stdout, self.warden.stderr):
            assert stream is not None
            stream.close()
        os.close(self.status)
        return code

    def close_lifeline(self) -> None:
        if self.lifeline >= 0:
            os.close(self.lifeline)
            self.lifeline = -1


def running(program: str) -> list[int]:
    """The pids that run a program, told by a mark in its text."""
    mark, found = program[-32:].encode(), []
    for pid in procfs.all_pids():
        try:
            if Path(f"/proc/{pid}/cmdline").read_bytes().rstrip(b"\0").endswith(mark):
                found.append(pid)
        except OSError:
            continue
    return found


#: Ends by itself in the given way.
ENDS = {"import sys; sys.exit(7)": 7, "import os, signal; os.kill(os.getpid(), signal.SIGTERM)": -signal.SIGTERM}


@pytest.mark.parametrize(("program", "code"), ENDS.items())
@pytest.mark.parametrize("options", [(), ("--pair",)], ids=["single", "pair"])
def test_the_end_of_the_child_is_passed_on(tree: SessionTree, program: str, code: int, options: tuple[str]) -> None:
    """Exit codes and signals reach whoever waits for the warden as if it were the child."""
    guarded = Guarded(tree, program, *options)

    assert guarded.wait() == code
    guarded.close_lifeline()


@pytest.mark.parametrize("name", sorted(zoo.PROGRAMS))
@pytest.mark.parametrize("options", [(), ("--pair",), ("--pid-namespace",)], ids=["single", "pair", "namespace"])
def test_nothing_outlives_an_owner_that_dies(tree: SessionTree, name: str, options: tuple[str]) -> None:
    """The end of the lifeline ends every kind of server, in every arrangement of wardens."""
    guarded = Guarded(tree, zoo.PROGRAMS[name], "--grace-s", "0.05", *options)
    assert guarded.line() == b"up"

    guarded.close_lifeline()

    assert zoo.until(lambda: tree.members() == ())
    guarded.wait()


@pytest.mark.parametrize("name", ["daemon", "helper", "refork"])
def test_nothing_outlives_a_child_that_is_killed(tree: SessionTree, name: str) -> None:
    """SIGKILL of the guarded process ends its daemons and helpers too."""
    program = f"{zoo.PROGRAMS[name]}# {uuid.uuid4().hex}"
    spawner = (
        "import subprocess, sys, time\n"
        f"c = subprocess.Popen([sys.executable, '-I', '-S', '-c', {program!r}], stdin=subprocess.PIPE,"
        " stdout=subprocess.PIPE, start_new_session=True, env={})\n"
        "c.stdout.readline(); print('up', flush=True); time.sleep(60)\n"
    )
    guarded = Guarded(tree, spawner)
    assert guarded.line() == b"up"
    # The servers' environment is empty: no tag finds them, the warden is the only one who can.
    assert name == "refork" or running(program)

    os.kill(guarded.pid, signal.SIGKILL)

    assert guarded.wait() == -signal.SIGKILL
    # A single look may miss one that re-forks; ten do not.
    assert not [pid for _ in range(10) for pid in running(program)]
    guarded.close_lifeline()


def test_nothing_outlives_the_outer_warden_of_a_pair(tree: SessionTree) -> None:
    """Even SIGKILL of the warden itself ends the tree: the inner one sees it."""
    guarded = Guarded(tree, zoo.PROGRAMS["stubborn"], "--pair", "--grace-s", "0.05")
    assert guarded.line() == b"up"

    guarded.warden.kill()

    assert zoo.until(lambda: tree.members() == ())
    guarded.wait()
    guarded.close_lifeline()


def test_nothing_outlives_the_inner_warden_of_a_pair(tree: SessionTree) -> None:
    """The service dies with it, and what the service had started falls to the outer one."""
    program = (
        "import subprocess, sys, time\n"
        f"c = subprocess.Popen([sys.executable, '-I', '-S', '-c', {zoo.PROGRAMS['stubborn']!r}],"
        " stdout=subprocess.PIPE, start_new_session=True)\n"
        "c.stdout.readline(); print('up', flush=True); time.sleep(60)\n"
    )
    guarded = Guarded(tree, program, "--pair", "--grace-s", "0.05")
    assert guarded.line() == b"up"
    inner = next(s.ref.pid for s in procfs.stats() if s.ppid == guarded.warden.pid)

    os.kill(inner, signal.SIGKILL)

    assert guarded.wait() == -signal.SIGKILL
    assert tree.members() == ()
    guarded.close_lifeline()


def test_tools_below_a_warden_yield_to_the_one_it_guards(tree: SessionTree) -> None:
    """Whoever was started below the guarded process is found at a tenth of its weight, also in a session of its own."""
    program = (
        "import subprocess, sys\n"
        "c = subprocess.Popen([sys.executable, '-I', '-S', '-c', 'import sys; sys.stdin.read()'],"
        " stdin=subprocess.PIPE, start_new_session=True)\n"
        "print(c.pid, flush=True); sys.stdin.read()\n"
    )
    guarded = Guarded(tree, program, "--processes", "20")
    tool = int(guarded.line())

    assert zoo.until(lambda: os.getpriority(os.PRIO_PROCESS, tool) == warden.TOOL_NICE)
    assert os.getpriority(os.PRIO_PROCESS, guarded.pid) == os.getpriority(os.PRIO_PROCESS, 0)

    guarded.close_lifeline()
    guarded.wait()


def test_a_byte_on_the_lifeline_kills_at_once(tree: SessionTree) -> None:
    """An owner that wants force does not wait for the grace."""
    guarded = Guarded(tree, zoo.PROGRAMS["stubborn"], "--grace-s", "60")
    assert guarded.line() == b"up"

    os.write(guarded.lifeline, b"K")

    assert guarded.wait() == -signal.SIGKILL
    guarded.close_lifeline()


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1])
def test_signals_are_passed_on(tree: SessionTree, signum: signal.Signals) -> None:
    """Whoever signals the warden means the service."""
    program = (
        "import signal, sys\n"
        "for s in (1, 2, 10, 15): signal.signal(s, lambda n, f: sys.exit(100 + n))\n"
        "print('up', flush=True)\n"
        "signal.pause()\n"
    )
    guarded = Guarded(tree, program, "--pair")
    assert guarded.line() == b"up"

    guarded.warden.send_signal(signum)

    assert guarded.wait() == 100 + signum
    guarded.close_lifeline()


#: Beats once, then holds the interpreter lock in one C call for longer than any test; `faulthandler` shows it.
HOLDS_THE_LOCK = """
import faulthandler, os, re, sys
faulthandler.enable()
print("up", flush=True)
os.write(int(os.environ["AGENTAO_GOV_HEARTBEAT_FD"]), b".")
def never_returns():
    re.match(r"(a+)+$", "a" * 60 + "b")
never_returns()
"""


def test_a_service_that_stops_beating_is_dumped_killed_and_restarted(tree: SessionTree) -> None:
    """A regular expression that holds the interpreter lock: the stack is on standard error, then it starts anew."""
    options = ("--heartbeat", "--stale-s", "0.3", "--dump-s", "5", "--restarts", "1", "--restart-pause-s", "0")
    guarded = Guarded(tree, HOLDS_THE_LOCK, *options)

    said = [guarded.status_line() for _ in range(8)]

    assert said[0] == "stale 0.3"
    assert said[2] == f"restart -{signal.SIGABRT.value}"
    assert said[3].startswith("pid ")
    assert said[4] == "stale 0.3"
    assert said[6] == f"exit -{signal.SIGABRT.value}"
    assert guarded.warden.stderr is not None
    assert b"in never_returns" in guarded.warden.stderr.read()
    assert guarded.wait() == -signal.SIGABRT
    guarded.close_lifeline()


#: Beats once, then dies as by the kernel's hand; says how often it was started before.
DIES = """
import os, signal
os.write(int(os.environ["AGENTAO_GOV_HEARTBEAT_FD"]), b".")
print(os.environ["AGENTAO_GOV_RESTARTS"], flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


def deaths(guarded: Guarded) -> list[dict[str, object]]:
    """What the warden wrote of its child's deaths, once it has ended."""
    assert guarded.warden.stderr is not None
    return [json.loads(line) for line in guarded.warden.stderr.read().splitlines()]


def test_a_service_that_came_up_is_started_again_after_a_pause_when_no_restart_is_left(tree: SessionTree) -> None:
    """Each death is a line with its signal and the restarts left; a signal in the pause ends the wait."""
    guarded = Guarded(tree, DIES, "--heartbeat", "--restarts", "1", "--restart-pause-s", "3600")
    said = [guarded.status_line() for _ in range(5)]

    guarded.warden.send_signal(signal.SIGTERM)

    told, started_before = deaths(guarded), (guarded.line(), guarded.line())
    assert guarded.wait() == 128 + signal.SIGTERM
    assert [line.split()[0] for line in said] == ["killed", "restart", "pid", "killed", "restart"]
    assert started_before == (b"0", b"1")
    assert [(death["how"], death["restarts_left"], death["then"]) for death in told] == [
        ("killed by SIGKILL", 0, "started again in 1 s"),
        ("killed by SIGKILL", 0, "started again in 3600 s"),
    ]
    guarded.close_lifeline()


def test_a_restart_is_given_back_for_a_time_of_service(tree: SessionTree) -> None:
    """More deaths than restarts, each after long enough a life: every one is followed by a start at once."""
    options = ("--heartbeat", "--restarts", "1", "--restart-every-s", "0.001", "--restart-pause-s", "0")
    guarded = Guarded(tree, DIES, *options)
    said = [guarded.status_line() for _ in range(8)]

    guarded.warden.send_signal(signal.SIGTERM)

    told = deaths(guarded)
    assert guarded.wait() == 128 + signal.SIGTERM
    assert [line.split()[0] for line in said].count("restart") == 3
    assert {death["restarts_left"] for death in told} == {0}
    guarded.close_lifeline()


#: Beats until its input ends; echoes what it reads.
BEATS = """
import os, sys, threading, time
def beat():
    while True:
        os.write(int(os.environ["AGENTAO_GOV_HEARTBEAT_FD"]), b".")
        time.sleep(0.05)
threading.Thread(target=beat, daemon=True).start()
for line in sys.stdin: print(line.strip(), flush=True)
"""


def test_a_service_that_was_stopped_together_with_its_warden_goes_on(tree: SessionTree) -> None:
    """A container that is paused: nobody could beat and nobody could hear, so nobody hung."""
    guarded = Guarded(tree, BEATS, "--heartbeat", "--stale-s", "1", "--dump-s", "1")
    assert guarded.warden.stdin is not None
    guarded.warden.stdin.write(b"before\n")
    guarded.warden.stdin.flush()
    assert guarded.line() == b"before"

    for pid in (guarded.warden.pid, guarded.pid):
        os.kill(pid, signal.SIGSTOP)
    time.sleep(1.6)  # not a wait for something: longer than the patience is what is tried
    for pid in (guarded.warden.pid, guarded.pid):
        os.kill(pid, signal.SIGCONT)
    guarded.warden.stdin.write(b"after\n")
    guarded.warden.stdin.close()

    assert guarded.line() == b"after"
    assert guarded.status_line() == "killed 0"
    assert guarded.wait() == 0
    guarded.close_lifeline()


def test_a_service_that_is_stopped_alone_is_hung(tree: SessionTree) -> None:
    """Its warden runs and hears nothing: the service is killed, though it cannot dump its stacks."""
    guarded = Guarded(tree, BEATS, "--heartbeat", "--stale-s", "2", "--dump-s", "0.1")
    assert guarded.warden.stdin is not None
    guarded.warden.stdin.write(b"up\n")
    guarded.warden.stdin.flush()
    assert guarded.line() == b"up"

    os.kill(guarded.pid, signal.SIGSTOP)

    assert guarded.status_line() == "stale 2.0"
    assert guarded.wait() == -signal.SIGKILL
    guarded.close_lifeline()


def test_a_tree_over_its_memory_is_killed_and_the_limit_named(tree: SessionTree) -> None:
    """What a helper eats counts too."""
    eater = "b = []\nwhile True: b.append(b'x' * (1 << 20))"
    program = f"import subprocess, sys; subprocess.run([sys.executable, '-I', '-S', '-c', {eater!r}])"
    guarded = Guarded(tree, program, "--memory-bytes", str(96 << 20))

    said = guarded.status_line().split()

    assert said[:2] == ["limit", "session_memory"]
    assert int(said[2]) > int(said[3]) == 96 << 20
    assert guarded.wait() == -signal.SIGKILL
    assert tree.members() == ()
    guarded.close_lifeline()


def test_a_fork_bomb_is_stopped_at_the_limit_of_processes(tree: SessionTree) -> None:
    """Bounded here to 400 processes; the warden strikes far earlier, and nothing is left."""
    bomb = (
        "import os, time\n"
        "for _ in range(400):\n"
        "    if os.fork() == 0: time.sleep(60); os._exit(0)\n"
        "    time.sleep(0.002)\n"
        "time.sleep(60)\n"
    )
    guarded = Guarded(tree, bomb, "--processes", "20")

    said = guarded.status_line().split()

    assert said[:2] == ["limit", "session_processes"]
    assert 20 < int(said[2]) < 400
    assert guarded.wait() == -signal.SIGKILL
    assert tree.members() == ()
    guarded.close_lifeline()


def test_a_command_that_cannot_be_run_says_so(tree: SessionTree) -> None:
    """Exit code 127 and a sentence, as a shell would."""
    done = subprocess.run(
        [sys.executable, "-I", "-S", PROGRAM, "--", "/nonexistent/python"],
        capture_output=True,
        text=True,
        timeout=10,
        check=False,
    )

    assert done.returncode == 127
    assert "cannot run /nonexistent/python" in done.stderr


def test_the_warden_is_small(tree: SessionTree) -> None:
    """Its own memory stays a small part of what it guards: about 4 MiB measured, a fifth of a worker allowed."""
    guarded = Guarded(tree, zoo.PROGRAMS["polite"])
    guarded.line()

    rollup = Path(f"/proc/{guarded.warden.pid}/smaps_rollup").read_text()
    private_kib = sum(int(line.split()[1]) for line in rollup.splitlines() if line.startswith("Private_Dirty"))

    assert private_kib < 10 * 1024
    guarded.close_lifeline()
    guarded.wait()


def test_no_time_is_spent_while_nothing_happens(tree: SessionTree) -> None:
    """A warden without limits to look at sleeps until something happens: it uses no processor time at all."""
    guarded = Guarded(tree, zoo.PROGRAMS["polite"])
    guarded.line()
    schedstat = Path(f"/proc/{guarded.warden.pid}/schedstat")
    before = schedstat.read_text().split()[2]

    time.sleep(0.3)  # not a wait for something: the absence of wake-ups is what is measured

    assert schedstat.read_text().split()[2] == before
    guarded.close_lifeline()
    guarded.wait()
