"""The three wires, judged by the official packages: their types accept every byte, their clients read every answer."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, Protocol

import anthropic
import httpx2
import openai
import pytest
from anthropic.types import Message, RawMessageStreamEvent
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import TypeAdapter

from agentao_gov.simulator import Simulator

PARAMETERS = {"type": "object", "properties": {"file_path": {"type": "string"}}, "required": ["file_path"]}
TEXT = "Grüße aus 東京, in many words."


class Wire(Protocol):
    """How one of the official clients asks, and what its answer comes to."""

    path: str
    whole: Any
    event: Any

    def body(self, prompt: str, *, tools: bool = False, limit: int = 1_000) -> dict[str, Any]: ...

    def text(self, answer: Any) -> str: ...

    def calls(self, answer: Any) -> list[tuple[str, Any]]: ...

    def ended(self, answer: Any) -> str: ...

    def usage(self, answer: Any) -> tuple[int, int]: ...

    def streamed(self, base_url: str, body: dict[str, Any]) -> Any: ...


class Completions:
    path = "/v1/chat/completions"
    whole = TypeAdapter(ChatCompletion)
    event = TypeAdapter(ChatCompletionChunk)

    def body(self, prompt: str, *, tools: bool = False, limit: int = 1_000) -> dict[str, Any]:
        function = {"name": "read_file", "description": "Reads.", "parameters": PARAMETERS}
        more = {"tools": [{"type": "function", "function": function}]} if tools else {}
        messages = [{"role": "user", "content": prompt}]
        return {"model": "simulated", "messages": messages, "max_completion_tokens": limit, **more}

    def text(self, answer: Any) -> str:
        return answer.choices[0].message.content or ""

    def calls(self, answer: Any) -> list[tuple[str, Any]]:
        calls = answer.choices[0].message.tool_calls or ()
        return [(call.function.name, json.loads(call.function.arguments)) for call in calls]

    def ended(self, answer: Any) -> str:
        return str(answer.choices[0].finish_reason)

    def usage(self, answer: Any) -> tuple[int, int]:
        return answer.usage.prompt_tokens, answer.usage.completion_tokens

    def streamed(self, base_url: str, body: dict[str, Any]) -> Any:
        client = openai.OpenAI(base_url=base_url, api_key="k", max_retries=0)
        with client.chat.completions.stream(**body, stream_options={"include_usage": True}) as stream:
            try:
                return stream.get_final_completion()
            except openai.LengthFinishReasonError as cut:
                return cut.completion


class Responses:
    path = "/v1/responses"
    whole = TypeAdapter(Response)
    event = TypeAdapter(ResponseStreamEvent)

    def body(self, prompt: str, *, tools: bool = False, limit: int = 1_000) -> dict[str, Any]:
        tool = {"type": "function", "name": "read_file", "parameters": PARAMETERS, "strict": False}
        more = {"tools": [tool]} if tools else {}
        return {"model": "simulated", "input": prompt, "max_output_tokens": limit, **more}

    def text(self, answer: Any) -> str:
        return str(answer.output_text)

    def calls(self, answer: Any) -> list[tuple[str, Any]]:
        return [(item.name, json.loads(item.arguments)) for item in answer.output if item.type == "function_call"]

    def ended(self, answer: Any) -> str:
        if answer.incomplete_details is not None:
            return {"max_output_tokens": "length"}[answer.incomplete_details.reason]
        return "tool_calls" if self.calls(answer) else "stop"

    def usage(self, answer: Any) -> tuple[int, int]:
        return answer.usage.input_tokens, answer.usage.output_tokens

    def streamed(self, base_url: str, body: dict[str, Any]) -> Any:
        client = openai.OpenAI(base_url=base_url, api_key="k", max_retries=0)
        with client.responses.stream(**body) as stream:
            last = None
            for event in stream:
                last = event
        assert last is not None
        return last.response  # type: ignore[union-attr]


class Messages:
    path = "/v1/messages"
    whole = TypeAdapter(Message)
    event = TypeAdapter(RawMessageStreamEvent)

    def body(self, prompt: str, *, tools: bool = False, limit: int = 1_000) -> dict[str, Any]:
        tool = {"name": "read_file", "description": "Reads.", "input_schema": PARAMETERS}
        more = {"tools": [tool]} if tools else {}
        messages = [{"role": "user", "content": prompt}]
        return {"model": "simulated", "messages": messages, "max_tokens": limit, **more}

    def text(self, answer: Any) -> str:
        return "".join(block.text for block in answer.content if block.type == "text")

    def calls(self, answer: Any) -> list[tuple[str, Any]]:
        return [(block.name, block.input) for block in answer.content if block.type == "tool_use"]

    def ended(self, answer: Any) -> str:
        return {"end_turn": "stop", "max_tokens": "length", "tool_use": "tool_calls"}[answer.stop_reason]

    def usage(self, answer: Any) -> tuple[int, int]:
        return answer.usage.input_tokens, answer.usage.output_tokens

    def streamed(self, base_url: str, body: dict[str, Any]) -> Any:
        client = anthropic.Anthropic(base_url=base_url.removesuffix("/v1"), api_key="k", max_retries=0)
        with client.messages.stream(**body) as stream:
            return stream.get_final_message()


@pytest.fixture(params=[Completions(), Responses(), Messages()], ids=["completions", "responses", "messages"])
def wire(request: pytest.FixtureRequest) -> Wire:
    """Each of the three."""
    found: Wire = request.param
    return found


@pytest.fixture
def http(simulator: Simulator) -> Iterator[httpx2.Client]:
    """A client without an opinion."""
    with httpx2.Client(base_url=simulator.base_url.removesuffix("/v1"), timeout=10) as client:
        yield client


def say(prompt: str, **directive: Any) -> str:
    """A message that scripts the answer."""
    return f"{prompt}\n@sim {json.dumps(directive)}"


def data_of(raw: str) -> list[Any]:
    """The JSON of a stream's events."""
    lines = [line.removeprefix("data: ") for line in raw.splitlines() if line.startswith("data: ")]
    return [json.loads(line) for line in lines if line != "[DONE]"]


