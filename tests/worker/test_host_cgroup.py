"""Where control groups can be made, a session process lives in one of its own, which ends with it."""

from __future__ import annotations

import sys

import pytest

from agentao_gov.clock import Deadline
from agentao_gov.governor import Outcome
from agentao_gov.process import procfs
from tests.governor.harness import say
from tests.process.test_oslimits_cgroup import LEAVES
from tests.worker.sessions import SHELL, Subprocesses, shell


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


def test_a_daemon_that_nothing_else_finds_ends_with_its_session_s_group(subprocesses: Subprocesses) -> None:
    """Its warden is killed, its environment empty, its parent gone: the group is the layer that is left."""
    host = subprocesses.open(limits={"turn_timeout": 15, "tool_timeout": 12}, tools=SHELL)
    live = host._live
    assert live is not None
    if live.process.cgroup is None:
        pytest.skip("this process may not make control groups")
    (host.spec.workdir / "leaves.py").write_text(LEAVES)
    # Before the end of the turn, which would find it below the warden.
    kill = "kill -9 $(cut -d' ' -f4 /proc/$PPID/stat)"

    report = subprocesses.ask(host, shell(f"{sys.executable} -I -S leaves.py > pid; {kill}; sleep 300"))

    assert report.outcome is Outcome.INTERNAL_ERROR
    daemon = procfs.read_stat(int((host.spec.workdir / "pid").read_text()))
    assert daemon is None or daemon.dead
    assert not live.process.cgroup.path.exists()
