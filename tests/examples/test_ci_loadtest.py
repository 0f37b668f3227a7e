"""The load-test gate in `examples/ci` does what it says: its own lines, run by the shell, twice."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
CI = ROOT / "examples" / "ci"


def lines(name: str) -> str:
    """The example's script, with 15 s in place of 60, so that p95 still has its 59 turns."""
    data: dict[str, Any] = yaml.safe_load((CI / name).read_text())
    if "jobs" in data:
        steps = data["jobs"]["load-test"]["steps"]
        return str(next(step["run"] for step in steps if "agentao-gov loadtest" in step.get("run", "")))
    return "\n".join(line for line in data["loadtest"]["script"] if "pip install" not in line)


@pytest.fixture
def shell(tmp_path: Path) -> Any:
    """Runs a script in an empty repository, with the installed command in front of everything."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environ = {**os.environ, "PATH": path, "GITHUB_ACTIONS": "true", "CI": "true", "CI_DEFAULT_BRANCH": "main"}

    def run(script: str, **env: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["bash", "-e", "-c", script],
            cwd=tmp_path,
            env={**environ, **env},
            capture_output=True,
            text=True,
            timeout=120,
        )

    return run


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", ["github-actions.yml", "gitlab-ci.yml"])
def test_the_gate_runs_first_without_and_then_with_a_baseline(name: str, shell: Any, tmp_path: Path) -> None:
    """Reports are written; the second run is compared with the first."""
    script = lines(name)
    assert "--duration 60s" in script
    script = script.replace("--duration 60s", "--duration 15s")

    first = shell(script)
    assert first.returncode in (0, 1, 11), first.stderr
    report = json.loads((tmp_path / "loadtest" / "report.json").read_text())
    assert report["baseline"] == {}
    (tmp_path / "baseline").mkdir(exist_ok=True)
    shutil.copy(tmp_path / "loadtest" / "report.json", tmp_path / "baseline")

    second = shell(script, CI_COMMIT_BRANCH="topic")
    assert second.returncode in (0, 1, 11), second.stderr
    report = json.loads((tmp_path / "loadtest" / "report.json").read_text())
    assert {item["name"] for item in report["baseline"]["comparisons"]} >= {"turn_p50", "turn_p95"}
    assert report["baseline"]["allowance"] == 0.1
    assert {path.name for path in (tmp_path / "loadtest").iterdir()} >= {"report.html", "junit.xml", "summary.md"}
    if name.startswith("github"):
        assert all(line.startswith("::") for line in second.stdout.splitlines())
