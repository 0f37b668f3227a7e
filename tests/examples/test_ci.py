"""The CI examples: their YAML has the shape each system reads, and their shell lines do what they say.

The lines are run as the CI would run them, on a report that was written before: walking takes a minute and has tests.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import xmlschema
import yaml

from agentao_gov.checklist.items import ITEMS
from agentao_gov.checklist.remedy import Remedy
from agentao_gov.checklist.report import Check, ChecklistReport, assemble

EXAMPLES = Path(__file__).parents[2] / "examples" / "ci"
SCHEMA = Path(__file__).parents[1] / "report" / "junit.xsd"


def _read(name: str) -> dict[str, Any]:
    data: dict[str, Any] = yaml.safe_load((EXAMPLES / name).read_text())
    return data


def test_the_github_workflow_has_what_a_workflow_needs() -> None:
    """YAML 1.1 reads the key `on` as true."""
    workflow: dict[Any, Any] = dict(_read("github-actions.yml"))

    assert {"name", True, "permissions", "jobs"} <= set(workflow)
    for job in workflow["jobs"].values():
        assert job["runs-on"]
        assert job["timeout-minutes"] <= 15
        for step in job["steps"]:
            assert ("uses" in step) != ("run" in step), step


def test_the_gitlab_jobs_have_scripts_and_reports() -> None:
    """Each names the JUnit file it writes."""
    for name, job in _read("gitlab-ci.yml").items():
        assert job["script"], name
        report = job["artifacts"]["reports"]["junit"]
        assert Path(report).name in " ".join(job["script"]) or "--report" in " ".join(job["script"])


def test_the_hooks_are_local_and_take_no_file_names() -> None:
    """pre-commit would append the changed files to a command that takes none."""
    hooks = [hook for repo in _read("pre-commit-config.yaml")["repos"] for hook in repo["hooks"]]

    assert {hook["id"] for hook in hooks} == {"agentao-gov-config", "agentao-gov-checklist"}
    assert all(hook["language"] == "system" and hook["pass_filenames"] is False for hook in hooks)


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_the_github_step_annotates_summarises_and_writes_junit(tmp_path: Path) -> None:
    """The step's own lines, in its own shell, on a report with a failure: it annotates, and it does not stop."""
    bad = Check("fail", "it refuses", "it accepts", remedy=Remedy((("pool.max_sessions", 5),)))
    items = tuple(assemble(item, [bad if item.number == 1 else Check("pass", "a", "b")]) for item in ITEMS)
    (tmp_path / "checklist.json").write_text(ChecklistReport(verdict="fail", config="x.toml", items=items).to_json())
    steps = _read("github-actions.yml")["jobs"]["checklist"]["steps"]
    script = next(step["run"] for step in steps if "GITHUB_STEP_SUMMARY" in step.get("run", ""))
    summary = tmp_path / "summary.md"
    summary.write_text("what was there\n")

    done = subprocess.run(
        ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", script],
        cwd=tmp_path,
        env={
            **os.environ,
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "GITHUB_STEP_SUMMARY": str(summary),
            "GITHUB_ACTIONS": "true",
        },
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("::error title=1. A cap on concurrent sessions")
    assert "\x1b" not in done.stdout
    assert summary.read_text().startswith("what was there\n## ❌ checklist")
    xmlschema.XMLSchema(SCHEMA).validate(tmp_path / "checklist.xml")
