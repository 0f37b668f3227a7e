"""`locust -f loadtests/locustfile.py` works by itself against a running service, and as a page beside a plan."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from agentao_gov.testrig.client import exchange
from agentao_gov.testrig.service import free_port
from tests.loadtest.conftest import ROOT, Stub

pytestmark = [pytest.mark.slow, pytest.mark.timeout(150)]
Start = Callable[..., "subprocess.Popen[bytes]"]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts a Python module with arguments; gone at the end."""
    with contextlib.ExitStack() as stack:

        def run(module: str, *arguments: str, cwd: Path = tmp_path) -> subprocess.Popen[bytes]:
            log = stack.enter_context((tmp_path / f"{module}.log").open("wb"))
            process = subprocess.Popen([sys.executable, "-m", module, *arguments], stdout=log, stderr=log, cwd=cwd)
            stack.callback(process.wait)
            stack.callback(process.terminate)
            return process

        yield run


def eventually(url: str, true: Callable[[str], Any], process: subprocess.Popen[bytes]) -> str:
    """The page once it is as it should be."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        assert process.poll() is None
        with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=5) as answer:
            text: str = answer.read().decode()
            if true(text):
                return text
        time.sleep(0.1)
    raise AssertionError(url)


def answered(text: str) -> bool:
    turns = [row for row in json.loads(text)["stats"] if row["method"] == "turn"]
    return sum(row["num_requests"] for row in turns) >= 3 and not any(row["num_failures"] for row in turns)


def test_plain_locust_loads_a_running_service_and_shows_its_page(start: Start, tmp_path: Path) -> None:
    """The suite as anyone uses Locust: users, web page, statistics; the service is a real one."""
    (tmp_path / "agentao-gov.toml").write_text('[budget]\nstore = "memory"\n[tenants.default]\n')
    port, web = free_port(), free_port()
    serve = start("agentao_gov.main", "serve", "--port", str(port), "--model", "simulated")
    eventually(f"http://127.0.0.1:{port}/readyz", lambda _: True, serve)

    suite = ["-f", str(ROOT / "loadtests" / "locustfile.py"), "--host", f"http://127.0.0.1:{port}", "--simulated"]
    locust = start(
        "locust", *suite, "-u", "4", "-r", "4", "--autostart", "--web-host", "127.0.0.1", "--web-port", str(web)
    )

    stats = eventually(f"http://127.0.0.1:{web}/stats/requests", answered, locust)
    page = eventually(f"http://127.0.0.1:{web}/", lambda _: True, locust)
    assert "<title>Locust</title>" in page
    assert {row["method"] for row in json.loads(stats)["stats"]} >= {"turn", "first token"}


def test_plain_locust_runs_headless_with_a_shape(
    stub: Callable[..., Stub], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The words of `--shape`, in users."""
    for name, value in (("LOADTEST_SHAPE", "steps"), ("LOADTEST_USERS", "5"), ("LOADTEST_SECONDS", "4")):
        monkeypatch.setenv(name, value)
    suite = ["-f", str(ROOT / "loadtests" / "locustfile.py"), "--host", stub().url]

    done = subprocess.run(
        [sys.executable, "-m", "locust", *suite, "--headless", "--json", "--only-summary"],
        capture_output=True, text=True, cwd=tmp_path, check=False, timeout=90,
    )  # fmt: skip

    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout[done.stdout.index("[") :])
    assert sum(row["num_requests"] for row in rows if row["method"] == "turn") >= 3
    assert not any(row["num_failures"] for row in rows)


def test_a_planned_run_shows_locusts_page_beside(stub: Callable[..., Stub], start: Start) -> None:
    """`loadtest --web`: the same turns in Locust's own view."""
    web = free_port()
    flags = ["--target", stub().url, "--no-checklist", "--rate", "20", "--duration", "60s", "--mix", "qa=1"]

    run = start("agentao_gov.main", "loadtest", *flags, "--web", "--web-port", str(web), "--quiet")

    eventually(f"http://127.0.0.1:{web}/stats/requests", answered, run)
    assert "<title>Locust</title>" in eventually(f"http://127.0.0.1:{web}/", lambda _: True, run)


def test_stop_on_locusts_page_ends_the_schedule_and_the_run(
    stub: Callable[..., Stub], start: Start, tmp_path: Path
) -> None:
    """A brake that stops only a picture would be none; the plan knows no users, so EDIT and NEW are not offered."""
    web = free_port()
    flags = ["--target", stub().url, "--no-checklist", "--rate", "20", "--duration", "100s", "--mix", "qa=1"]
    run = start(
        "agentao_gov.main", "loadtest", *flags, "--web", "--web-port", str(web), "--report", str(tmp_path / "report")
    )
    eventually(f"http://127.0.0.1:{web}/stats/requests", answered, run)
    page = eventually(f"http://127.0.0.1:{web}/", lambda _: True, run)

    edited = exchange(f"http://127.0.0.1:{web}", "POST", "/swarm", {"user_count": 9})
    exchange(f"http://127.0.0.1:{web}", "POST", "/stop", {})

    assert run.wait(60) == 130
    report = json.loads((tmp_path / "report" / "report.json").read_text())
    assert (report["conclusion"], report["partial"]) == ("interrupted", True)
    assert report["reasons"] == ["ended by STOP on Locust's page; the report is partial"]
    assert report["duration_s"] < 60
    assert "MuiButton-containedSecondary" in page
    assert edited.body["success"] is False
