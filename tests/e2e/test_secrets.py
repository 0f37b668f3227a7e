"""What must not be told: secrets, prompts and answers in no log; where the provider lives in no answer."""

from __future__ import annotations

import pytest

from agentao_gov.simulator import Simulator
from tests.e2e.service import Deployment, say

pytestmark = [pytest.mark.slow, pytest.mark.timeout(90)]

PROMPT, ANSWER, PROVIDER_KEY = "prompt-4711-unheard", "answer-4712-unheard", "sk-provider-4713-unheard"


def test_no_log_file_or_answer_tells_a_secret(
    deployment: Deployment, simulator: Simulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A service is used, refused, broken and stopped; then everything it wrote outside the archive is searched."""
    monkeypatch.setenv("OPENAI_API_KEY", PROVIDER_KEY)
    service = deployment.start("--no-warden", tenants=deployment.tenants("acme"), budget={"store": "sqlite"})
    service.key = deployment.keys["acme"]
    faults = ["500", "html", "drop", "hang", {"status": 401}, {"status": 429}, "400"]

    service.turn("s", say(PROMPT, text=ANSWER))
    service.turn("s", say(PROMPT, tool={"name": "read_file", "args": {"path": PROMPT}}, text=ANSWER))
    told = [service.turn(f"f{n}", say(PROMPT, fault=fault), profile="brisk") for n, fault in enumerate(faults)]
    told += [
        service.turn(f"e{n}", say(PROMPT, fault=fault), profile="brisk", headers={"Accept": "text/event-stream"})
        for n, fault in enumerate(faults)
    ]
    refused = [
        service.turn("s", PROMPT, key=f"wrong-{PROMPT}"),
        service.turn(PROMPT * 10, "x"),
        service.post(PROMPT, b"{"),
    ]
    status, metrics = service.get("/v1/status"), service.get("/metrics")
    service.signal()
    service.wait()
    kept = {
        path: path.read_bytes()
        for path in [service.log, *service.state.rglob("*")]
        if path.is_file() and "sessions" not in path.parts
    }

    assert any("audit" in path.parts for path in kept)
    assert any(path.name == "ledger.db" for path in kept)
    for path, content in kept.items():
        for secret in (PROMPT, ANSWER, PROVIDER_KEY, service.key):
            assert secret.encode() not in content, f"{secret} stands in {path.name}"
    address = simulator.base_url.removeprefix("http://").partition("/")[0]
    for answer in [*told, *refused, status, metrics]:
        assert address.encode() not in answer.body, answer.body
        assert PROVIDER_KEY.encode() not in answer.body
        assert str(service.state).encode() not in answer.body
