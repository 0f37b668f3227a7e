"""Several processes send one load: the same turns, the same books, and a worker that is lost is never overlooked."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from agentao_gov.loadtest.document import LoadTestReport
from agentao_gov.loadtest.measure import Histogram
from agentao_gov.loadtest.record import TurnSample, parse_line
from agentao_gov.testrig.service import free_port
from tests.loadtest.conftest import Stub

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]
Starter = Callable[..., Stub]
Load = Callable[..., LoadTestReport]
Command = Callable[..., "subprocess.Popen[bytes]"]


def samples_of(folder: Path) -> list[TurnSample]:
    lines = (folder / "samples.jsonl").read_text().splitlines()
    return [record for line in lines if isinstance(record := parse_line(line), TurnSample)]


@pytest.fixture
def command(tmp_path: Path) -> Iterator[Command]:
    """Starts `agentao-gov loadtest ...`; all of them are gone at the end."""
    with contextlib.ExitStack() as stack:

        def start(*flags: str, cwd: Path = tmp_path) -> subprocess.Popen[bytes]:
            process = subprocess.Popen(
                [sys.executable, "-m", "agentao_gov.main", "loadtest", *flags],
                stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=cwd,
            )  # fmt: skip
            stack.callback(process.communicate)
            stack.callback(process.kill)
            return process

        yield start


def children_of(process: subprocess.Popen[bytes], word: str) -> list[psutil.Process]:
    return [p for p in psutil.Process(process.pid).children(recursive=True) if word in " ".join(p.cmdline())]


def turns_in(folder: Path) -> int:
    file = folder / "samples.jsonl"
    return file.read_text().count('"t":"turn"') if file.exists() else 0


def until(true: Callable[[], Any], process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 60
    while not true():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_two_workers_tell_the_same_as_one(stub: Starter, load: Load, tmp_path: Path) -> None:
    """The same turns of the same sessions, the same books; the workers' histograms merge into the report's bit for bit.

    Longer than the three seconds after which Locust's workers forget what they have counted.
    """
    reports: dict[int, LoadTestReport] = {}
    services = {workers: stub() for workers in (1, 2)}

    def run(workers: int) -> None:
        reports[workers] = load(
            services[workers].url, rate=40.0, duration_s=4.0, workers=workers, seed=5, mix={"qa": 3.0, "code": 1.0},
            report_dir=tmp_path / str(workers),
        )  # fmt: skip

    threads = [threading.Thread(target=run, args=(workers,)) for workers in services]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    samples = {workers: samples_of(tmp_path / str(workers)) for workers in (1, 2)}
    turns = {
        workers: sorted((s.session.split("-", 2)[2], s.intended_s, s.profile, s.tenant) for s in samples[workers])
        for workers in (1, 2)
    }
    assert turns[1] == turns[2]
    assert {s.worker for s in samples[2]} == {0, 1}
    one, two = reports[1], reports[2]
    assert one.turns.by_outcome == two.turns.by_outcome
    assert (one.turns.attempted, one.imbalances, two.imbalances) == (len(turns[1]), [], [])
    assert {name: group.turns.attempted for name, group in one.by_profile.items()} == {
        name: group.turns.attempted for name, group in two.by_profile.items()
    }
    assert [reports[workers].cross_check["requests"] for workers in (1, 2)] == [len(turns[1])] * 2
    merged = Histogram()
    for worker in (0, 1):
        merged.add(Histogram.of(s.latency_us for s in samples[2] if s.worker == worker))
    assert merged.encode().decode() == two.histograms["turn"]


def test_workers_elsewhere_play_a_recording_they_do_not_have(stub: Starter, command: Command, tmp_path: Path) -> None:
    """`--master` and two `--worker-of`: the file is gone before they come."""
    record = {"schema": "agentao-gov/turn-report/1", "profile": "qa", "iterations": 1}
    lines = [
        json.dumps({**record, "session": f"s{n % 7}", "started_at": f"2026-11-22T08:00:0{n // 20}.{n % 20:02d}0000Z"})
        for n in range(80)
    ]
    recording = tmp_path / "recorded.jsonl"
    recording.write_text("\n".join(lines))
    address = f"127.0.0.1:{free_port()}"
    flags = ["--target", stub(service_s=0.2).url, "--no-checklist", "--replay", "recorded.jsonl", "--json"]
    master = command(*flags, "--master", "--workers", "2", "--bind", address, "--report", "out")
    until(lambda: children_of(master, "--master-bind-host"), master)
    recording.unlink()

    workers = [command("--worker-of", address, cwd=Path("/")) for _ in range(2)]
    out, err = master.communicate(timeout=90)

    report = json.loads(out)
    assert master.returncode in (0, 11), err
    assert f"--worker-of {address}".encode() in err
    assert report["turns"]["by_outcome"] == {"answered": 80}
    assert report["plan"]["replay"] == {"turns": 80, "speed": 1.0}
    assert {s.worker for s in samples_of(tmp_path / "out")} == {0, 1}
    assert len({s.session for s in samples_of(tmp_path / "out")}) == 7
    assert [worker.wait(30) for worker in workers] == [0, 0]


def test_a_local_worker_that_is_killed_makes_the_run_inconclusive(
    stub: Starter, command: Command, tmp_path: Path
) -> None:
    """The other one goes on answering, which must not be taken for the whole load."""
    flags = ["--target", stub().url, "--no-checklist", "--rate", "20", "--duration", "100s", "--mix", "qa=1"]
    run = command(*flags, "--workers", "2", "--report", "out", "--json", "--turns", "1")
    until(lambda: children_of(run, "--worker"), run)
    folder = Path(children_of(run, "--worker")[0].environ()["AGENTAO_GOV_LOADTEST"])
    until(lambda: turns_in(folder) > 10, run)

    children_of(run, "--worker")[0].kill()
    out, err = run.communicate(timeout=60)

    report = json.loads(out)
    assert run.returncode == 11, err
    assert (report["conclusion"], report["partial"], report["verdict"]) == ("inconclusive", True, "fail")
    assert "generator died" in report["reasons"][0]
    assert report["turns"]["attempted"] > 10


def test_a_worker_elsewhere_that_is_killed_makes_the_run_inconclusive(
    stub: Starter, command: Command, tmp_path: Path
) -> None:
    """Its process is not seen from here: its silence is."""
    address = f"127.0.0.1:{free_port()}"
    flags = ["--target", stub().url, "--no-checklist", "--rate", "20", "--duration", "100s", "--mix", "qa=1"]
    master = command(*flags, "--master", "--workers", "2", "--bind", address, "--json", "--turns", "1")
    workers = [command("--worker-of", address, cwd=Path("/")) for _ in range(2)]
    until(lambda: children_of(master, "--master-bind-host"), master)
    folder = Path(children_of(master, "--master-bind-host")[0].environ()["AGENTAO_GOV_LOADTEST"])
    until(lambda: turns_in(folder) > 10, master)

    for process in children_of(workers[0], "--worker"):
        process.kill()
    out, err = master.communicate(timeout=60)

    report = json.loads(out)
    assert master.returncode == 11, err
    assert (report["conclusion"], report["partial"]) == ("inconclusive", True)
    assert "was silent for" in report["reasons"][0]
    assert workers[1].wait(30) == 0
