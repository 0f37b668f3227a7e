"""A provider that does not do as it is told: it streams past `max_tokens`, or dies, or will not stream at all."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from agentao_gov.governor import Outcome
from tests.governor.harness import Harness

Answer = Callable[["Handler", dict[str, Any]], None]


class Handler(BaseHTTPRequestHandler):
    """Answers as the test says."""

    protocol_version = "HTTP/1.1"
    answer: Answer

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.seen.append(body)  # type: ignore[attr-defined]
        with contextlib.suppress(OSError):
            type(self).answer(self, body)
        self.close_connection = True

    def send(self, status: int, kind: str, data: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def stream(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Connection", "close")
        self.end_headers()

    def event(self, delta: dict[str, Any], finish: str | None = None) -> None:
        choice = {"index": 0, "delta": delta, "finish_reason": finish}
        chunk = {"id": "1", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [choice]}
        self.wfile.write(b"data: " + json.dumps(chunk).encode() + b"\n\n")

    def log_message(self, *_: Any) -> None:
        """Keeps quiet."""


class Provider:
    """A running provider."""

    def __init__(self, answer: Answer) -> None:
        handler = type("Answering", (Handler,), {"answer": answer})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        self.seen: list[dict[str, Any]] = []
        self._server.seen = self.seen  # type: ignore[attr-defined]
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True)
        self._thread.start()

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}/v1"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def provide() -> Iterator[Callable[[Answer], Provider]]:
    running: list[Provider] = []

    def start(answer: Answer) -> Provider:
        running.append(Provider(answer))
        return running[-1]

    yield start
    for provider in running:
        provider.close()


@pytest.mark.parametrize("model", ["gpt-4.1", "unknown-tokenizer"])
def test_a_stream_past_its_grant_is_cut(harness: Harness, provide: Callable[[Answer], Provider], model: str) -> None:
    """It would go on for ever; what was granted is charged, and the connection is closed."""
    gone = threading.Event()

    def endless(handler: Handler, _: dict[str, Any]) -> None:
        handler.stream()
        try:
            while True:
                handler.event({"content": "word after word "})
        except OSError:
            gone.set()
            raise

    provider = provide(endless)
    session = harness.open(base_url=provider.base_url, model=model, limits={"max_output_tokens": 200})

    report = harness.ask(session, "go on")

    assert report.outcome == Outcome.INCOMPLETE
    assert gone.wait(10)
    assert 200 <= report.usage.completion_tokens <= 240
    assert report.usage.estimated_tokens == report.usage.total_tokens
    assert harness.used(report)[1] == 0


def test_a_stream_that_reaches_its_grant_asks_the_ledger_for_more(
    harness: Harness, provide: Callable[[Answer], Provider]
) -> None:
    """The first grant was small because others held tokens; they gave them back meanwhile."""
    from agentao_gov.budget import ReserveRequest
    from agentao_gov.budget.types import Scope, ScopeLimit
    from agentao_gov.clock import Deadline

    tenant = ScopeLimit(Scope("tenant", "acme"), 20_000)
    words = 1_700

    def long_answer(handler: Handler, _: dict[str, Any]) -> None:
        handler.stream()
        harness.ledger.release("held")
        for _number in range(words):
            handler.event({"content": "word "})
        handler.event({}, "stop")
        handler.wfile.write(b"data: [DONE]\n\n")

    provider = provide(long_answer)
    session = harness.open(base_url=provider.base_url, limits={"max_output_tokens": 2_000})
    scopes = session._scopes
    session._scopes = lambda request: (tenant, *scopes(request)[1:])
    held = 20_000 - 5_000
    harness.ledger.reserve(ReserveRequest("held", (tenant,), held, 1, 1, "acme", "bob"), deadline=Deadline.after(5))

    report = harness.ask(session, "x" * 600)

    assert provider.seen[0]["max_tokens"] < words - 100
    assert report.outcome == Outcome.ANSWERED
    assert (report.answer or "").count("word") == words


def test_a_model_that_cannot_stream_is_asked_in_one_piece(
    harness: Harness, provide: Callable[[Answer], Provider]
) -> None:
    """The refusal is free, the answer is paid, the text still arrives as an event."""

    def whole(handler: Handler, body: dict[str, Any]) -> None:
        if body.get("stream"):
            error = {"error": {"message": "This model does not support streaming.", "type": "invalid_request_error"}}
            handler.send(400, "application/json", json.dumps(error).encode())
            return
        answer = {
            "id": "1",
            "object": "chat.completion",
            "created": 1,
            "model": "m",
            "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "whole"}}],
            "usage": {"prompt_tokens": 11, "completion_tokens": 3, "total_tokens": 14},
        }
        handler.send(200, "application/json", json.dumps(answer).encode())

    session = harness.open(base_url=provide(whole).base_url)

    report = harness.ask(session, "hello")

    assert (report.outcome, report.answer) == (Outcome.ANSWERED, "whole")
    assert (report.usage.total_tokens, report.usage.llm_calls, report.iterations) == (14, 2, 1)
    assert harness.used(report) == (14, 0)


def test_a_key_that_the_provider_echoes_is_not_in_the_report(
    harness: Harness, provide: Callable[[Answer], Provider]
) -> None:
    """Some gateways quote the whole header."""

    def echo(handler: Handler, _: dict[str, Any]) -> None:
        message = f"Wrong key: {handler.headers['Authorization']}"
        handler.send(401, "application/json", json.dumps({"error": {"message": message}}).encode())

    session = harness.open(base_url=provide(echo).base_url)

    report = harness.ask(session, "hello")

    assert report.outcome == Outcome.MODEL_ERROR
    assert "401" in (report.detail or "")
    assert "sk-simulated-0123456789" not in report.to_json()


def test_a_parameter_the_model_rejects_is_repaired_once(
    harness: Harness, provide: Callable[[Answer], Provider]
) -> None:
    """Reasoning models want `max_completion_tokens`; the repair is no retry."""

    def picky(handler: Handler, body: dict[str, Any]) -> None:
        if "max_tokens" in body:
            message = "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead."
            handler.send(400, "application/json", json.dumps({"error": {"message": message}}).encode())
            return
        handler.stream()
        handler.event({"content": "ok"})
        handler.event({}, "stop")
        handler.wfile.write(b"data: [DONE]\n\n")

    provider = provide(picky)
    session = harness.open(base_url=provider.base_url, limits={"llm_retries": 0, "max_output_tokens": 99})

    report = harness.ask(session, "hello")

    assert report.answer == "ok"
    assert [body.get("max_completion_tokens") for body in provider.seen] == [None, 99]
