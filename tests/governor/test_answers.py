"""A provider's answer in its own dialect: read as far as it goes, with the provider's words for the operator."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from agentao_gov.errors import ConfigError
from agentao_gov.governor import Outcome, TurnReport
from agentao_gov.governor.answers import Event, read_events
from agentao_gov.governor.classify import provider_words
from tests.governor.harness import Harness
from tests.governor.provider import DONE, STOP, TEXT, Answer, Handler, Provide, chunk, usage

USED = chunk(None, None, usage(30, 5))


def streams(*parts: bytes) -> Answer:
    """An event stream of these bytes."""

    def answer(handler: Handler, _: dict[str, Any]) -> None:
        handler.stream()
        handler.wfile.write(b"".join(parts))

    return answer


def sends(body: Any, status: int = 200, kind: str = "application/json") -> Answer:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return lambda handler, _: handler.send(status, kind, data)


def ask(harness: Harness, provide: Provide, answer: Answer, **settings: Any) -> TurnReport:
    limits = {"llm_retries": 0, **settings.pop("limits", {})}
    return harness.run("hello", base_url=provide(answer).base_url, limits=limits, **settings)


STREAM = (
    b": hi\r\n\r\ndata: one\r\ndata: two\r\n\r\nevent: x\ndata:three\n\n"
    b"data\n\ndata: \n\nid: 7\ndata: f\xc3\xbcnf\r\rdata: end"
)
EVENTS = [Event("", "one\ntwo"), Event("x", "three"), Event("", "fünf"), Event("", "end")]


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1_000])
def test_an_event_stream_is_read_wherever_it_is_cut(size: int) -> None:
    """Every line end, comments, records without data, a character in two pieces, and no blank line at the end."""
    pieces = [STREAM[at : at + size] for at in range(0, len(STREAM), size)]

    assert list(read_events(pieces)) == EVENTS


@pytest.mark.parametrize("record", [b"data:\n\n", b"data: \n\n", b"event: ping\n\n", b"data: ping\n\n", b": keep\n\n"])
def test_a_record_without_a_chunk_is_left_out(harness: Harness, provide: Provide, record: bytes) -> None:
    """Each killed a healthy turn and was charged 17,470 tokens."""
    report = ask(harness, provide, streams(record, TEXT, record, STOP, record, USED, DONE))

    assert (report.outcome, report.answer) == (Outcome.ANSWERED, "fine")
    assert (report.usage.total_tokens, report.usage.estimated_tokens) == (35, 0)


@pytest.mark.parametrize("kind", ["text/event-stream", "text/plain", "application/json; charset=utf-8"])
def test_a_whole_answer_is_one_whatever_its_type_says(harness: Harness, provide: Provide, kind: str) -> None:
    """Gateways in front of models that cannot stream name it as they like."""
    choice = {"index": 0, "message": {"role": "assistant", "content": "fine"}, "finish_reason": "stop"}
    body = {"id": "1", "choices": [choice], "usage": usage(30, 5)}

    report = ask(harness, provide, sends(body, kind=kind))

    assert (report.answer, report.usage.total_tokens) == ("fine", 35)


SHAPES = {
    "Google": [{"error": {"code": 400, "message": "the words"}}],
    "FastAPI": {"detail": "the words"},
    "FastAPI, validation": {"detail": [{"loc": ["body"], "msg": "the words"}]},
    "Ollama": {"error": "the words"},
    "problem+json": {"type": "about:blank", "title": "the words", "status": 400},
    "MiniMax": {"base_resp": {"status_code": 1004, "status_msg": "the words"}},
    "OpenAI": {"error": {"message": "the words", "type": "invalid_request_error"}},
    "text": "the words",
}


@pytest.mark.parametrize("body", SHAPES.values(), ids=SHAPES)
def test_the_provider_s_words_are_found_in_any_shape(body: Any) -> None:
    """They are what the operator needs."""
    assert provider_words(body) == "the words"


@pytest.mark.parametrize("body", SHAPES.values(), ids=SHAPES)
def test_a_refusal_has_the_provider_s_words_for_the_operator_alone(
    harness: Harness, provide: Provide, body: Any
) -> None:
    """ "Error code: 400" was all that was said."""
    data = body.encode() if isinstance(body, str) else body

    report = ask(harness, provide, sends(data, 400))

    assert report.outcome == Outcome.MODEL_ERROR
    assert "answered 400: the words." in str(report.operator_detail)
    assert "words" not in report.to_json()
    assert report.usage.total_tokens == 0


@pytest.mark.parametrize(
    "event",
    [
        b'data: {"error": "the words"}\n\n',
        b'data: {"error": {"message": "the words", "code": 42}}\n\n',
        b'data: {"object": "error", "message": "the words", "code": 400}\n\n',
        b'event: error\ndata: {"message": "the words"}\n\n',
        b'data: {"base_resp": {"status_code": 1004, "status_msg": "the words"}}\n\n',
        b'data: [{"error": {"message": "the words"}}]\n\n',
        b'data: {"detail": "the words"}\n\n',
        b'{"error": {"message": "the words"}}',
    ],
)
def test_an_error_instead_of_an_answer_is_told_in_its_own_words(
    harness: Harness, provide: Provide, event: bytes
) -> None:
    """Under status 200 it was an empty answer, or a stream that broke off."""
    report = ask(harness, provide, streams(event))

    assert report.outcome == Outcome.MODEL_ERROR
    assert "the words" in str(report.operator_detail)
    assert "words" not in report.to_json()


OVERFLOWS = {
    "Google": [
        {"error": {"code": 400, "message": "The input token count (9000) exceeds the maximum number of tokens"}}
    ],
    "LM Studio": {"error": "The number of tokens to keep is greater than the context length."},
    "Zhipu": {"error": {"code": "1261", "message": "Prompt exceeds max length"}},
    "OpenAI": {"error": {"message": "This model's maximum context length is 8192 tokens.", "code": "x"}},
}


@pytest.mark.parametrize("body", OVERFLOWS.values(), ids=OVERFLOWS)
def test_a_request_that_is_too_long_is_compacted_whoever_says_so(harness: Harness, provide: Provide, body: Any) -> None:
    """Else the session can never go on: each turn sends the same and a little more."""

    def answer(handler: Handler, request: dict[str, Any]) -> None:
        if not request.get("stream") or "Summarize this conversation" in str(request["messages"]):
            streams(chunk({"content": "<summary>short</summary>"}), STOP, USED, DONE)(handler, request)
        elif sum(len(str(message["content"])) for message in request["messages"][1:]) > 20_000:
            sends(body, 400)(handler, request)
        else:
            streams(TEXT, STOP, USED, DONE)(handler, request)

    provider = provide(answer)
    session = harness.open(base_url=provider.base_url, limits={"llm_retries": 0, "turn_tokens": 400_000})
    for _ in range(3):
        harness.ask(session, "word " * 1_200)

    report = harness.ask(session, "word " * 1_200)

    assert (report.outcome, report.answer) == (Outcome.ANSWERED, "fine"), report.operator_detail


def said(*pieces: str) -> Answer:
    """Streams text as JSON that may spell halves of characters."""
    template = b'data: {"id": "1", "choices": [{"index": 0, "delta": {"content": "%s"}, "finish_reason": null}]}\n\n'
    return streams(*(template % piece.encode() for piece in pieces), STOP, USED, DONE)


@pytest.mark.parametrize(
    ("pieces", "text"),
    [
        ((r"fine \ud83d end",), "fine \ufffd end"),
        ((r"hi \ud83d", r"\ude00 bye"), "hi \U0001f600 bye"),
        ((r"\uDCAF",), "\ufffd"),
        (("cut ", r"\ud83d"), "cut \ufffd"),
        ((r"\ud83d", "x", r"\ude00"), "\ufffdx\ufffd"),
    ],
)
def test_half_a_character_in_an_answer_is_joined_or_replaced(
    harness: Harness, provide: Provide, pieces: tuple[str, ...], text: str
) -> None:
    """One answer with it lost the report, every route of the service answered 500, and a batch wrote no line."""
    report = ask(harness, provide, said(*pieces))

    assert report.answer == text
    assert json.loads(report.to_json())["answer"] == text


def test_half_a_character_in_a_whole_answer_is_replaced(harness: Harness, provide: Provide) -> None:
    """Gateways that cannot stream, and wires that are not asked to."""
    body = rb'{"choices": [{"index": 0, "message": {"content": "a \ud83d b"}, "finish_reason": "stop"}]}'

    report = ask(harness, provide, sends(body), model="gemini-whole")

    assert report.answer == "a \ufffd b"


def uses(name: str, arguments: str) -> Answer:
    """Asks for one tool, and is satisfied with whatever it says."""
    call = {"index": 0, "id": "c", "type": "function", "function": {"name": name, "arguments": arguments}}

    def answer(handler: Handler, request: dict[str, Any]) -> None:
        asked = any(message["role"] == "tool" for message in request["messages"])
        streams(*([TEXT] if asked else [chunk({"tool_calls": [call]})]), STOP, USED, DONE)(handler, request)

    return answer


@pytest.mark.parametrize("way", ["arguments", "file name"])
def test_half_a_character_in_a_tool_s_result_does_not_end_the_session(
    harness: Harness, provide: Provide, way: str
) -> None:
    """No turn after it could be sent, in any process, for ever."""
    pattern = r"*\ud83d" if way == "arguments" else "*"
    provider = provide(uses("glob", f'{{"pattern": "{pattern}"}}'))
    session = harness.open(base_url=provider.base_url, limits={"llm_retries": 0})
    work = os.fsencode(session._spec.workdir)
    Path(os.fsdecode(work + b"/bad-\xff-name")).touch()

    first, second = harness.ask(session, "hello"), harness.ask(session, "and now")

    assert [report.answer for report in (first, second)] == ["fine", "fine"], first.operator_detail
    json.dumps(session.snapshot().messages, ensure_ascii=False).encode()


MISTRAL: list[dict[str, Any]] = [
    {"content": [{"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]}]},
    {"content": [{"type": "text", "text": "fi"}]},
    {"content": [{"type": "text", "text": "n"}, {"type": "reference", "reference_ids": [1]}]},
    {"content": "e"},
]


@pytest.mark.parametrize("deltas", [MISTRAL, [{"refusal": "fi"}, {"refusal": "ne"}]], ids=["parts", "a refusal"])
def test_text_in_another_form_is_text(harness: Harness, provide: Provide, deltas: list[dict[str, Any]]) -> None:
    """Mistral's reasoning models could not be used at all."""
    report = ask(harness, provide, streams(*map(chunk, deltas), STOP, USED, DONE))

    assert (report.outcome, report.answer) == (Outcome.ANSWERED, "fine")


