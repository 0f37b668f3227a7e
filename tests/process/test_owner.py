"""Who is alive: told by processes, boots and namespaces of pids, not by clocks that may jump."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import pytest

from agentao_gov.process.owner import Liveness, Owner, this_process
from tests.support.clock import FakeClock

HERE = this_process()


def neighbour(**changes: object) -> Owner:
    """Another opening of the ledger by this very process, which lives."""
    return replace(this_process(), **changes)  # type: ignore[arg-type]


@pytest.fixture
def liveness(clock: FakeClock) -> Liveness:
    return Liveness(HERE, 30.0, clock)


def test_a_running_process_lives(liveness: Liveness) -> None:
    """And oneself always does, however silent."""
    assert not liveness.dead(neighbour(), 1)
    assert not liveness.dead(HERE, 0)


def test_a_process_that_ended_is_dead_at_once(liveness: Liveness) -> None:
    """Without waiting for the lease."""
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()

    assert liveness.dead(neighbour(pid=child.pid), 1)


def test_a_reused_pid_is_another_process(liveness: Liveness) -> None:
    """The time of its start tells."""
    assert liveness.dead(neighbour(started=HERE.started - 100), 1)


def test_nothing_survives_a_reboot(liveness: Liveness) -> None:
    """Whatever runs under that pid now."""
    assert liveness.dead(neighbour(boot="another"), 1)


def test_pids_of_another_namespace_say_nothing(liveness: Liveness, clock: FakeClock) -> None:
    """A neighbour in a container is dead only after a whole lease of silence."""
    stranger = neighbour(pid=1, started=1, pid_namespace="pid:[1]")

    at_first = liveness.dead(stranger, 7)
    clock.advance(29)
    nearly = liveness.dead(stranger, 7)
    clock.advance(1)

    assert (at_first, nearly) == (False, False)
    assert liveness.dead(stranger, 7)


def test_a_heartbeat_starts_the_lease_anew(liveness: Liveness, clock: FakeClock) -> None:
    """And a wall clock that jumps by a day changes nothing."""
    stranger = neighbour(pid_namespace="pid:[1]")
    for beat in range(5):
        assert not liveness.dead(stranger, beat)
        clock.advance(20)
        clock.step_wall(86_400)
    assert not liveness.dead(stranger, 5)
