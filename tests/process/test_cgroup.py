"""Where control groups can be made, a session's group holds everything it started, whatever it does to itself."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from agentao_gov.clock import Deadline
from agentao_gov.process import procfs
from agentao_gov.process.cgroup import SessionCgroup, own_cgroup, sweep_cgroups
from agentao_gov.process.oslimits import OsLimits
from tests.governor.harness import say
from tests.process import zoo
from tests.process.conftest import Subprocesses

#: Starts a daemon with an empty environment and says its pid: neither tag nor descent finds it afterwards.
LEAVES = """
import os, sys
if os.fork() == 0:
    os.setsid()
    pid = os.fork()
    if pid:
        print(pid, flush=True)
        os._exit(0)
    null = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1, 2): os.dup2(null, fd)
    os.execve(sys.executable, [sys.executable, "-I", "-S", "-c", "import time; time.sleep(60)"], {})
os.wait()
"""


@pytest.fixture
def group() -> Iterator[SessionCgroup]:
    made = SessionCgroup.create(OsLimits())
    if made is None:
        pytest.skip("this process may not make control groups")
    yield made
    made.end()


def test_a_daemon_without_descent_and_environment_ends_with_its_group(group: SessionCgroup) -> None:
    """One write kills whoever is in it, and the group is gone."""
    join = f"open({str(group.path / 'cgroup.procs')!r}, 'w').write('0')\n"
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", join + LEAVES], capture_output=True, text=True, timeout=10, check=True
    )
    daemon = procfs.read_stat(int(done.stdout))
    assert daemon is not None
    assert group.members() == [daemon.ref.pid]

    assert group.end()

    assert zoo.until(lambda: not procfs.alive(daemon.ref))
    assert not group.path.exists()
    assert group.end()


def test_groups_of_dead_owners_are_swept(group: SessionCgroup) -> None:
    """Named after an owner that is gone: whoever is in it is ended with the group; a living owner's stays."""
    child = subprocess.Popen([sys.executable, "-I", "-S", "-c", "import time; time.sleep(60)"])
    left = group.path.with_name(f"agentao-gov-{child.pid}-1-1")  # this pid, but another start
    left.mkdir()
    (left / "cgroup.procs").write_text(str(child.pid))

    assert sweep_cgroups() >= 1

    assert child.wait(10) == -9
    assert not left.exists()
    assert group.path.exists()


def test_a_session_process_lives_in_a_group_that_goes_with_it(subprocesses: Subprocesses) -> None:
    """Warden, worker and what they start are members; nothing of the group is left after the close."""
    host = subprocesses.open()
    live = host._live
    assert live is not None
    group = live.process.cgroup
    if group is None:
        pytest.skip("this process may not make control groups")

    assert subprocesses.ask(host, say(text="ok")).answer == "ok"
    assert set(host.process_ids()) < set(group.members())
    host.close(Deadline.after(5))

    assert not group.path.exists()


def test_what_is_not_there_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a v2 hierarchy there is no group, and nothing to sweep."""
    monkeypatch.setattr("agentao_gov.process.cgroup.own_cgroup", lambda: None)

    assert SessionCgroup.create(OsLimits()) is None
    assert sweep_cgroups() == 0


def test_our_own_group_is_found_or_there_is_none() -> None:
    """A directory with this process in it."""
    here = own_cgroup()

    assert here is None or str(os.getpid()) in Path(here / "cgroup.procs").read_text().split()
