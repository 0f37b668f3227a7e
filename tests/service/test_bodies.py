"""What clients may send, and what is refused with which error."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentao_gov.errors import BadRequestError, TooLargeError
from agentao_gov.service.bodies import DEFAULT_USER, ChatBody, TurnBody, parse_body, require_session_id

USER = {"role": "user", "content": "hello"}


def chat(**fields: Any) -> ChatBody:
    body = {"model": "qa", "messages": [USER], **fields}
    return parse_body(ChatBody, json.dumps(body).encode(), message_bytes_max=1000)


@pytest.mark.parametrize("value", ["a", "A-b_c.d:9", "x" * 128])
def test_a_session_id_of_the_rule_is_taken(value: str) -> None:
    """1-128 characters of A-Za-z0-9._:-"""
    assert require_session_id(value) == value


@pytest.mark.parametrize("value", ["", "x" * 129, "a/b", "a b", "ä", "a\n", "../x", "a%2e", "\x00"])
def test_any_other_session_id_is_refused(value: str) -> None:
    """An id names a directory and a ledger key: nothing else may pass."""
    with pytest.raises(BadRequestError) as caught:
        require_session_id(value)

    assert caught.value.param == "X-Session-Id"


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'"x"',
        b"\xff\xfe",
        b'{"a": NaN}',
        b'{"message": "\\ud800"}',
        b'{"a":' * 100_000,
        b"[" * 100_000,
        b'{"n": ' + b"9" * 10_000 + b"}",
    ],
)
def test_a_body_that_is_no_json_object_is_a_bad_request(raw: bytes) -> None:
    """Neither a stack overflow nor a text that no store can write gets past the parser."""
    with pytest.raises(BadRequestError):
        parse_body(ChatBody, raw, message_bytes_max=1000)
    with pytest.raises(BadRequestError):
        parse_body(TurnBody, raw, message_bytes_max=1000)


@given(st.binary(max_size=200))
def test_no_bytes_break_the_parser(raw: bytes) -> None:
    """Every body is understood or refused with an error of the contract."""
    with suppress(BadRequestError):  # and TooLargeError, its child: anything else fails the test
        parse_body(ChatBody, raw, message_bytes_max=100)
    with suppress(BadRequestError):
        parse_body(TurnBody, raw, message_bytes_max=100)


_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


@given(model=_values, messages=_values, user=_values, stream=_values)
def test_no_json_breaks_the_validation(**fields: Any) -> None:
    """Any JSON in any field is understood or refused."""
    with suppress(BadRequestError):
        parse_body(ChatBody, json.dumps(fields).encode(), message_bytes_max=100)


def test_a_chat_body_gives_question_and_history() -> None:
    """The last message is the turn, what stands before it the conversation."""
    body = chat(
        messages=[
            {"role": "developer", "content": "be brief"},
            {"role": "user", "content": [{"type": "text", "text": "one "}, {"type": "text", "text": "two"}]},
            {"role": "assistant", "content": None, "tool_calls": [{"id": "t1"}]},
            {"role": "tool", "content": "out", "tool_call_id": "t1"},
            USER,
        ],
        temperature=0.1,
        unknown="ignored",
    )

    assert body.question == "hello"
    assert [message["role"] for message in body.history()] == ["system", "user", "assistant", "tool"]
    assert body.history()[1]["content"] == "one two"
    assert body.history()[2]["tool_calls"] == [{"id": "t1"}]
    assert body.user == DEFAULT_USER


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"model": ""}, "model"),
        ({"model": None}, "model"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "assistant", "content": "x"}]}, "messages"),
        ({"messages": [{"role": "user", "content": "  "}]}, "messages"),
        ({"messages": [{"role": "wizard", "content": "x"}]}, "messages.0.role"),
        ({"messages": [{"role": "tool", "content": "x"}, USER]}, "messages.0"),
        ({"n": 2}, "n"),
        ({"tools": [{"type": "function"}]}, "tools"),
        ({"user": ""}, "user"),
        ({"user": "x\n"}, "user"),
        ({"user": "x" * 257}, "user"),
    ],
)
def test_a_wrong_chat_field_is_named(fields: dict[str, Any], param: str) -> None:
    """The error says which field it is about."""
    with pytest.raises(BadRequestError) as caught:
        chat(**fields)

    assert caught.value.param == param


def test_an_image_is_refused_and_not_dropped() -> None:
    """A turn that quietly ignored a part would answer another question."""
    with pytest.raises(BadRequestError):
        chat(messages=[{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:"}}]}])


def test_a_long_message_is_too_large_in_bytes() -> None:
    """The limit is in bytes, as stores and tokens see them."""
    with pytest.raises(TooLargeError):
        chat(messages=[{"role": "user", "content": "ä" * 501}])

    assert chat(messages=[{"role": "user", "content": "ä" * 500}]).question == "ä" * 500


@pytest.mark.parametrize("body", [{}, {"message": ""}, {"message": " "}, {"message": 1}, {"message": "x", "extra": 1}])
def test_a_wrong_native_body_is_refused(body: dict[str, Any]) -> None:
    """The native body is ours alone, so an unknown field is a mistake."""
    with pytest.raises(BadRequestError):
        parse_body(TurnBody, json.dumps(body).encode(), message_bytes_max=100)


def messages(*raw: bytes) -> bytes:
    return b'{"model": "qa", "messages": [' + b",".join(raw) + b"]}"


@pytest.mark.parametrize(
    "raw",
    [
        messages(*[b'{"role":"x"}'] * 333_000),
        messages(*[b'{"role":"user","content":"a"}'] * 130_000),
        messages(b'{"role":"user","content":[' + b",".join([b'{"type":"text","text":"a"}'] * 130_000) + b"]}"),
        messages(b'{"role":"assistant","tool_calls":[' + b",".join([b"{}"] * 1_300_000) + b"]}"),
        b'{"model": "qa", "x": [' + b",".join([b"0"] * 2_000_000) + b"]}",
        b"[" * 4_000_000,
        b'"' * 4_000_000,
    ],
    ids=["wrong messages", "right messages", "parts", "tool calls", "numbers", "nesting", "quotes"],
)
def test_millions_of_tiny_values_are_refused_before_anything_is_made_of_them(raw: bytes) -> None:
    """4 MB of them would stop everybody for seconds."""
    with pytest.raises(TooLargeError, match="more than 200,000 keys and values"):
        parse_body(ChatBody, raw, message_bytes_max=1_000_000)


@pytest.mark.parametrize(
    "text", ["a," * 2_000_000, '\\"' * 1_000_000, "{[" * 1_000_000], ids=["commas", "quotes", "brackets"]
)
def test_what_stands_in_a_text_is_not_counted_as_values(text: str) -> None:
    """A table, a program, JSON in JSON: the limit on a message's bytes is theirs."""
    body = {"model": "qa", "messages": [{"role": "user", "content": text}]}

    assert parse_body(ChatBody, json.dumps(body).encode(), message_bytes_max=5_000_000).question == text