def test_an_answer_in_one_piece_is_one_of_the_official_type(wire: Wire, http: httpx2.Client) -> None:
    """The official types are the judges, strictly."""
    answer = wire.whole.validate_python(http.post(wire.path, json=wire.body(say("x", text=TEXT))).json())

    assert wire.text(answer) == TEXT
    assert wire.ended(answer) == "stop"


def test_every_event_of_a_stream_is_one_of_the_official_types(wire: Wire, http: httpx2.Client) -> None:
    """A field that is missing in one event would break a client that is stricter than ours."""
    directive = {"tool": {"name": "read_file", "args": {"file_path": "a.md"}, "text": "I look.", "parallel": 2}}
    body = wire.body(say("x", **directive), tools=True) | {"stream": True}

    events = data_of(http.post(wire.path, json=body).text)

    assert len(events) > 5
    for event in events:
        if event.get("type") != "ping":
            wire.event.validate_python(event)


def test_the_official_client_reads_a_streamed_text(wire: Wire, simulator: Simulator) -> None:
    """Text, ending and usage arrive, and are what the provider counts."""
    answer = wire.streamed(simulator.base_url, wire.body(say("x", text=TEXT)))

    assert wire.text(answer) == TEXT
    assert wire.ended(answer) == "stop"
    tally = simulator.truth(requests=False).total
    assert wire.usage(answer) == (tally.prompt_tokens, tally.completion_tokens)


def test_the_official_client_reads_streamed_calls(wire: Wire, simulator: Simulator) -> None:
    """Text before the calls, and two calls with arguments of their own."""
    tool = {"name": "read_file", "args": {"file_path": "{call}.md"}, "text": "I look.", "parallel": 2}

    answer = wire.streamed(simulator.base_url, wire.body(say("x", tool=tool), tools=True))

    assert wire.text(answer) == "I look."
    assert wire.calls(answer) == [("read_file", {"file_path": "0.md"}), ("read_file", {"file_path": "1.md"})]
    assert wire.ended(answer) == "tool_calls"


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
def test_the_limit_cuts_the_answer_and_says_so(
    wire: Wire, simulator: Simulator, http: httpx2.Client, *, stream: bool
) -> None:
    """The completion is never longer than the request allows."""
    body = wire.body(say("x", answer_tokens=500), limit=20)

    if stream:
        answer = wire.streamed(simulator.base_url, body)
    else:
        answer = wire.whole.validate_python(http.post(wire.path, json=body).json())

    assert wire.ended(answer) == "length"
    assert wire.usage(answer)[1] == 20


