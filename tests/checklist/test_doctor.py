"""What the doctor says about sessions in processes of their own."""

from __future__ import annotations

from pathlib import Path

import pytest

from agentao_gov.checklist.doctor import examine
from agentao_gov.config import load_deployment
from agentao_gov.process import survey_layers


@pytest.mark.parametrize(
    ("pool", "health"),
    [
        ('mode = "in-process"', None),
        ('mode = "subprocess"', "warn"),
        ('mode = "subprocess"\nsession_pid_namespace = true', "ok"),
    ],
)
def test_the_doctor_says_whether_sessions_can_reach_each_other(tmp_path: Path, pool: str, health: str | None) -> None:
    """Without a namespace a session's tools are the service's own user; the remedy is one setting."""
    (tmp_path / "agentao-gov.toml").write_text(f"[pool]\n{pool}\n")
    deployment = load_deployment(str(tmp_path / "agentao-gov.toml"))
    namespaces = {layer.name: layer for layer in survey_layers()}["pid namespace"].available

    said = [line for line in examine(deployment, ValueError("no model")) if line.id == "sessions-apart"]

    assert [line.health for line in said] == ([] if health is None else [health if namespaces else "warn"])
    for line in said:
        assert line.health == "ok" or line.remedy
