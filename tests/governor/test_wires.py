"""The native wires: what is sent, what is cached, what is mended, with the official package's own words on the wire."""

from __future__ import annotations

import json
from typing import Any

import pytest

from agentao_gov.config.model import ModelOptions
from agentao_gov.governor import Outcome
from tests.governor.harness import Harness, say
from tests.governor.provider import Handler, Provide
from tests.governor.test_spend import truth

READ = {"name": "read_file", "args": {"file_path": "{round}.md"}, "rounds": 20}


def event(kind: str, **fields: Any) -> bytes:
    """One event of a native stream."""
    return f"event: {kind}\ndata: {json.dumps({'type': kind, **fields})}\n\n".encode()


def message_start(**usage: int) -> bytes:
    """How a Messages stream begins."""
    message = {"id": "m", "type": "message", "role": "assistant", "model": "m", "content": [], "usage": usage}
    return event("message_start", message=message)


def said(text: str) -> bytes:
    """A block of text."""
    block = {"type": "text", "text": ""}
    delta = {"type": "text_delta", "text": text}
    return b"".join(
        [
            event("content_block_start", index=0, content_block=block),
            event("content_block_delta", index=0, delta=delta),
            event("content_block_stop", index=0),
        ]
    )


def message_end(reason: str = "end_turn", **usage: int) -> bytes:
    """How a Messages stream ends."""
    return event("message_delta", delta={"stop_reason": reason}, usage=usage) + event("message_stop")


FINE = message_start(input_tokens=30, output_tokens=1) + said("fine") + message_end(output_tokens=9)
UNKNOWN = {"type": "error", "error": {"type": "invalid_request_error", "message": "cache_control: Extra inputs"}}


def on(harness: Harness, wire: Any) -> Harness:
    """The harness on a wire."""
    harness.api_format = wire
    return harness


def test_a_tool_loop_reads_its_prompt_from_the_cache(harness: Harness) -> None:
    """Twenty rounds on Messages: at least 80 % of the prompt's tokens are cache reads, and the report says so."""
    on(harness, "anthropic-messages")

    report = harness.run(say("look", tool=READ, text="done"), limits={"turn_tokens": 400_000})

    total = harness.simulator.truth(requests=False).total
    assert report.iterations == 21
    assert report.usage.cached_tokens == total.cached_tokens >= 0.8 * report.usage.prompt_tokens
    assert report.usage.cache_write_tokens == total.cache_write_tokens > 0
    assert report.usage.estimated_tokens == 0
    assert harness.used(report) == (truth(harness), 0)


def test_a_last_answer_still_reads_the_cache(harness: Harness) -> None:
    """The tools go along with the word not to use them: without them the prompt would begin otherwise."""
    on(harness, "anthropic-messages")

    report = harness.run(say("look", tool=READ | {"rounds": "endless"}, text="done"), limits={"max_iterations": 3})

    last = harness.simulator.truth().requests[-1]
    assert (report.outcome, report.answer is not None) == (Outcome.MAX_ITERATIONS, True)
    assert last.tools == 0
    assert last.cached_tokens > 0.8 * last.prompt_tokens


def test_thoughts_and_cache_are_charged_as_anthropic_counts_them(harness: Harness, provide: Provide) -> None:
    """`input_tokens` is the uncached remainder there; what was read and written comes on top of it."""
    start = message_start(input_tokens=5, cache_read_input_tokens=70, cache_creation_input_tokens=25, output_tokens=1)
    thought = {"type": "thinking", "thinking": "", "signature": ""}
    thinking = b"".join(
        [
            event("content_block_start", index=0, content_block=thought),
            event("content_block_delta", index=0, delta={"type": "thinking_delta", "thinking": "Hm."}),
            event("content_block_delta", index=0, delta={"type": "signature_delta", "signature": "c2ln"}),
            event("content_block_stop", index=0),
        ]
    )

    def answer(handler: Handler, _: dict[str, Any]) -> None:
        handler.stream()
        handler.wfile.write(start + event("ping") + thinking + said("fine") + message_end(output_tokens=12))

    provider = provide(answer)
    session = on(harness, "anthropic-messages").open(base_url=provider.base_url)
    report = harness.ask(session, "think")
    harness.ask(session, "again")

    usage = report.usage
    assert (report.answer, usage.prompt_tokens, usage.completion_tokens) == ("fine", 100, 12)
    assert (usage.cached_tokens, usage.cache_write_tokens, usage.estimated_tokens) == (70, 25, 0)
    # The signed thought goes back as it came, before the text.
    spoken = next(turn for turn in provider.seen[1]["messages"] if turn["role"] == "assistant")
    assert spoken["content"][0] == {"type": "thinking", "thinking": "Hm.", "signature": "c2ln"}


def test_a_gateway_that_does_not_know_the_markers_is_asked_without(harness: Harness, provide: Provide) -> None:
    """Once, and from then on; the answer is not lost."""

    def answer(handler: Handler, body: dict[str, Any]) -> None:
        if "cache_control" in json.dumps(body):
            handler.send(400, "application/json", json.dumps(UNKNOWN).encode())
            return
        handler.stream()
        handler.wfile.write(FINE)

    provider = provide(answer)
    session = on(harness, "anthropic-messages").open(base_url=provider.base_url, tools={"allow": []})
    reports = [harness.ask(session, "one"), harness.ask(session, "two")]

    assert [report.answer for report in reports] == ["fine", "fine"]
    assert len(provider.seen) == 3
    assert "tools" not in provider.seen[1]