def test_reasoning_tokens_are_a_part_of_the_completion(wire: Wire, http: httpx2.Client) -> None:
    """OpenAI tells them apart, Anthropic counts them in."""
    body = wire.body(say("x", text="fine", usage={"reasoning_tokens": 40}))

    answer = wire.whole.validate_python(http.post(wire.path, json=body).json())

    assert wire.usage(answer)[1] == 41


def test_the_prompt_costs_the_same_on_each_wire(simulator: Simulator, http: httpx2.Client) -> None:
    """One rule of counting, so that a script's figures hold for all."""
    for one in (Completions(), Responses(), Messages()):
        http.post(one.path, json=one.body("How much am I?"))

    costs = {record.wire: record.prompt_tokens for record in simulator.truth().requests}

    assert len(costs) == 3
    assert len(set(costs.values())) == 1


@pytest.mark.parametrize(
    ("status", "raised"),
    [
        (400, "BadRequestError"),
        (401, "AuthenticationError"),
        (429, "RateLimitError"),
        (500, "InternalServerError"),
        (529, "OverloadedError"),
    ],
)
def test_a_refusal_has_each_api_s_own_shape(wire: Wire, simulator: Simulator, status: int, raised: str) -> None:
    """The official clients raise what they raise for the real one, with the provider's words."""
    body = wire.body(say("x", fault={"status": status, "retry_after": 7}))

    with pytest.raises((openai.APIStatusError, anthropic.APIStatusError)) as failure:
        wire.streamed(simulator.base_url, body)

    error: Any = failure.value
    assert type(error).__name__ in (raised, "InternalServerError")
    assert error.status_code == status
    assert "as scripted" in json.dumps(error.body)
    assert error.response.headers["retry-after"] == "7"


def test_an_error_in_mid_stream_is_raised_by_the_official_client(wire: Wire, simulator: Simulator) -> None:
    """It comes after the answer's head, as an event of its own."""
    body = wire.body(say("x", text=TEXT, fault={"kind": "error_event", "after": 2}))

    if wire.path == "/v1/responses":
        # The SDK hands this event on, which its type describes.
        with httpx2.Client() as client:
            answer = client.post(f"{simulator.base_url}/responses", json=body | {"stream": True})
        assert wire.event.validate_python(data_of(answer.text)[-1]).type == "error"
        return
    with pytest.raises((openai.APIError, anthropic.APIError), match="as scripted"):
        wire.streamed(simulator.base_url, body)


@pytest.mark.parametrize("kind", ["drop", "no_done", "malformed"])
def test_a_broken_stream_never_ends_as_a_whole_one(wire: Wire, http: httpx2.Client, kind: str) -> None:
    """Nothing of how an answer ends is sent once it is broken, on any wire."""
    body = wire.body(say("x", text=TEXT, fault={"kind": kind, "after": 3})) | {"stream": True}
    raw = b""

    try:
        with http.stream("POST", wire.path, json=body) as answer:
            for part in answer.iter_raw():
                raw += part
    except httpx2.RequestError:
        assert kind == "drop"

    assert b"Gr" in raw
    assert not any(word in raw for word in (b"[DONE]", b"response.completed", b"message_stop", b'"stop"'))


def test_keys_and_users_are_known_on_each_wire(simulator: Simulator, http: httpx2.Client) -> None:
    """The truth is summed by key and user, and never holds a key."""
    http.post("/v1/messages", json=Messages().body("x") | {"metadata": {"user_id": "ann"}}, headers={"x-api-key": "s3"})
    http.post("/v1/responses", json=Responses().body("x") | {"user": "ann"}, headers={"authorization": "Bearer s3"})

    truth = simulator.truth()

    assert truth.for_key("s3").calls == 2
    assert truth.by_user["ann"].calls == 2
    assert "s3" not in [value for record in truth.requests for value in record.headers.values()]
