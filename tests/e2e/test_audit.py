"""Audit file and traces of a deployment, wherever its sessions live: the same events in both hosting modes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from pydantic import SecretStr

from agentao_gov.config import Deployment, ModelChoice, ResolvedDeployment, load_profile
from agentao_gov.endings import Outcome
from agentao_gov.governor.types import SessionKey
from agentao_gov.monitor.audit import AuditFile
from agentao_gov.monitor.tracing import Tracing
from agentao_gov.pool import TurnOrder
from agentao_gov.runtime import open_runtime
from agentao_gov.simulator import Simulator
from tests.e2e.service import say

pytestmark = [pytest.mark.slow, pytest.mark.timeout(90)]


@pytest.mark.parametrize("mode", ["in-process", "subprocess"])
def test_tools_permissions_and_turns_are_audited_and_traced(tmp_path: Path, simulator: Simulator, mode: Any) -> None:
    """Two turns with a tool each, one denied: a line and a span for each call, under its turn's; no content."""
    sections = {"pool": {"mode": mode}, "budget": {"store": "memory"}}
    deployment = ResolvedDeployment(
        deployment=Deployment.model_validate(sections), sources={}, findings=(), path=None, state_dir=tmp_path / "state"
    )
    model = ModelChoice("simulated", "simulated-model", simulator.base_url, SecretStr("k"), None, "test")
    calls: list[dict[str, Any]] = [
        {"name": "glob", "args": {"pattern": "secret-pattern*"}},
        {"name": "read_file", "args": {"file_path": "/etc/secret-file"}},
    ]
    messages = [say("secret-question", tool=call, text="secret-answer") for call in calls]
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    audit = AuditFile(tmp_path / "audit")
    with open_runtime(deployment) as runtime:
        runtime.observe(audit)
        runtime.observe(Tracing(provider))
        profile, key = load_profile("qa"), SessionKey("acme", "s")
        orders = [TurnOrder(key, "ann", profile, model, text, f"turn-{n}", mode) for n, text in enumerate(messages)]
        outcomes = [runtime.pool.submit(order).result(60).outcome for order in orders]
    audit.close()
    (file,) = (tmp_path / "audit").iterdir()
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    spans = {span.name: span for span in exporter.get_finished_spans()}

    assert outcomes == [Outcome.ANSWERED] * 2
    calls_told = {line["tool"]: line["outcome"] for line in lines if line["event"] == "tool"}
    assert calls_told == {"glob": "ok", "read_file": "denied"}
    assert [line["event"] for line in lines][-1] == "turn"
    assert all((line["tenant"], line["user"], line["mode"]) == ("acme", "ann", mode) for line in lines)
    finished = exporter.get_finished_spans()
    turns = {span.context.span_id for span in finished if span.name == "invoke_agent qa"}
    below = [span for span in finished if span.context.span_id not in turns]
    assert len(turns) == 2
    assert {"execute_tool glob", "execute_tool read_file", "chat simulated-model"} <= spans.keys()
    assert all(span.parent is not None and span.parent.span_id in turns for span in below)
    assert "secret" not in file.read_text()
    assert "secret" not in "".join(span.to_json() for span in spans.values())
