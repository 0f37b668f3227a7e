"""A provider that does not do as it is told: it streams past `max_tokens`, or dies, or will not stream at all."""

from __future__ import annotations

import contextlib
import json
import threading
import tracemalloc
import zlib
from typing import Any

import pytest

from agentao_gov.governor import Outcome
from agentao_gov.governor.http import ANSWER_BYTES_MIN
from tests.governor.harness import Harness
from tests.governor.provider import Answer, Handler, Provide


@pytest.mark.parametrize("model", ["gpt-4.1", "unknown-tokenizer"])
def test_a_stream_past_its_grant_is_cut(harness: Harness, provide: Provide, model: str) -> None:
    """It would go on for ever; what came is charged, and the connection is closed."""
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
    # What came is charged, although it is more than was granted; of a tokenizer unknown here twice as much may come.
    assert 200 < report.usage.completion_tokens <= (240 if model == "gpt-4.1" else 440)
    assert report.usage.estimated_tokens == report.usage.total_tokens
    assert harness.used(report)[1] == 0


def test_a_stream_that_reaches_its_grant_asks_the_ledger_for_more(harness: Harness, provide: Provide) -> None:
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


def test_a_model_that_cannot_stream_is_asked_in_one_piece(harness: Harness, provide: Provide) -> None:
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


def test_a_key_that_the_provider_echoes_is_not_in_the_report(harness: Harness, provide: Provide) -> None:
    """Some gateways quote the whole header."""

    def echo(handler: Handler, _: dict[str, Any]) -> None:
        message = f"Wrong key: {handler.headers['Authorization']}"
        handler.send(401, "application/json", json.dumps({"error": {"message": message}}).encode())

    session = harness.open(base_url=provide(echo).base_url)

    report = harness.ask(session, "hello")

    assert report.outcome == Outcome.MODEL_ERROR
    assert "401" in (report.detail or "")
    assert "sk-simulated-0123456789" not in report.to_json()


def test_a_parameter_the_model_rejects_is_repaired_once(harness: Harness, provide: Provide) -> None:
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


def endless(kind: str, begin: bytes, again: bytes, sent: list[int], **headers: str) -> Answer:
    """Writes `again` for as long as anybody reads it; `sent` gets the bytes that were taken."""

    def answer(handler: Handler, _: dict[str, Any]) -> None:
        handler.send_response(200)
        for name, value in {"Content-Type": kind, "Connection": "close", **headers}.items():
            handler.send_header(name, value)
        handler.end_headers()
        handler.wfile.write(begin)
        with contextlib.suppress(OSError):
            while sum(sent) < 2**30:
                handler.wfile.write(again)
                sent.append(len(again))

    return answer


BLANKS = b" " * 65_536


@pytest.mark.parametrize(
    ("kind", "begin", "again"),
    [
        ("application/json", b'{"choices": [{"message": {"content": "', b"a" * 65_536),
        ("text/event-stream", b"data: ", BLANKS),
        ("text/event-stream", b"", b"data: 1\n" * 8_192),
        ("text/event-stream", b": ", BLANKS),
        ("text/plain", b"", BLANKS),
    ],
)
@pytest.mark.parametrize("model", ["simulated", "gemini-whole"])
def test_an_answer_that_never_ends_is_ended_before_it_fills_the_memory(
    harness: Harness, provide: Provide, kind: str, begin: bytes, again: bytes, model: str
) -> None:
    """One took 1.15 GB in four seconds; what the grant of tokens could fill is the bound, streamed or whole."""
    sent: list[int] = []
    provider = provide(endless(kind, begin, again, sent))
    session = harness.open(
        model=model, base_url=provider.base_url, limits={"max_output_tokens": 1_000, "turn_tokens": 40_000}
    )

    report = harness.ask(session, "hello")

    bound = ANSWER_BYTES_MIN + 1_000 * 256
    assert report.outcome == Outcome.MODEL_ERROR
    assert f"more than {bound:,} bytes" in str(report.operator_detail)
    assert sum(sent) < bound + 16 * 2**20, "kernel buffers apart, no more was read"
    assert report.usage.completion_tokens == 1_000, "all that it may have produced"
    assert harness.used(report) == (report.usage.total_tokens, 0)
    assert len(provider.seen) == 1, "it would not end the second time either"


def test_a_packed_answer_counts_unpacked(harness: Harness, provide: Provide) -> None:
    """A megabyte of zeros has a thousand bytes on the wire."""
    pack = zlib.compressobj(wbits=31)
    bomb = b"".join([pack.compress(b'{"choices": "'), *(pack.compress(b"0" * 2**20) for _ in range(200)), pack.flush()])

    def answer(handler: Handler, _: dict[str, Any]) -> None:
        handler.send_response(200)
        handler.send_header("Content-Type", "application/json")
        handler.send_header("Content-Encoding", "gzip")
        handler.send_header("Content-Length", str(len(bomb)))
        handler.end_headers()
        handler.wfile.write(bomb)

    tracemalloc.start()
    report = harness.run("hello", base_url=provide(answer).base_url, limits={"max_output_tokens": 1_000})
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert report.outcome == Outcome.MODEL_ERROR
    assert "bytes instead of a model's answer" in str(report.operator_detail)
    assert peak < 40 * 2**20
