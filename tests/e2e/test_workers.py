"""`serve --workers`: what becomes of the workers when everything above them is killed, and of two such services."""

from __future__ import annotations

import os
import signal

import psutil
import pytest

from tests.e2e.service import START_S_MAX, Deployment, Service, say, wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]


def workers_of(service: Service) -> list[psutil.Process]:
    """Those that serve, by how multiprocessing starts them."""
    below = psutil.Process(service.process.pid).children(recursive=True)
    return [process for process in below if "spawn_main" in " ".join(process.cmdline())]


def kill_all_above(service: Service, workers: list[psutil.Process]) -> None:
    """SIGKILL of the wardens and of the workers' parent, the lowest first, so that no warden ends a worker."""
    (parent,) = {worker.ppid() for worker in workers}
    above = [psutil.Process(parent), *psutil.Process(parent).parents()]
    chosen = above[: 1 + [process.pid for process in above].index(service.process.pid)]
    for process in chosen:
        process.suspend()
    for process in chosen:
        process.kill()
    service.process.wait()


def test_workers_end_by_themselves_when_everything_above_them_is_killed(deployment: Deployment) -> None:
    """1. two workers serve  2. SIGKILL of wardens and parent at once  → both walk their ladder, nobody answers."""
    service = deployment.start("--workers=2")
    service.turn("s", say(text="x"))
    workers = workers_of(service)

    kill_all_above(service, workers)

    _, alive = psutil.wait_procs(workers, timeout=START_S_MAX)
    assert len(workers) == 2
    assert alive == []
    assert list((service.state / "sessions").glob("t-default/s-s/session"))


def test_the_next_start_ends_workers_that_hang_and_takes_their_address(deployment: Deployment) -> None:
    """1. SIGKILL of all above two workers, which stand still  2. a new service on the same port  → it serves."""
    # A kernel wakes and hangs up on stopped processes whose parents are gone: nobody is to take that for a signal.
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        service = deployment.start("--workers=2", shutdown={"lame_duck": "10s"})
    finally:
        signal.signal(signal.SIGHUP, before)
    workers = workers_of(service)
    kill_all_above(service, workers)
    for worker in workers:
        worker.send_signal(signal.SIGSTOP)

    after = deployment.start("--workers=2", f"--port={service.port}")

    assert after.turn("s", say(text="here")).json["answer"] == "here"
    _, alive = psutil.wait_procs(workers, timeout=START_S_MAX)
    assert alive == []


@pytest.mark.parametrize("how", ["--warden", "--workers=2"])
def test_a_service_that_was_killed_says_so_and_counts_it(deployment: Deployment, how: str) -> None:
    """1. SIGKILL of the process that serves, or of the workers' parent  → one line, a second start, a metric."""
    service = deployment.start(how)
    victim = workers_of(service)[0].ppid() if how == "--workers=2" else service.pid

    os.kill(victim, signal.SIGKILL)
    found = wait_until(lambda: len(e := service.events("listening")) > (2 if how == "--workers=2" else 1) and e)
    service.port = int(found[-1]["address"].rpartition(":")[2])
    wait_until(lambda: service.get("/readyz").status == 200, "readiness", START_S_MAX)

    assert [(line["how"], line["restarts_left"]) for line in service.events("service died")] == [
        ("killed by SIGKILL", 2)
    ]
    assert service.metrics()["restarts_total"] == 1


def test_two_services_with_workers_on_one_state_directory_know_their_own_workers(deployment: Deployment) -> None:
    """1. two services of two workers  → each tells of its own two  2. one ends  → the other still knows both."""
    first, second = deployment.start("--workers=2"), deployment.start("--workers=2")

    def pids(service: Service) -> set[int]:
        return set(service.status()["instance"]["pids"])

    before = [pids(first), pids(second)]
    second.signal()
    second.wait()

    assert [len(seen) for seen in before] == [2, 2]
    assert before[0].isdisjoint(before[1])
    wait_until(lambda: pids(first) == before[0], "the first service's own workers")