def test_a_cap_that_the_provider_names_holds_from_then_on(harness: Harness, provide: Provide) -> None:
    """Anthropic says what a model can say at most; what is reserved follows."""
    told = "max_tokens: 4096 > 1000, which is the maximum allowed number of output tokens for m"

    def answer(handler: Handler, body: dict[str, Any]) -> None:
        if body["max_tokens"] > 1_000:
            error = {"type": "error", "error": {"type": "invalid_request_error", "message": told}}
            handler.send(400, "application/json", json.dumps(error).encode())
            return
        handler.stream()
        handler.wfile.write(FINE)

    provider = provide(answer)
    session = on(harness, "anthropic-messages").open(base_url=provider.base_url)
    reports = [harness.ask(session, "one"), harness.ask(session, "two")]

    assert [report.answer for report in reports] == ["fine", "fine"]
    assert [body["max_tokens"] for body in provider.seen] == [4_096, 1_000, 1_000]


@pytest.mark.parametrize("wire", ["anthropic-messages", "openai-responses"])
def test_an_overload_in_the_stream_is_tried_again(harness: Harness, wire: str) -> None:
    """It came before any text: nothing was shown, so the turn goes on."""
    fault = {"kind": "error_event", "after": 0, "times": 1}

    report = on(harness, wire).run(say("x", text="fine", fault=fault), limits={"llm_retries": 1})

    assert (report.answer, report.usage.llm_calls) == ("fine", 2)


def test_an_endpoint_that_refuses_store_is_asked_without(harness: Harness, provide: Provide) -> None:
    """Gateways before other models do not know what OpenAI's own API asks for."""
    item = {"type": "message", "id": "i", "role": "assistant", "status": "completed"}
    item["content"] = [{"type": "output_text", "text": "fine", "annotations": []}]  # type: ignore[assignment]
    usage = {"input_tokens": 30, "output_tokens": 9, "total_tokens": 39}
    done = {"id": "r", "object": "response", "status": "completed", "output": [item], "usage": usage, "model": "m"}

    def answer(handler: Handler, body: dict[str, Any]) -> None:
        if "store" in body:
            error = {"error": {"message": "Unsupported parameter: 'store'", "param": "store"}}
            handler.send(400, "application/json", json.dumps(error).encode())
            return
        handler.stream()
        handler.wfile.write(event("response.completed", response=done))

    provider = provide(answer)
    report = on(harness, "openai-responses").run("x", base_url=provider.base_url)

    assert (report.answer, report.usage.prompt_tokens, report.usage.completion_tokens) == ("fine", 30, 9)
    assert len(provider.seen) == 2


def test_anthropic_s_headers_are_sent_and_openai_s_are_not(harness: Harness, provide: Provide) -> None:
    """The key goes where Anthropic looks for it, and nowhere else; the address may lack its `/v1`."""
    seen: list[tuple[str, dict[str, str]]] = []

    def answer(handler: Handler, _: dict[str, Any]) -> None:
        seen.append((handler.path, {name.lower(): value for name, value in handler.headers.items()}))
        handler.stream()
        handler.wfile.write(FINE)

    base_url = provide(answer).base_url
    on(harness, "anthropic-messages")
    harness.run("x", base_url=base_url)
    harness.run("x", session="s2", base_url=base_url.removesuffix("/v1"))

    assert [path for path, _ in seen] == ["/v1/messages", "/v1/messages"]
    headers = seen[0][1]
    assert headers["x-api-key"] == "sk-simulated-0123456789"
    assert headers["anthropic-version"] == "2023-06-01"
    assert "authorization" not in headers


@pytest.mark.parametrize("wire", ["anthropic-messages", "openai-responses"])
@pytest.mark.parametrize("body", [b'{"content": [{"type": "text"', b'{"id": "x", "content": []}', b"ok"])
def test_what_is_no_stream_is_a_model_error_that_is_paid(
    harness: Harness, provide: Provide, wire: str, body: bytes
) -> None:
    """JSON where events were asked for may have been produced: it costs its bound, and the session goes on."""

    def answer(handler: Handler, _: dict[str, Any]) -> None:
        handler.send(200, "application/json", body)

    provider = provide(answer)
    session = on(harness, wire).open(base_url=provider.base_url, limits={"llm_retries": 0})
    report = harness.ask(session, "x")

    assert report.outcome == Outcome.MODEL_ERROR
    assert report.usage.estimated_tokens == report.usage.total_tokens > 0
    assert harness.used(report)[1] == 0


@pytest.mark.parametrize(
    ("wire", "thinking"),
    [
        ("openai-completions", {"reasoning_effort": "high"}),
        ("anthropic-messages", {"output_config": {"effort": "high"}}),
        ("openai-responses", {"reasoning": {"effort": "high"}}),
    ],
)
def test_the_options_of_a_model_stand_in_each_request(
    harness: Harness, provide: Provide, wire: str, thinking: dict[str, Any]
) -> None:
    """Temperature, level, headers and whatever else, where the wire has them; a refused temperature is left out."""
    teams: list[str | None] = []

    def answer(handler: Handler, body: dict[str, Any]) -> None:
        teams.append(handler.headers["X-Team"])
        what = "Unsupported parameter: 'temperature' is not supported with this model."
        error = {"error": {"message": what, "param": "temperature"}}
        handler.send(400, "application/json", json.dumps(error).encode())

    on(harness, wire).options = ModelOptions(0.2, "high", {"X-Team": "search"}, {"top_k": 5})
    provider = provide(answer)
    report = harness.run("x", base_url=provider.base_url)

    first, second = provider.seen
    assert report.outcome == Outcome.MODEL_ERROR
    assert (first["temperature"], first["top_k"], teams) == (0.2, 5, ["search", "search"])
    assert {key: first[key] for key in thinking} == thinking
    assert "temperature" not in second
