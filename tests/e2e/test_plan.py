"""`agentao-gov plan` measures the real thing and writes what it found."""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

GOV = str(Path(sys.executable).with_name("agentao-gov"))
STUB = Path(__file__).resolve().parents[2] / "cli/agentao_gov/checklist/mcp_stub.py"

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]


def test_the_plan_is_measured_and_written_without_losing_a_comment(tmp_path: Path) -> None:
    """Sessions, MCP processes and memory of a profile with a server; the file keeps what a person wrote."""
    subprocess.run([GOV, "init"], cwd=tmp_path, check=True, capture_output=True)
    path = tmp_path / "agentao-gov.toml"
    path.write_text("# my own words\n" + path.read_text())
    (tmp_path / "profiles" / "tools.toml").write_text(
        f'extends = "qa"\nname = "tools"\n[mcp.servers.stub]\ncommand = "{sys.executable}"\n'
        f'args = ["-I", "{STUB}", "20"]\n'
        'startup_timeout = "20s"\nrequest_timeout = "5s"\n'
    )

    done = subprocess.run(
        [GOV, "plan", "--profile", "tools", "--memory", "2GiB", "--write", "--json"],
        cwd=tmp_path, capture_output=True, text=True, timeout=100,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    measured, plan = document["measured"], document["plan"]
    written = tomllib.loads(path.read_text())["capacity"]

    assert path.read_text().startswith("# my own words\n")
    assert written["sessions"] == plan["sessions"] > 1
    assert written["mcp_processes"] == plan["mcp_processes"] == plan["sessions"]
    # The stub holds 20 MiB on top of a bare interpreter's 8 to 10.
    assert 20 * 2**20 < measured["mcp"][0]["bytes"] < 60 * 2**20
    # 86 messages of 2,000 characters, each a string of its own: none was summarised away before it was weighed.
    assert 150 * 2**10 < measured["session_full_bytes"] < 3 * 2**20
    assert 0 < measured["cpu_ms_full"] < 200
    assert plan["bottleneck"] == "memory"
    assert plan["rule_bytes"] > plan["details"]["need_bytes"]
    assert subprocess.run([GOV, "config", "check"], cwd=tmp_path, capture_output=True).returncode == 0


def test_what_is_set_on_the_command_line_is_what_is_measured(tmp_path: Path) -> None:
    """A conversation fills the context cap that was asked for, not the file's."""
    done = subprocess.run(
        [GOV, "plan", "--set", "limits.max_context_tokens=20k", "--json"],
        cwd=tmp_path, capture_output=True, text=True, timeout=100,
    )  # fmt: skip

    assert done.returncode == 0, done.stderr
    assert 5_000 < json.loads(done.stdout)["measured"]["full_tokens"] < 20_000


def test_wrong_input_has_its_exit_code(tmp_path: Path) -> None:
    """An unknown profile and no file to write into are configuration errors, a wrong duration is usage."""
    cases = ((["--profile", "nope"], 3), (["--write"], 3), (["--turn-time", "soon"], 2))

    codes = [
        subprocess.run([GOV, "plan", *arguments], cwd=tmp_path, capture_output=True).returncode
        for arguments, _ in cases
    ]

    assert codes == [code for _, code in cases]
