"""A session's tree is found and killed whole, and nothing else is touched."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator

import pytest

from agentao_gov.process import SessionTree, Tag, procfs, session_tag
from agentao_gov.process.procfs import ProcessRef
from agentao_gov.process.tree import kill_processes, send_signal
from tests.process import zoo


@pytest.fixture
def tree() -> Iterator[SessionTree]:
    tree = SessionTree(session_tag("acme", uuid.uuid4().hex))
    yield tree
    assert not tree.kill(within_s=5).survivors


def reap(*children: subprocess.Popen[bytes]) -> None:
    for child in children:
        child.wait(5)
        for stream in (child.stdin, child.stdout):
            if stream is not None:
                stream.close()


@pytest.mark.parametrize("name", sorted(zoo.PROGRAMS))
def test_every_kind_of_server_is_killed_with_all_it_started(tree: SessionTree, name: str) -> None:
    """Polite, stubborn, with a helper, daemonised or re-forking: after a kill nobody of the tree is alive."""
    child = zoo.start(name, tree.env("mcp"))
    assert tree.members()

    result = tree.kill(within_s=5)

    assert result.survivors == ()
    assert result.killed >= 1
    assert tree.members() == ()
    reap(child)


def test_a_helper_that_lost_its_parent_and_its_environment_is_found_by_its_process_session(tree: SessionTree) -> None:
    """A helper with an empty environment whose parent ended is still in the server's setsid session."""
    program = (
        "import subprocess, sys\n"
        'middle = \'import subprocess, sys; print(subprocess.Popen([sys.executable, "-I", "-S", "-c",'
        ' "import time; time.sleep(60)"], env={}).pid, flush=True)\'\n'
        "subprocess.run([sys.executable, '-I', '-S', '-c', middle])\n"
        "sys.stdin.read()\n"
    )
    server = subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", program],
        env={**os.environ, **tree.env()},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    assert server.stdout is not None
    helper = procfs.read_stat(int(server.stdout.readline()))
    assert helper is not None

    tree.kill()

    assert zoo.until(lambda: not procfs.alive(helper.ref))
    reap(server)


def test_another_session_of_the_same_owner_is_left_alone(tree: SessionTree) -> None:
    """Killing one session's tree does not touch the other's."""
    other = SessionTree(session_tag("acme", uuid.uuid4().hex))
    mine, theirs = zoo.start("polite", tree.env()), zoo.start("polite", other.env())

    tree.kill()

    assert mine.wait(5) == -signal.SIGKILL
    assert theirs.poll() is None
    other.kill()
    reap(mine, theirs)


def test_a_tree_that_is_asked_first_can_leave_by_itself(tree: SessionTree) -> None:
    """`end` sends SIGTERM and counts nobody as killed who left in time."""
    child = zoo.start("polite", tree.env())

    result = tree.end(grace_s=5)

    assert child.wait(5) == -signal.SIGTERM
    assert result.killed == 0
    reap(child)


def test_a_reused_pid_is_never_signalled() -> None:
    """The start time is part of a process's name: the same pid with another start is somebody else."""
    child = subprocess.Popen([sys.executable, "-I", "-S", "-c", "import time; time.sleep(60)"])
    stat = procfs.read_stat(child.pid)
    assert stat is not None

    sent = send_signal(ProcessRef(child.pid, stat.ref.start - 1), signal.SIGKILL)

    assert not sent
    assert child.poll() is None
    assert send_signal(stat.ref, signal.SIGKILL)
    child.wait(5)


def test_a_process_never_kills_itself_by_its_own_tag() -> None:
    """A worker started with its session's tag kills the session's other processes and goes on."""
    tag = str(session_tag("acme", uuid.uuid4().hex))
    program = f"from agentao_gov.process import kill_processes; r = kill_processes([{tag!r}]); print(r.killed)"

    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, **SessionTree(tag).env()},
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )

    assert (done.returncode, done.stdout) == (0, "0\n"), done.stderr


def test_the_tree_is_also_killed_from_its_roots_alone() -> None:
    """Descent from a root is enough, without any tag."""
    child = zoo.start("helper", {})
    stat = procfs.read_stat(child.pid)
    assert stat is not None

    result = kill_processes(roots=[stat.ref])

    assert result.killed == 2
    assert result.survivors == ()
    reap(child)


@pytest.mark.parametrize("text", ["", "a-b-c-d-e", "1-2-3", "b-n-1-x-s", "b-n-1-2-s-t"])
def test_a_variable_that_is_no_tag_is_ignored(text: str) -> None:
    """Any process may set the variable to anything."""
    assert Tag.parse(text) is None


def test_a_tag_survives_being_written_and_read() -> None:
    """What is written into an environment is read back as the same tag."""
    tag = session_tag("acme", "s-1")

    assert Tag.parse(str(tag)) == tag
    assert tag.owner.here
    assert not tag.owner.gone
