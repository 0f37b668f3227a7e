"""An agentao that the governor was not tested with is refused by every command that would use it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from agentao_gov.governor.agentao_version import NEEDED, version_problem

ROOT = Path(__file__).parents[2]


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """One in which agentao says that it is an older one."""
    metadata = tmp_path / "site" / "agentao-0.5.14.dist-info" / "METADATA"
    metadata.parent.mkdir(parents=True)
    metadata.write_text("Metadata-Version: 2.1\nName: agentao\nVersion: 0.5.14\n")
    return {**os.environ, "PYTHONPATH": str(tmp_path / "site"), "AGENTAO_GOV_STATE": str(tmp_path / "state")}


def gov(environment: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "agentao_gov", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT, check=False)


@pytest.mark.parametrize("command", ["run hello --model simulated", "serve --model simulated", "checklist", "plan"])
def test_a_command_that_runs_turns_names_both_versions_and_ends_with_3(
    environment: dict[str, str], command: str
) -> None:
    """An ImportError out of the depths told nobody what to install."""
    ended = gov(environment, *command.split())

    assert (ended.returncode, ended.stdout) == (3, "")
    assert ended.stderr.splitlines() == [
        f"agentao-gov: agentao-gov needs agentao {NEEDED}; installed is 0.5.14.",
        f"  pip install 'agentao{NEEDED}'",
    ]


def test_with_json_the_refusal_is_json(environment: dict[str, str]) -> None:
    """A script reads it as it reads every other error."""
    ended = gov(environment, "run", "--json", "hello")

    assert ended.returncode == 3
    assert json.loads(ended.stdout)["error"]["code"] == "invalid_configuration"


def test_a_program_that_imports_the_library_gets_the_same_error(environment: dict[str, str]) -> None:
    """It may never come by the command line."""
    program = "import agentao_gov\nagentao_gov.Governor"

    ended = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env=environment, cwd=ROOT, check=False
    )

    assert ended.stderr.splitlines()[-1].startswith("agentao_gov.errors.ConfigError: agentao-gov needs agentao")


def test_doctor_says_it_and_commands_without_turns_work(environment: dict[str, str]) -> None:
    """Who has the wrong version must be able to find that out, and to read the books."""
    doctor, budget = gov(environment, "doctor"), gov(environment, "budget", "show")

    assert doctor.returncode != 0
    assert f"agentao-gov needs agentao {NEEDED}; installed is 0.5.14." in doctor.stdout
    assert budget.returncode == 0


def test_the_range_is_that_of_the_package(environment: dict[str, str]) -> None:
    """It stands in two places, because the package's metadata is no part of a source tree."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]

    assert f"agentao{NEEDED}" in project["dependencies"]
    assert version_problem() is None
