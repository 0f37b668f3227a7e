"""What a native API refuses, and what of a prompt it keeps: the rules a client must know to be served at all."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import anthropic
import httpx2
import pytest

from agentao_gov.errors import ConfigError
from agentao_gov.simulator import Simulator, load_limits, start_simulator
from agentao_gov.simulator.rate_limits import RateLimits

EPHEMERAL = {"type": "ephemeral"}
#: About 2,000 tokens.
LONG = "The sea was calm that morning, and nobody spoke of the storm. " * 150
CALL = {"type": "tool_use", "id": "toolu_1", "name": "read_file", "input": {}}
RESULT = {"type": "tool_result", "tool_use_id": "toolu_1", "content": "1\tHello"}


@pytest.fixture
def http(simulator: Simulator) -> Iterator[httpx2.Client]:
    """A client without an opinion."""
    with httpx2.Client(base_url=simulator.base_url, timeout=10) as client:
        yield client


def user(*blocks: Any) -> dict[str, Any]:
    """A turn of the user."""
    return {"role": "user", "content": [{"type": "text", "text": b} if isinstance(b, str) else b for b in blocks]}


def assistant(*blocks: Any) -> dict[str, Any]:
    """A turn of the model."""
    return {**user(*blocks), "role": "assistant"}


def messages(http: httpx2.Client, *turns: dict[str, Any], **more: Any) -> httpx2.Response:
    """A request to the Messages API."""
    return http.post("/messages", json={"model": "m", "max_tokens": 50, "messages": list(turns), **more})


@pytest.mark.parametrize(
    ("turns", "said"),
    [
        ([user("x"), assistant(CALL)], "`tool_use` ids were found without `tool_result`"),
        ([user("x"), assistant(CALL), user("no result")], "`tool_use` ids were found without `tool_result`"),
        ([user("x"), user(RESULT)], "unexpected `tool_use_id`"),
        ([user("  ")], "must be non-empty"),
        ([{"role": "system", "content": "x"}], "'user' or 'assistant'"),
        ([user(*[{"type": "text", "text": "x", "cache_control": EPHEMERAL}] * 5)], "A maximum of 4 blocks"),
    ],
    ids=["never answered", "answered by text", "result of nothing", "blank", "system inside", "five breakpoints"],
)
def test_messages_that_anthropic_refuses_are_refused(http: httpx2.Client, turns: list[Any], said: str) -> None:
    """A history that the real API would reject must not pass here."""
    answer = messages(http, *turns)

    assert answer.status_code == 400
    assert answer.json()["error"]["type"] == "invalid_request_error"
    assert said in answer.json()["error"]["message"]


def test_results_and_text_in_one_turn_are_taken(http: httpx2.Client) -> None:
    """All results first, then what the user says."""
    answer = messages(http, user("x"), assistant("I look.", CALL), user(RESULT, "And now?"))

    assert "And now?" in answer.json()["content"][0]["text"]


@pytest.mark.parametrize(
    ("items", "said"),
    [
        ([{"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"}], "No tool output found"),
        ([{"type": "function_call_output", "call_id": "c", "output": "x"}], "No tool call found"),
        ([{"type": "web_search", "id": "x"}], "Invalid value"),
    ],
    ids=["never answered", "output of nothing", "unknown item"],
)
def test_input_that_openai_refuses_is_refused(http: httpx2.Client, items: list[Any], said: str) -> None:
    """The same for the Responses API."""
    answer = http.post("/responses", json={"model": "m", "input": items})

    assert answer.status_code == 400
    assert said in answer.json()["error"]["message"]


def test_an_output_limit_below_16_is_refused_on_responses(http: httpx2.Client) -> None:
    """OpenAI takes no smaller one."""
    answer = http.post("/responses", json={"model": "m", "input": "x", "max_output_tokens": 15})

    assert answer.json()["error"]["param"] == "max_output_tokens"


# ── the prompt cache ──────────────────────────────────────────────────────────────────────────────


def system(*, marked: bool = True) -> list[dict[str, Any]]:
    """A long system prompt, with a breakpoint after it or without."""
    return [{"type": "text", "text": LONG, **({"cache_control": EPHEMERAL} if marked else {})}]


def usage(answer: httpx2.Response) -> tuple[int, int, int]:
    """Tokens read from the cache, written to it, and neither."""
    said = answer.json()["usage"]
    return said["cache_read_input_tokens"], said["cache_creation_input_tokens"], said["input_tokens"]


def test_a_marked_prefix_is_written_once_and_read_after(http: httpx2.Client) -> None:
    """The first request pays for writing, the second reads the same tokens, whatever is asked."""
    read, written, rest = usage(messages(http, user("one"), system=system()))
    again = usage(messages(http, user("two, longer"), system=system()))

    assert read == 0
    assert written > 1_024
    assert again[:2] == (written, 0)
    assert rest < 50


def test_without_a_breakpoint_nothing_is_kept(http: httpx2.Client) -> None:
    """Anthropic keeps what it is told to keep."""
    messages(http, user("one"), system=system(marked=False))

    assert usage(messages(http, user("two"), system=system(marked=False)))[:2] == (0, 0)


def test_a_prefix_that_changed_is_not_read(http: httpx2.Client) -> None:
    """Tools stand before the system prompt: another tool is another prefix."""
    tool = {"name": "f", "input_schema": {"type": "object"}}
    messages(http, user("one"), system=system())

    read, written, _ = usage(messages(http, user("one"), system=system(), tools=[tool]))

    assert read == 0
    assert written > 1_024


def test_a_short_prompt_is_never_kept(http: httpx2.Client) -> None:
    """Less than 1,024 tokens are below what providers cache."""
    block = {"type": "text", "text": "Be short.", "cache_control": EPHEMERAL}
    messages(http, user("one"), system=[block])

    assert usage(messages(http, user("one"), system=[block]))[:2] == (0, 0)


def test_a_growing_conversation_reads_up_to_its_last_breakpoint(http: httpx2.Client) -> None:
    """The new breakpoint finds the old one within 20 messages before it, and writes the rest."""
    marked = {"type": "text", "text": LONG, "cache_control": EPHEMERAL}
    _, first, _ = usage(messages(http, user(marked)))
    turns = [user(LONG), assistant("I see."), user(marked)]

    read, written, _ = usage(messages(http, *turns))

    assert read == first
    assert first - 10 < written < first + 50


def test_another_key_reads_nothing(http: httpx2.Client, simulator: Simulator) -> None:
    """What one organisation sent, no other may see."""
    messages(http, user("one"), system=system())

    other = anthropic.Anthropic(base_url=simulator.base_url.removesuffix("/v1"), api_key="other")
    answer = other.messages.create(
        model="m",
        max_tokens=50,
        system=[{"type": "text", "text": LONG, "cache_control": {"type": "ephemeral"}}],
        messages=[{"role": "user", "content": "one"}],
    )

    assert answer.usage.cache_read_input_tokens == 0


def test_openai_s_wires_cache_by_themselves_where_the_script_says_so(http: httpx2.Client, simulator: Simulator) -> None:
    """In steps of 128 tokens, and without anything to be marked."""
    simulator.configure({"prefix_cache": True})
    body = {"model": "m", "input": [{"role": "user", "content": LONG}]}
    first = http.post("/responses", json=body).json()["usage"]
    second = http.post("/responses", json=body).json()["usage"]

    assert first["input_tokens_details"]["cached_tokens"] == 0
    assert second["input_tokens_details"]["cached_tokens"] > 1_024
    assert second["input_tokens_details"]["cached_tokens"] % 128 == 0


# ── the limits a minute ───────────────────────────────────────────────────────────────────────────


def test_a_bucket_fills_up_steadily() -> None:
    """Sixty a minute are one a second, after all sixty were taken at once."""
    now = [100.0]
    limits = RateLimits(load_limits({"requests_per_minute": 60}), lambda: now[0])

    taken = [limits.admit(1) for _ in range(60)]
    refused = limits.admit(1)
    now[0] += 1.0

    assert set(taken) == {0.0}
    assert refused == pytest.approx(1.0)
    assert limits.admit(1) == 0.0


def test_tokens_a_minute_count_prompt_and_completion() -> None:
    """A request larger than a minute's worth passes when the bucket is full, or it could never be served."""
    now = [100.0]
    limits = RateLimits(load_limits({"tokens_per_minute": 600}), lambda: now[0])

    assert limits.admit(10_000) == 0.0
    assert limits.admit(10) == pytest.approx(1.0)