def call_delta(index: int | None, number: str | None, name: str | None, arguments: Any) -> bytes:
    call = {"index": index, "id": number, "type": "function", "function": {"name": name, "arguments": arguments}}
    return chunk({"tool_calls": [{key: value for key, value in call.items() if value is not None}]})


STAR, STAR_X = '{"pattern": "*"}', '{"pattern": "*.x"}'
FUNCTION = {"function_call": {"name": "glob", "arguments": STAR}}


@pytest.mark.parametrize(
    ("deltas", "calls"),
    [
        ([call_delta(0, "a", "glob", STAR), call_delta(0, "b", "glob", STAR_X)], 2),
        ([call_delta(0, "a", "gl", ""), call_delta(0, "a", "ob", STAR)], 1),
        ([call_delta(0, "a", "glob", ""), call_delta(0, "b", None, STAR)], 1),
        ([call_delta(0, "a", "glob", STAR), call_delta(1, "b", "glob", STAR_X), call_delta(0, "c", "glob", "{}")], 3),
        ([call_delta(None, "a", "glob", STAR), call_delta(None, "b", "glob", STAR_X)], 2),
        ([call_delta(0, "a", "glob", {"pattern": "*"})], 1),
        ([chunk(FUNCTION)], 1),
    ],
    ids=["all have index 0", "a name in pieces", "an id a piece", "a third", "no index", "an object", "legacy"],
)
def test_every_tool_call_is_made(harness: Harness, provide: Provide, deltas: list[bytes], calls: int) -> None:
    """Two calls became one tool `globglob`, and both were lost."""

    def answer(handler: Handler, request: dict[str, Any]) -> None:
        asked = any(message["role"] == "tool" for message in request["messages"])
        streams(*([TEXT] if asked else deltas), STOP, USED, DONE)(handler, request)

    report = ask(harness, provide, answer)

    assert report.answer == "fine", report.operator_detail
    assert [call.name for call in report.tool_calls] == ["glob"] * calls


