"""The systemd unit in `examples/systemd` is one that systemd takes, and leaves the way down its time."""

from __future__ import annotations

import configparser
import shutil
import subprocess
from pathlib import Path

import pytest

from agentao_gov.config import load_deployment

UNIT = Path(__file__).parents[2] / "examples" / "systemd" / "agentao-gov.service"


def test_the_unit_gives_the_way_down_its_whole_budget(tmp_path: Path) -> None:
    """SIGTERM to the warden alone, and SIGKILL only after the ladder has been walked."""
    unit = configparser.ConfigParser(strict=False, interpolation=None)
    unit.optionxform = str  # type: ignore[assignment,method-assign]
    unit.read_string(UNIT.read_text())
    (tmp_path / "agentao-gov.toml").write_text("")
    budget_s = load_deployment(str(tmp_path / "agentao-gov.toml")).deployment.server.shutdown_budget_s

    service = unit["Service"]

    assert service["KillMode"] == "mixed"
    assert int(service["TimeoutStopSec"]) > budget_s
    assert service["SuccessExitStatus"] == "143"


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd on this machine")
def test_systemd_takes_the_unit(tmp_path: Path) -> None:
    """No unknown key, no value it would ignore."""
    text = UNIT.read_text().replace("/opt/agentao-gov/bin/agentao-gov", "/bin/true")
    (tmp_path / UNIT.name).write_text(text.replace("User=agentao-gov", "User=root"))

    done = subprocess.run(
        ["systemd-analyze", "verify", str(tmp_path / UNIT.name)],
        capture_output=True, text=True, timeout=15, check=False,
    )  # fmt: skip

    assert (done.returncode, [line for line in done.stderr.splitlines() if UNIT.name in line]) == (0, [])