def test_limits_that_are_none_are_refused_with_their_file(tmp_path: Any) -> None:
    """A misspelt key must not mean no limit."""
    file = tmp_path / "limits.toml"
    file.write_text("request_per_minute = 3\n")

    with pytest.raises(ConfigError, match=r"limits\.toml: request_per_minute") as failure:
        load_limits(file)

    assert "requests_per_minute" in str(failure.value.hint)


@pytest.mark.parametrize(
    ("path", "body", "header"),
    [
        ("/chat/completions", {"messages": [{"role": "user", "content": "x"}]}, "x-ratelimit-remaining-requests"),
        ("/responses", {"input": "x"}, "x-ratelimit-remaining-requests"),
        (
            "/messages",
            {"messages": [{"role": "user", "content": "x"}], "max_tokens": 9},
            "anthropic-ratelimit-requests-remaining",
        ),
    ],
    ids=["completions", "responses", "messages"],
)
def test_beyond_the_limit_a_request_gets_429_and_is_not_billed(path: str, body: dict[str, Any], header: str) -> None:
    """Each API says in its own headers where the limit stands, and when to come back."""
    with start_simulator(limits={"requests_per_minute": 1}) as limited:
        first = httpx2.post(limited.base_url + path, json={"model": "m", **body})
        second = httpx2.post(limited.base_url + path, json={"model": "m", **body})
        tally = limited.truth(requests=False).total

    assert (first.status_code, second.status_code) == (200, 429)
    assert first.headers[header] == second.headers[header] == "0"
    assert 1 <= int(second.headers["retry-after"]) <= 60
    assert second.json()["error"]["type"] == "rate_limit_error"
    assert (tally.calls, tally.refused, tally.answered) == (2, 1, 1)