@pytest.mark.parametrize(
    "last",
    [
        {"choices": [], "usage": {"input_tokens": 30, "output_tokens": 5}},
        {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop", "usage": usage(30, 5)}]},
        {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}], "x_groq": {"usage": usage(30, 5)}},
    ],
    ids=["Anthropic's names", "in the choice", "Groq's field"],
)
def test_usage_is_found_by_other_names_and_in_other_places(
    harness: Harness, provide: Provide, last: dict[str, Any]
) -> None:
    """13,377 tokens were estimated instead of the 35 that were reported."""
    report = ask(harness, provide, streams(TEXT, STOP, b"data: " + json.dumps(last).encode() + b"\n\n", DONE))

    assert (report.answer, report.usage.total_tokens, report.usage.estimated_tokens) == ("fine", 35, 0)


@pytest.mark.parametrize(
    ("reason", "named"),
    [
        *((reason, reason) for reason in ("abort", "error", "insufficient_system_resource", "network_error")),
        *((reason, "filter") for reason in ("content_filter", "sensitive", "SAFETY", "RECITATION", "refusal")),
        ("MALFORMED_FUNCTION_CALL", "MALFORMED_FUNCTION_CALL"),
        ("load", "load"),
    ],
)
def test_an_answer_that_was_cut_is_incomplete_with_the_reason(
    harness: Harness, provide: Provide, reason: str, named: str
) -> None:
    """Half an answer counted as a whole one, without a word."""
    report = ask(harness, provide, streams(chunk({"content": "The first half"}), chunk({}, reason), USED, DONE))

    assert (report.outcome, report.answer, report.exit_code) == (Outcome.INCOMPLETE, "The first half", 4)
    assert named in str(report.detail)


