"""A worker that gives no sign of life is ended; one that does, or that nobody could hear, is left alone."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from multiprocessing import Pipe

import pytest

from agentao_gov.service.workers import WorkerWatch


class Watched:
    """A process in the place of a worker, and its end of the line. Time passes when told to."""

    def __init__(self, program: str) -> None:
        self.process = subprocess.Popen([sys.executable, "-I", "-S", "-c", program], stdout=subprocess.PIPE)
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == b"up\n"
        self.line, self.worker = Pipe()
        self.now = 1_000.0
        self.watch = WorkerWatch(1, self.process.pid, self.line, self.now)

    def passes(self, seconds: float, *, answers: bool = False) -> None:
        """As the parent's loop would: a look every half second."""
        for _ in range(round(seconds * 2)):
            self.now += 0.5
            self.watch.look(self.now)
            if answers and self.worker.poll(0):
                self.worker.recv()
                self.worker.send(True)

    def end(self) -> None:
        self.process.kill()
        self.process.communicate()
        self.line.close()
        self.worker.close()


WAITS = "import time; print('up', flush=True); time.sleep(60)"
IGNORES = "import signal, time; signal.signal(signal.SIGABRT, signal.SIG_IGN); print('up', flush=True); time.sleep(60)"


@pytest.fixture
def worker(request: pytest.FixtureRequest) -> Iterator[Watched]:
    made = Watched(getattr(request, "param", WAITS))
    yield made
    made.end()


def test_a_worker_that_answers_is_left_alone(worker: Watched) -> None:
    """For an hour; and it is asked about once a second, not at every look."""
    worker.passes(3_600, answers=True)

    assert worker.process.poll() is None


def test_a_worker_that_is_silent_is_ended_with_its_stacks(worker: Watched) -> None:
    """After the patience of thirty seconds and not before: SIGABRT, on which it dumps them."""
    worker.passes(20, answers=True)
    worker.passes(28)
    assert worker.process.poll() is None

    worker.passes(4)

    assert worker.process.wait(10) == -signal.SIGABRT


@pytest.mark.parametrize("worker", [IGNORES], indirect=True)
def test_a_worker_that_does_not_even_dump_is_killed(worker: Watched) -> None:
    """Two seconds later, whatever it does with the first signal."""
    worker.passes(10, answers=True)
    worker.passes(40)

    assert worker.process.wait(10) == -signal.SIGKILL


def test_a_worker_that_has_not_answered_yet_has_longer(worker: Watched) -> None:
    """It is starting, perhaps with many others: four minutes are no hang, and from its first answer on thirty seconds
    are."""
    worker.passes(240)
    worker.passes(10, answers=True)
    assert worker.process.poll() is None

    worker.passes(31)

    assert worker.process.wait(10) == -signal.SIGABRT


def test_a_worker_that_never_answers_is_ended_in_the_end(worker: Watched) -> None:
    """One that hangs while it starts would otherwise be there for ever and serve nobody."""
    worker.passes(301)

    assert worker.process.wait(10) == -signal.SIGABRT


def test_silence_while_the_parent_did_not_run_is_none(worker: Watched) -> None:
    """A container that was paused for an hour: the worker is asked again before anything is done."""
    worker.passes(10, answers=True)
    worker.now += 3_600

    worker.passes(20)
    assert worker.process.poll() is None
    worker.passes(20, answers=True)

    assert worker.process.poll() is None


def test_a_worker_that_is_dead_is_not_looked_for(worker: Watched) -> None:
    """Its line ends and its pid is nobody's: nothing is raised, the parent sees its exit code."""
    worker.process.kill()
    worker.process.wait(10)
    worker.worker.close()

    worker.passes(60)
