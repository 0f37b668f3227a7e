"""Known limits are found by real runs, with the constraint that binds, and written into a real deployment file."""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from agentao_gov.loadtest.document import LoadTestReport
from agentao_gov.simulator import start_simulator
from tests.loadtest.conftest import Stub

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]
Starter = Callable[..., Stub]
Load = Callable[..., LoadTestReport]

DEPLOYMENT = """# ours, and this comment stays
[pool]
mode = "in-process"
{pool}

[budget]
store = "memory"

[capacity]
sessions = 7777  # a guess
alert_at = 0.8

[tenants.acme]
{tenant}
"""


@pytest.mark.parametrize(("limit", "turn"), [(3, "500ms"), (17, "700ms"), (60, "2s")])
def test_a_model_of_known_capacity_is_found(limit: int, turn: str, load: Load) -> None:
    """A simulator that serves 3, 17 and 60 at once: within 10 % or one session, in ten probes, and it is the model.

    On a machine that is too busy to send on time, or to serve so many, the run must at least not claim a capacity.
    """
    seconds = float(turn.removesuffix("ms")) / 1000 if turn.endswith("ms") else float(turn.removesuffix("s"))
    with start_simulator({"capacity": {"concurrency": limit}}) as simulator:
        report = load(
            simulator.base_url, api="openai", shape="capacity", duration_s=60.0 + limit, think_scale=1.0,
            first_token_s=seconds, per_token_s=0.0, thresholds=["error_rate<1%"],
        )  # fmt: skip

    assert len(report.capacity.probes) <= 10
    if report.capacity.knee["outcome"] != "found":
        assert report.exit_code == 11
        pytest.skip(f"this machine is too busy: {report.reasons}")
    assert report.capacity.sessions == pytest.approx(limit, abs=max(1, 0.1 * limit))
    assert report.capacity.bottleneck == "model"


@pytest.mark.parametrize(
    ("settings", "outcome", "bottleneck", "code"),
    [
        ({"service_s": 0.2}, "unlimited", "none", 0),
        ({"service_s": 0.4}, "unattainable", "objective turn_p50<300ms", 1),
    ],
)
def test_what_has_no_knee_is_said_to_have_none(
    settings: dict[str, Any], outcome: str, bottleneck: str, code: int, stub: Starter, load: Load
) -> None:
    """Nothing gives way up to the ceiling of 8, or not even one session meets the objective."""
    report = load(
        stub(**settings).url, shape="capacity", users=8, duration_s=40.0, thresholds=["turn_p50<300ms"], think_scale=1.0
    )

    assert report.capacity.knee["outcome"] == outcome, report.capacity
    assert report.capacity.bottleneck == bottleneck
    assert report.exit_code == code, report.reasons


@pytest.mark.parametrize(
    ("pool", "tenant", "bottleneck"),
    [
        ("max_busy = 3\nqueue_limit = 1", "", "max_busy"),
        ("max_sessions = 3\nmax_busy = 3", "", "max_sessions"),
        ("", "max_sessions = 3", "tenant session cap"),
    ],
)
def test_the_constraint_of_a_real_service_is_named_and_its_capacity_written(
    pool: str, tenant: str, bottleneck: str, tmp_path: Path
) -> None:
    """`init`'s kind of file, `--shape capacity --write`: the plan goes in, comments and everything else stay."""
    path = tmp_path / "agentao-gov.toml"
    path.write_text(DEPLOYMENT.format(pool=pool, tenant=tenant))
    flags = ["--shape", "capacity", "--users", "12", "--duration", "60s", "--mix", "qa=1", "--no-checklist", "--write"]
    flags += ["--first-token", "1s", "--per-token", "0s", "--threshold", "turn_p90<30s", "--threshold", "error_rate<1%"]

    done = subprocess.run(
        [sys.executable, "-m", "agentao_gov.main", "loadtest", "--config", str(path), *flags, "--json"],
        capture_output=True, text=True, check=False, cwd=tmp_path, timeout=200,
    )  # fmt: skip

    report = json.loads(done.stdout)
    found = report["capacity"]
    assert found["knee"]["outcome"] == "found", (report["reasons"], found)
    assert abs(found["sessions"] - 3) <= 1
    assert found["bottleneck"] == bottleneck, found["knee"]["evidence"]
    text = path.read_text()
    after = tomllib.loads(text)
    if report["conclusion"] != "pass":
        assert after["capacity"]["sessions"] == 7777
        pytest.skip(f"this machine is too busy: {report['reasons']}")
    assert "# ours, and this comment stays" in text
    assert "# a guess" in text
    assert after["capacity"]["sessions"] == found["plan"]["sessions"] < 100
    assert after["capacity"]["memory"].endswith("MiB")
    assert after["capacity"]["alert_at"] == 0.8