@pytest.mark.parametrize("reason", ["stop", "STOP", "eos", "eos_token", "end_turn", "stop_sequence", "COMPLETE", None])
@pytest.mark.parametrize("wrapping", [False, True])
def test_an_answer_that_ended_by_itself_is_whole_whatever_its_provider_calls_it(
    harness: Harness, provide: Provide, reason: str | None, wrapping: bool
) -> None:
    """The wrapped-up answer was thrown away unless the word was `stop`, though it came whole and was paid."""
    ended = [TEXT, chunk({}, reason), USED, DONE]

    def answer(handler: Handler, request: dict[str, Any]) -> None:
        asks = wrapping and "tools" in request
        streams(*([call_delta(0, "a", "glob", STAR), STOP, USED, DONE] if asks else ended))(handler, request)

    report = ask(harness, provide, answer, limits={"max_iterations": 1 if wrapping else 5})

    assert report.outcome == (Outcome.MAX_ITERATIONS if wrapping else Outcome.ANSWERED)
    assert report.answer == "fine"


ROLE = chunk({"role": "assistant", "content": ""})


def test_a_stream_that_ends_before_any_text_is_asked_for_again(harness: Harness, provide: Provide) -> None:
    """Nothing was shown; it was an empty answer, and charged."""
    answers = iter([streams(ROLE), streams(ROLE, DONE), streams(TEXT, STOP, USED, DONE)])
    provider = provide(lambda handler, request: next(answers)(handler, request))

    report = harness.run("hello", base_url=provider.base_url, limits={"llm_retries": 2})

    assert (report.answer, report.usage.llm_calls) == ("fine", 3)


def test_a_stream_that_never_gets_to_its_text_is_named(harness: Harness, provide: Provide) -> None:
    """After the last retry the operator reads what happened."""
    report = ask(harness, provide, streams(ROLE))

    assert report.outcome == Outcome.MODEL_ERROR
    assert "ended before any text" in str(report.operator_detail)


@pytest.mark.parametrize("reported", [True, False])
def test_a_connection_cut_after_a_whole_answer_takes_nothing_from_it(
    harness: Harness, provide: Provide, reported: bool
) -> None:
    """The last chunk of the transfer is missing, the answer is not."""

    def answer(handler: Handler, _: dict[str, Any]) -> None:
        handler.send_response(200)
        handler.send_header("Content-Type", "text/event-stream")
        handler.send_header("Transfer-Encoding", "chunked")
        handler.end_headers()
        data = TEXT + STOP + (USED if reported else b"")
        handler.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))

    report = ask(harness, provide, answer)

    assert (report.outcome, report.answer) == (Outcome.ANSWERED, "fine")
    assert (report.usage.total_tokens == 35) == reported


