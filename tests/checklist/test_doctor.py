"""What the doctor says about sessions in processes of their own."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from agentao_gov.checklist.doctor import examine
from agentao_gov.config import ModelFlags, load_deployment, resolve_model
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


@pytest.mark.parametrize(
    ("address", "says"),
    [
        ("http://model.example/v1", "agentao-gov[socks]"),
        ("http://model.example/v1/chat/completions", "/chat/completions"),
    ],
)
def test_the_doctor_says_what_would_refuse_the_model_s_address(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, address: str, says: str
) -> None:
    """A run would end with 3, and the doctor said nothing of it."""
    if "socks" in says:
        monkeypatch.setenv("ALL_PROXY", "socks5://127.0.0.1:1")
        monkeypatch.setitem(sys.modules, "socksio", None)
    (tmp_path / "agentao-gov.toml").write_text("")
    model = resolve_model(ModelFlags(model="m", base_url=address), environ={})

    said = [line for line in examine(load_deployment(str(tmp_path / "agentao-gov.toml")), model) if line.id == "model"]

    assert [line.health for line in said] == ["fail"]
    assert says in said[0].observed
