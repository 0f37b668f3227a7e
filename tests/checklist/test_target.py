"""The checklist against services that already run: one of ours, and one that accepts everything."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from agentao_gov.checklist.items import select
from agentao_gov.checklist.probe import ProbedService
from agentao_gov.checklist.probe_config import ProbeConfig
from agentao_gov.checklist.report import ChecklistReport
from agentao_gov.checklist.target import walk_target
from agentao_gov.errors import ConfigError
from agentao_gov.process.owner import host_token
from agentao_gov.simulator import Simulator
from tests.checklist.conftest import House

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]

KEY = "CHECKLIST_TEST_KEY"


@pytest.fixture
def ours(house: House, simulator: Simulator, monkeypatch: pytest.MonkeyPatch) -> Iterator[ProbedService]:
    """A service with small limits over the simulated model, which obeys scripts."""
    facts = house.facts()
    config = ProbeConfig.of(facts, facts.profiles[0])
    config.scale_tenant("max_sessions", 8)
    config.scale_tenant("max_sessions_per_user", 4)
    config.scale_tenant("daily_tokens", 400_000)
    config.scale("limits.turn_timeout", "4s", profile=True)
    config.scale("limits.tool_timeout", "2s", profile=True)
    config.lift("limits.tool_timeouts", {}, profile=True)
    config.lift("pool.max_busy", 32)
    with ProbedService(config, simulator) as service:
        monkeypatch.setenv(KEY, config.keys[config.tenant])
        yield service


def _walk(house: House, url: str, *only: str, **options: Any) -> ChecklistReport:
    facts = house.facts()
    return walk_target(url, facts, facts.profiles[0], select(only), **options)


def test_what_can_be_proved_from_outside_is_proved_on_our_own_service(house: House, ours: ProbedService) -> None:
    """Five items hold; three would harm others and are skipped with that reason."""
    report = _walk(house, ours.url, key_variable=KEY)

    assert {item.id: item.status for item in report.items} == {
        "session_caps": "pass",
        "daily_token_budget": "pass",
        "turn_timeout": "pass",
        "max_iterations": "pass",
        "pool_limits": "skip",
        "graceful_shutdown": "skip",
        "monitoring": "pass",
        "tenant_isolation": "skip",
    }, report.to_json()
    assert report.target == ours.url
    assert ours.client().sessions() == {}


def test_a_service_that_accepts_everything_fails(house: House, simulator: Simulator) -> None:
    """A model server has no tenants, no budgets and no metrics of sessions."""
    house.deployment["tenants"]["default"]["daily_tokens"] = 100_000
    report = _walk(house, f"http://127.0.0.1:{simulator.port}", "session_caps", "daily_token_budget", "monitoring")

    tried = {item.id: item.status for item in report.items if item.status != "skip"}
    assert tried == {"session_caps": "fail", "daily_token_budget": "fail", "monitoring": "fail"}
    assert report.exit_code == 1
    assert all(item.remedy for item in report.items if item.id in ("session_caps", "daily_token_budget"))


ANSWERS: dict[str, Any] = {
    "accepts": (200, {"choices": [{"message": {"content": "hi"}}]}, {}),
    "refuses": (429, {"error": {"code": "rate_limit"}}, {"Retry-After": "5"}),
    "exhausted": (429, {"error": {"code": "budget_exhausted", "type": "insufficient_quota"}}, {"Retry-After": "5"}),
}


@pytest.fixture
def stub() -> Iterator[Callable[..., str]]:
    """Starts services that are nothing of ours: `stub(kind)` is the address of one that always does the same."""
    servers: list[ThreadingHTTPServer] = []

    def start(kind: str, metrics: str = "", status: Any = None) -> str:
        class Handler(BaseHTTPRequestHandler):
            def log_message(self, format: str, *args: Any) -> None:
                """Silent."""

            def _send(self, status: int, body: str, form: str, **headers: str) -> None:
                self.send_response(status)
                for name, value in {"Content-Type": form, "Content-Length": str(len(body)), **headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body.encode())

            def do_GET(self) -> None:
                if kind == "html":
                    self._send(200, "<html></html>", "text/html; charset=utf-8")
                elif self.path == "/v1/status" and status is not None:
                    self._send(200, json.dumps(status), "application/json")
                elif self.path == "/metrics":
                    self._send(200, metrics, "text/plain")
                else:
                    self._send(200, '{"data": [{"id": "gpt-x"}]}', "application/json")

            def do_DELETE(self) -> None:
                self._send(200, "{}", "application/json")

            def do_POST(self) -> None:
                self.rfile.read(int(self.headers["Content-Length"]))
                status, body, headers = ANSWERS[kind]
                self._send(status, json.dumps(body), "application/json", **headers)

        class Server(ThreadingHTTPServer):
            request_queue_size = 256

        server = Server(("127.0.0.1", 0), Handler)
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_address[1]}"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize("kind", ["refuses", "exhausted"])
def test_a_service_that_refuses_everything_proves_nothing(house: House, stub: Any, kind: str) -> None:
    """A refusal is worth something only where others are served."""
    report = _walk(house, stub(kind))

    tried = {item.id: item.status for item in report.items if item.status != "skip"}
    assert set(tried.values()) == {"fail"}
    assert {"session_caps", "daily_token_budget", "turn_timeout", "max_iterations"} <= set(tried)


def test_a_page_is_no_service(house: House, stub: Any) -> None:
    """The address of a web site is a wrong configuration, not a failed checklist."""
    with pytest.raises(ConfigError, match="HTML"):
        _walk(house, stub("html"))


def test_a_service_that_accepts_everything_fails_its_caps_and_skips_with_reasons(house: House, stub: Any) -> None:
    """And the reasons name the figures."""
    report = _walk(house, stub("accepts"))

    assert {item.id: item.status for item in report.items}["session_caps"] == "fail"
    reasons = {item.id: item.observed for item in report.items if item.status == "skip"}
    assert "2,000,000" in reasons["daily_token_budget"]
    assert "cannot be made to hang" in reasons["turn_timeout"]


def test_metrics_may_have_other_names(house: House, stub: Any) -> None:
    """A small mapping in the configuration."""
    house.deployment["checklist"] = {"metrics": {"sessions": "chats_open", "mcp_processes": "helpers"}}
    report = _walk(house, stub("accepts", "chats_open 5\nhelpers 1\n"), "monitoring")

    evidence = next(item for item in report.items if item.id == "monitoring").evidence
    assert "[pass] /metrics has chats_open: it is there" in evidence
    assert "[pass] /metrics has helpers: it is there" in evidence
    assert any(line.startswith("[fail] chats_open follows three new sessions: from 5 to 5") for line in evidence)


@pytest.mark.parametrize(
    ("host", "line"),
    [
        ("another machine", "[skip] agentao_gov_process_memory_bytes is true: not seen: its process is not on this"),
        (host_token(), "[fail] agentao_gov_process_memory_bytes is true: metric 0 MiB, /proc"),
    ],
)
def test_memory_is_compared_with_the_process_that_the_service_names_and_no_other(
    house: House, stub: Any, host: str, line: str
) -> None:
    """Whoever listens on the same port of this machine is a stranger, or a proxy."""
    address = stub("accepts", "agentao_gov_process_memory_bytes 5\n", {"instance": {"pid": os.getpid(), "host": host}})
    report = _walk(house, address, "monitoring")

    evidence = next(item for item in report.items if item.id == "monitoring").evidence
    assert [text for text in evidence if text.startswith(line)]


def test_credentials_in_an_address_are_not_shown(house: House, stub: Any) -> None:
    """Reports are kept and passed on."""
    address = stub("accepts").replace("http://", "http://ann:hunter2secret@")

    assert "hunter2secret" not in _walk(house, address, "monitoring").to_json()