def test_a_conversation_has_a_largest_number_of_messages() -> None:
    """The deployment's own limit, told with its figure."""
    full = messages(*[b'{"role":"user","content":"a"}'] * 10)

    assert len(parse_body(ChatBody, full, message_bytes_max=100, messages_max=10).messages) == 10
    with pytest.raises(TooLargeError, match="more than 9 messages") as caught:
        parse_body(ChatBody, full, message_bytes_max=100, messages_max=9)
    assert caught.value.param == "messages"


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (b'{"model": "qa"', r"The body is not JSON in UTF-8 (line 1 column 14)."),
        (b"[]", "The body must be an object."),
        (b"{}", "model is missing."),
        (b'{"model": 1}', "model must be text."),
        (messages(b"1"), "messages.0 must be an object."),
        (messages(b'{"role":"user"}'), "messages.0 has no content."),
        (messages(b'{"role":"user","content":[{"type":"image_url"}]}'), "messages.0.content.0.type must be 'text'."),
        (b'{"model": "qa", "messages": []}', "messages is empty."),
        (messages(b'{"role":"assistant","tool_calls":[{"a":1e999}]}', b'{"role":"user","content":"a"}'),
         "messages.0 has tool_calls with a number that JSON does not have."),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_in_the_services_own_words(raw: bytes, words: str) -> None:
    """A library's words would change with its version, and name its classes."""
    with pytest.raises(BadRequestError) as caught:
        parse_body(ChatBody, raw, message_bytes_max=100)

    assert caught.value.message == words