@pytest.mark.parametrize(
    "failing",
    [
        *(sends(b"<html>", status, "text/html") for status in (520, 522, 524)),
        streams(b'data: {"error": {"message": "slow down", "code": "429"}}\n\n'),
        streams(b'data: {"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}\n\n'),
    ],
    ids=["520", "522", "524", "LiteLLM", "Anthropic"],
)
def test_what_passes_is_tried_again_whoever_says_it(harness: Harness, provide: Provide, failing: Answer) -> None:
    """Nothing was shown yet."""
    answers = iter([failing, streams(TEXT, STOP, USED, DONE)])
    provider = provide(lambda handler, request: next(answers)(handler, request))

    report = harness.run("hello", base_url=provider.base_url, limits={"llm_retries": 1})

    assert report.answer == "fine", report.operator_detail


def refuses(bad: Callable[[dict[str, Any]], bool], message: str, calls: int = 1, status: int = 400) -> Answer:
    """Makes the model call a tool, and refuses every request that is `bad`."""

    def answer(handler: Handler, request: dict[str, Any]) -> None:
        if bad(request):
            sends({"error": {"message": message}}, status)(handler, request)
            return
        done = sum(message["role"] == "tool" for message in request["messages"]) >= calls
        asks = [chunk({"reasoning": "hm"}), call_delta(0, f"c{len(request['messages'])}", "glob", STAR)]
        streams(*([TEXT] if done else asks), STOP, USED, DONE)(handler, request)

    return answer


def thinks(request: dict[str, Any]) -> bool:
    return any("reasoning_content" in message for message in request["messages"])


def forgets(request: dict[str, Any]) -> bool:
    return any(message.get("tool_calls") and "reasoning_content" not in message for message in request["messages"])


@pytest.mark.parametrize(
    "answer",
    [
        refuses(thinks, "'messages.2' : property 'reasoning_content' is unsupported"),
        refuses(lambda request: "stream_options" in request, "Unknown parameter: stream_options", status=422),
        refuses(
            lambda request: bool(request.get("stream")),
            "Your organization must be verified to stream this model.",
            calls=0,
        ),
    ],
    ids=["thoughts are refused", "stream_options is refused", "not verified to stream"],
)
def test_a_request_that_is_refused_for_one_thing_is_mended_once_and_for_all(
    harness: Harness, provide: Provide, answer: Answer
) -> None:
    """After one tool round every turn of the session failed, in any process."""

    def both(handler: Handler, request: dict[str, Any]) -> None:
        if request.get("stream"):
            answer(handler, request)
        else:
            sends({"choices": [{"message": {"content": "fine"}, "finish_reason": "stop"}]})(handler, request)

    provider = provide(both)
    session = harness.open(base_url=provider.base_url, limits={"llm_retries": 0})

    first, second = harness.ask(session, "hello"), harness.ask(session, "again")

    assert [report.answer for report in (first, second)] == ["fine", "fine"], first.operator_detail
    assert first.usage.estimated_tokens == 0 or "stream" not in provider.seen[-1]


def test_thoughts_that_a_provider_misses_are_sent_with_every_call(harness: Harness, provide: Provide) -> None:
    """A thinking model that called a tool without a thought wants the key all the same."""

    def answer(handler: Handler, request: dict[str, Any]) -> None:
        if forgets(request):
            missing = "The reasoning_content in the thinking mode must be passed back to the API."
            sends({"error": {"message": missing}}, 400)(handler, request)
            return
        asked = any(message["role"] == "tool" for message in request["messages"])
        streams(*([TEXT] if asked else [call_delta(0, "c", "glob", STAR)]), STOP, USED, DONE)(handler, request)

    session = harness.open(base_url=provide(answer).base_url, limits={"llm_retries": 0})

    first, second = harness.ask(session, "hello"), harness.ask(session, "again")

    assert [report.answer for report in (first, second)] == ["fine", "fine"], first.operator_detail


