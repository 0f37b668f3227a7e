"""What OpenAI-compatible endpoints answer when they are not quite: each is used as far as it goes, or named."""

from __future__ import annotations

import json
from typing import Any

import pytest

from agentao_gov.governor import Outcome
from tests.governor.harness import Harness
from tests.governor.provider import Answer, Handler, Provide


def usage(prompt: Any, completion: Any) -> dict[str, Any]:
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": 0}


def choice(delta: dict[str, Any] | None, finish: str | None = None) -> list[dict[str, Any]]:
    return [{"index": 0, "delta": delta, "finish_reason": finish}]


def streams(*chunks: tuple[list[dict[str, Any]], dict[str, Any] | None]) -> Answer:
    """An event stream of these choices and usages."""

    def answer(handler: Handler, _: dict[str, Any]) -> None:
        handler.stream()
        for choices, used in chunks:
            chunk = {"id": "1", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": choices}
            handler.wfile.write(b"data: " + json.dumps(chunk | ({"usage": used} if used else {})).encode() + b"\n\n")
        handler.wfile.write(b"data: [DONE]\n\n")

    return answer


def sends(kind: str, body: bytes, status: int = 200) -> Answer:
    return lambda handler, _: handler.send(status, kind, body)


def redirects(handler: Handler, _: dict[str, Any]) -> None:
    handler.send_response(307)
    handler.send_header("Location", handler.path)
    handler.send_header("Content-Length", "0")
    handler.end_headers()


WHOLE = {
    "id": "1",
    "object": "chat.completion",
    "created": 1,
    "model": "m",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "whole"}, "finish_reason": "stop"}],
    "usage": usage(10, 2),
}
PAGE = b"<html>Please log in</html>"


@pytest.mark.parametrize(
    ("answer", "text", "tokens"),
    [
        (streams((choice({"content": "a"}), usage(9, 1)), (choice({}, "stop"), usage(9, 2))), "a", (9, 2)),
        (streams(([], None), (choice({"content": "a"}), None), (choice({}, "stop"), None), ([], usage(9, 1))), "a",
         (9, 1)),
        (streams((choice(None), None), (choice({"content": "a"}), None), (choice({}, "stop"), usage(9, 1))), "a",
         (9, 1)),
        (sends("application/json", json.dumps(WHOLE).encode()), "whole", (10, 2)),
    ],
    ids=["usage in every chunk", "empty choices", "a delta of null", "JSON instead of a stream"],
)  # fmt: skip
def test_an_odd_answer_that_can_be_read_is_one(
    harness: Harness, provide: Provide, answer: Answer, text: str, tokens: tuple[int, int]
) -> None:
    """Gateways differ; what they report is counted once."""
    provider = provide(answer)

    report = harness.ask(harness.open(base_url=provider.base_url), "hello")

    assert (report.outcome, report.answer) == (Outcome.ANSWERED, text)
    assert (report.usage.prompt_tokens, report.usage.completion_tokens) == tokens
    assert report.usage.estimated_tokens == 0
    assert len(provider.seen) == 1


@pytest.mark.parametrize("reported", [None, usage(-5, -1), usage(0, 0)], ids=["none", "negative", "zero"])
def test_a_usage_that_cannot_be_true_is_estimated(
    harness: Harness, provide: Provide, reported: dict[str, Any] | None
) -> None:
    """Nothing is given away, and the report says what nobody reported."""
    provider = provide(streams((choice({"content": "a"}), None), (choice({}, "stop"), reported)))

    report = harness.ask(harness.open(base_url=provider.base_url), "hello")

    assert report.answer == "a"
    assert report.usage.estimated_tokens == report.usage.total_tokens > 1


def test_tool_calls_with_gaps_in_their_index_are_all_made(harness: Harness, provide: Provide) -> None:
    """Some providers number from where they like."""
    parts = [
        {"index": 3, "id": "c3", "type": "function", "function": {"name": "glob", "arguments": ""}},
        {"index": 3, "function": {"arguments": '{"pattern": "*"}'}},
        {"index": 7, "id": "c7", "type": "function", "function": {"name": "glob", "arguments": '{"pattern": "*.x"}'}},
    ]
    asks = streams(*((choice({"tool_calls": [part]}), None) for part in parts), (choice({}, "tool_calls"), usage(9, 9)))
    ends = streams((choice({"content": "after"}), None), (choice({}, "stop"), usage(20, 1)))

    def answer(handler: Handler, body: dict[str, Any]) -> None:
        (ends if any(message["role"] == "tool" for message in body["messages"]) else asks)(handler, body)

    provider = provide(answer)

    report = harness.ask(harness.open(base_url=provider.base_url), "hello")

    assert report.answer == "after"
    assert [(call.name, call.outcome) for call in report.tool_calls] == [("glob", "ok"), ("glob", "ok")]


def test_what_a_filter_cut_off_is_incomplete(harness: Harness, provide: Provide) -> None:
    """Half a sentence is not an answer; it is shown all the same."""
    provider = provide(streams((choice({"content": "I"}), None), (choice({}, "content_filter"), usage(9, 1))))

    report = harness.ask(harness.open(base_url=provider.base_url), "hello")

    assert (report.outcome, report.answer, report.exit_code) == (Outcome.INCOMPLETE, "I", 4)
    assert "filter" in (report.detail or "")


@pytest.mark.parametrize(
    ("answer", "said", "free"),
    [
        (sends("text/plain", PAGE), "without any event", False),
        (sends("text/event-stream", PAGE), "without any event", False),
        (sends("application/json", PAGE), "without any event", False),
        (sends("text/event-stream", b""), "without any event", False),
        (sends("application/json", b"{}"), "'{}' instead of a model's answer", True),
        (
            sends("application/json", b'{"error": {"message": "no quota for sk-0123456789abcdef"}}'),
            "no quota for",
            True,
        ),
        (redirects, "only redirects", True),
    ],
    ids=["page as text", "page as stream", "page as JSON", "nothing", "no choices", "an error with 200", "a circle"],
)
def test_what_is_no_answer_is_a_model_error_that_names_it(
    harness: Harness, provide: Provide, answer: Answer, said: str, free: bool
) -> None:
    """An empty answer would send the operator looking in the wrong place."""
    provider = provide(answer)
    session = harness.open(base_url=provider.base_url, limits={"llm_retries": 0})

    report = harness.ask(session, "hello")

    assert report.outcome == Outcome.MODEL_ERROR
    assert said in (report.for_operator().detail or "")
    assert "0123456789" not in report.for_operator().to_json()
    assert (report.usage.total_tokens == 0) == free
    assert harness.used(report)[1] == 0


def test_an_endpoint_that_speaks_no_tls_is_named(harness: Harness, provide: Provide) -> None:
    """`https` for `http` is a common slip."""
    base_url = provide(sends("text/plain", b"")).base_url.replace("http:", "https:")
    session = harness.open(base_url=base_url, limits={"llm_retries": 0})

    report = harness.ask(session, "hello")

    assert (report.outcome, report.usage.total_tokens) == (Outcome.MODEL_ERROR, 0)
    assert "SSL" in (report.for_operator().detail or "")
