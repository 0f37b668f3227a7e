"""Each resource gives way first in a real run of `--shape capacity`, and the search names it.

The resources are narrowed as an operator would narrow them: a memory plan, `prlimit`, `taskset`. On a machine whose
processors others have taken, the search has to say so instead of naming the service: then there is nothing to see here.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from agentao_gov.config.units import parse_bytes
from agentao_gov.simulator import start_simulator
from agentao_gov.testrig.client import ServiceClient
from agentao_gov.testrig.service import free_port
from tests.loadtest.conftest import Stub
from tests.loadtest.own import start_run

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(200),
    pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="the generator and the service need a core each"),
]
Starter = Callable[..., Stub]

SEARCH = ("--shape", "capacity", "--duration", "60s", "--per-token", "0s", "--threshold", "error_rate<1%")
#: Turns that wait for their model, so that hardly any CPU is needed for many at once.
PATIENT = ("--users", "128", "--first-token", "1s", "--threshold", "turn_p90<20s")
ROOMY = "max_busy = 256"


def cores() -> tuple[int, int]:
    first, second, *_ = sorted(os.sched_getaffinity(0))
    return first, second


def searched(folder: Path, *flags: str, **how: Any) -> tuple[int, dict[str, Any]]:
    """Exit code and report; skips where the search says that this machine was not its own."""
    code, report, error = start_run(folder, *SEARCH, *flags, HOME=str(folder), **how).end()

    assert "capacity" in report, (report, error)
    bottleneck = report["capacity"]["bottleneck"]
    if bottleneck in ("other programs on this machine", "the load generator"):
        assert code != 0
        pytest.skip(f"this machine is too busy: {report['reasons']}")
    return code, report


def evidence(report: dict[str, Any]) -> str:
    return str(report["capacity"]["knee"]["evidence"])


def test_descriptors_bind_a_service_that_may_have_few(tmp_path: Path) -> None:
    """A hard limit of 130 (the soft one is raised to it): about three a busy turn, and more for its connections."""
    code, report = searched(tmp_path, *PATIENT, pool=ROOMY, bounds={"serve": {"files": 130}})

    assert report["capacity"]["bottleneck"] == "descriptors", report["capacity"]
    assert "of 130 with" in evidence(report)
    assert 10 <= report["capacity"]["sessions"] <= 60
    assert code in (0, 11)


def test_memory_binds_session_processes_before_their_plan_is_full(tmp_path: Path) -> None:
    """`[capacity] memory`: each session is a process of some 25 MiB, beside what the service itself takes."""
    pool, plan = f'{ROOMY}\nmode = "subprocess"', '[capacity]\nmemory = "600MiB"'

    code, report = searched(tmp_path, *PATIENT, pool=pool, more=plan)

    found = report["capacity"]
    assert found["bottleneck"] == "memory", found
    assert "of 600MiB ([capacity] memory)" in evidence(report)
    held = next(probe for probe in found["probes"] if probe["load"] == found["knee"]["interval"][0])
    assert held["resources"]["memory_bytes"] <= 600 * 1024**2
    assert 3 <= found["sessions"] <= 30
    assert parse_bytes(found["plan"]["memory"]) <= 600 * 1024**2
    assert code in (0, 11)


def test_the_cpu_of_the_service_binds_quick_turns(tmp_path: Path) -> None:
    """A core for the service, another for all the rest: the model waits 200 ms, the service computes the whole time."""
    one, other = cores()
    bounds = {"serve": {"cores": [other]}, "locust": {"cores": [one]}, "simulator": {"cores": [one]}}

    code, report = searched(
        tmp_path, "--users", "128", "--first-token", "200ms", "--threshold", "turn_p90<20s", pool=ROOMY, bounds=bounds
    )

    assert report["capacity"]["bottleneck"] == "CPU of the service", report["capacity"]
    assert "core" in evidence(report)
    assert code in (0, 11)


def test_the_cpu_of_the_generator_is_no_capacity_of_the_service(stub: Starter, tmp_path: Path) -> None:
    """Against a service that answers at once the generator's core is full first: inconclusive, and said so."""
    one, other = cores()
    service = stub()
    os.sched_setaffinity(service.pid, [other])

    code, report = searched(tmp_path, "--users", "64", "--target", service.url, bounds={"locust": {"cores": [one]}})

    assert report["capacity"]["bottleneck"] == "CPU of the load generator", report["capacity"]
    assert report["capacity"]["knee"]["outcome"] == "unclear"
    assert code == 11
    assert "CPU of the load generator" in " ".join(report["reasons"])


def test_a_generator_without_descriptors_is_not_the_services_failure(stub: Starter, tmp_path: Path) -> None:
    """Turns that could not be sent fail no threshold: the run is inconclusive and names what was short."""
    service = stub(service_s=2.0)

    run = start_run(
        tmp_path, "--rate", "60", "--duration", "4s", "--turns", "1", "--target", service.url,
        "--threshold", "error_rate<1%", bounds={"locust": {"files": 60}}, HOME=str(tmp_path),
    )  # fmt: skip
    code, report, error = run.end()

    assert code == 11, (report.get("reasons"), error)
    assert report["turns"]["by_outcome"]["generator_error"] > 0
    assert any("could not send" in reason and "Too many open files" in reason for reason in report["reasons"])


def test_a_service_that_dies_of_the_load_tells_its_capacity(stub: Starter, tmp_path: Path) -> None:
    """The search ends below the load that killed it, and the run fails."""
    service = stub(service_s=0.1, behaviour="die", after=150)

    code, report = searched(tmp_path, "--users", "64", "--target", service.url)

    assert report["conclusion"] == "fail", report["reasons"]
    assert code == 1
    assert report["capacity"]["bottleneck"] == "the service's death", report["capacity"]


def test_a_foreign_service_tells_its_limits_itself(tmp_path: Path) -> None:
    """A `serve` that already runs, of whose configuration the load test knows nothing: `/v1/status` says `max_busy`."""
    (tmp_path / "agentao-gov.toml").write_text("[pool]\nmax_busy = 2\n[tenants.default]\n")
    environ = {**os.environ, "HOME": str(tmp_path), "AGENTAO_GOV_STATE": str(tmp_path / "state"), "KEY": "none"}
    port = free_port()
    with start_simulator({"default": {"first_token": "400ms", "per_token": "0s"}}) as simulator:
        command = [sys.executable, "-m", "agentao_gov.main", "serve", "--port", str(port), "--model", "m"]
        command += ["--base-url", simulator.base_url, "--api-key-env", "KEY"]
        with (tmp_path / "serve.log").open("wb") as log:
            service = subprocess.Popen(command, cwd=tmp_path, env=environ, stdout=log, stderr=log)
        try:
            url = f"http://127.0.0.1:{port}"
            deadline = time.monotonic() + 60
            while ServiceClient(url).request("GET", "/readyz").status != 200:
                assert service.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.1)
            code, report = searched(
                tmp_path / "load",
                "--users",
                "8",
                "--target",
                url,
                "--mix",
                "qa=1",
                "--threshold",
                "turn_p90<30s",
            )
        finally:
            service.terminate()
            service.wait()

    assert report["capacity"]["bottleneck"] == "max_busy", report["capacity"]
    assert evidence(report).startswith("busy turns at 2 of 2")
    assert abs(report["capacity"]["sessions"] - 2) <= 1
    assert code in (0, 11)