def test_a_wrap_up_is_answered_where_tools_may_not_be_missing(harness: Harness, provide: Provide) -> None:
    """Bedrock refuses a conversation with tools in it and a request without."""

    def answer(handler: Handler, request: dict[str, Any]) -> None:
        if any(message["role"] == "tool" for message in request["messages"]) and "tools" not in request:
            missing = "The toolConfig field must be defined when using toolUse and toolResult content blocks."
            sends({"message": missing}, 400)(handler, request)
            return
        may = request.get("tool_choice") != "none"
        streams(*([call_delta(0, "c", "glob", STAR)] if may else [TEXT]), STOP, USED, DONE)(handler, request)

    report = ask(harness, provide, answer, limits={"max_iterations": 1})

    assert (report.outcome, report.answer) == (Outcome.MAX_ITERATIONS, "fine")


@pytest.mark.parametrize("limit", ["'max_tokens' or 'max_completion_tokens' is too large: 4096. At most 2000."])
def test_a_value_that_is_too_large_is_no_wrong_parameter(harness: Harness, provide: Provide, limit: str) -> None:
    """vLLM names both, and the other one would be refused for the same; the operator reads which setting it is."""
    provider = provide(sends({"error": {"message": limit}}, 400))

    report = harness.run("hello", base_url=provider.base_url, limits={"llm_retries": 0})

    assert len(provider.seen) == 1
    assert "Check limits.max_output_tokens" in str(report.operator_detail)


@pytest.mark.parametrize(
    ("address", "hint"),
    [
        ("https://x.example/openai/deployments/gpt4/?api-version=2024-10-21", "no query"),
        ("https://x.example/v1/chat/completions", "https://x.example/v1"),
    ],
)
def test_an_address_that_asks_for_the_wrong_path_is_refused(harness: Harness, address: str, hint: str) -> None:
    """It asked `?api-version=2024-10-21chat/completions`, and the provider's 404 said nothing of it."""
    with pytest.raises(ConfigError, match=re.escape(hint)):
        harness.open(base_url=address)


def test_gemini_is_asked_for_whole_answers_by_every_name(harness: Harness, provide: Provide) -> None:
    """A streamed call loses the signature that it wants back, at any host and below any prefix."""
    whole = {"choices": [{"message": {"content": "fine"}, "finish_reason": "stop"}]}
    provider = provide(sends(whole))

    for name in ("google/gemini-3-pro", "models/gemini-3-flash"):
        assert harness.run("hello", base_url=provider.base_url, model=name, session=name[-5:]).answer == "fine"

    assert not any("stream" in request for request in provider.seen)


def test_parallel_calls_with_one_id_are_two(harness: Harness, provide: Provide) -> None:
    """The report listed one, and the conversation held the id twice, which providers refuse."""
    two = [call_delta(0, "same", "glob", STAR), call_delta(1, "same", "glob", STAR_X)]

    def answer(handler: Handler, request: dict[str, Any]) -> None:
        asked = any(message["role"] == "tool" for message in request["messages"])
        streams(*([TEXT] if asked else two), STOP, USED, DONE)(handler, request)

    provider = provide(answer)
    report = harness.run("hello", base_url=provider.base_url)

    results = [message["tool_call_id"] for message in provider.seen[-1]["messages"] if message["role"] == "tool"]
    assert len(report.tool_calls) == 2
    assert len(set(results)) == 2


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("<think>hm</think>", "reasoned but gave no answer"),
        ("<think>hm, and then", "reasoned but gave no answer"),
        ('<tool_call>{"name": "glob"}</tool_call>', "wrote a tool call as text"),
    ],
)
def test_a_text_that_is_no_answer_does_not_pass_for_one(
    harness: Harness, provide: Provide, text: str, why: str
) -> None:
    """Servers without the model's template leave its inner forms in the text."""
    report = ask(harness, provide, streams(chunk({"content": text}), STOP, USED, DONE))

    assert (report.outcome, report.exit_code) == (Outcome.INCOMPLETE, 4)
    assert why in str(report.detail)


def test_a_thought_before_an_answer_takes_nothing_from_it(harness: Harness, provide: Provide) -> None:
    """It is shown as it came."""
    report = ask(harness, provide, streams(chunk({"content": "<think>hm</think>fine"}), STOP, USED, DONE))

    assert report.outcome == Outcome.ANSWERED
