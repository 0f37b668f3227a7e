"""The example runs as its first lines say: a user's own service on the pool, the ledger and the governor."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from agentao_gov.simulator import Simulator

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "fastapi_service.py"

pytestmark = [pytest.mark.slow, pytest.mark.timeout(90)]


@pytest.fixture
def port(tmp_path: Path, simulator: Simulator) -> Iterator[int]:
    """The example's port, in a directory that `init` has prepared."""
    gov = str(Path(sys.executable).with_name("agentao-gov"))
    subprocess.run([gov, "init"], cwd=tmp_path, check=True, capture_output=True)
    model = {"OPENAI_API_KEY": "k", "OPENAI_BASE_URL": simulator.base_url, "OPENAI_MODEL": "simulated-model"}
    process = subprocess.Popen(
        [sys.executable, "-m", "uvicorn", "--app-dir", str(EXAMPLE.parent), "--port", "0", "fastapi_service:app"],
        cwd=tmp_path, env={**os.environ, **model}, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stderr is not None
    seen = []
    for line in process.stderr:
        seen.append(line)
        if found := re.search(r"running on http://127.0.0.1:(\d+)", line):
            break
    else:
        pytest.fail("".join(seen))
    yield int(found[1])
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=30)
    assert process.returncode in (0, -signal.SIGTERM)


def ask(port: int, session: str, message: str, tenant: str | None = "default") -> tuple[int, Any]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    headers = {"Content-Type": "application/json"} | ({"X-Tenant": tenant} if tenant else {})
    connection.request("POST", f"/ask/{session}", json.dumps({"message": message}), headers)
    response = connection.getresponse()
    body = json.loads(response.read())
    connection.close()
    return response.status, body


def test_the_example_answers_keeps_sessions_and_refuses_with_the_pools_own_codes(
    port: int, simulator: Simulator
) -> None:
    """Two turns of one session, one that fails, one without a tenant."""
    first = ask(port, "s", 'one\n@sim {"text": "first"}')
    second = ask(port, "s", 'two\n@sim {"text": "second"}')
    failed = ask(port, "other", '@sim {"fault": {"status": 401}}')
    nobody = ask(port, "s", "x", tenant=None)
    messages = [record.messages for record in simulator.truth().requests]

    assert (first[0], first[1]["answer"]) == (200, "first")
    assert (second[0], second[1]["answer"]) == (200, "second")
    assert second[1]["report"]["outcome"] == "answered"
    assert messages[:2] == [2, 4]
    assert (failed[0], failed[1]["report"]["outcome"]) == (502, "model_error")
    assert nobody[0] == 422


def test_the_example_fits_on_a_screen() -> None:
    """It is read before it is run."""
    assert len(EXAMPLE.read_text().splitlines()) < 90
