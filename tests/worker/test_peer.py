"""Lines that a session process might send: whatever they are, they end its own wire at most."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from agentao_gov.errors import BudgetExhaustedError, GovError, InternalError
from agentao_gov.governor import Conversation, TextEvent, ToolEvent
from agentao_gov.worker.peer import WireClosed, WireError, WirePeer
from agentao_gov.worker.wire import decode_error, decode_event, decode_observation
from tests.governor.harness import HANG_S


class Stranger:
    """The other end of a wire."""

    def __init__(self) -> None:
        ours, self.sock = socket.socketpair()
        self.told: list[Mapping[str, Any]] = []
        self.gone = threading.Event()
        self.peer = WirePeer(
            ours,
            notifications={"event": self.told.append},
            requests={"ask": lambda params, answer: answer(params["what"])},
            on_close=self.gone.set,
            name="test",
        )
        self.peer.start()

    def send(self, line: str) -> None:
        self.sock.sendall(line.encode() + b"\n")


@pytest.fixture
def stranger() -> Iterator[Stranger]:
    made = Stranger()
    yield made
    made.peer.close()
    assert made.gone.wait(HANG_S)
    made.sock.close()


def test_an_answer_to_nobody_s_question_is_ignored(stranger: Stranger) -> None:
    """Ids that were answered already, that never were, that are none: the wire goes on."""
    asked = stranger.peer.call("turn", {})
    for number in ("1", "1", "7", "-1", "null", '"one"', "1.0", "[1]"):
        stranger.send(f'{{"jsonrpc":"2.0","id":{number},"result":"first"}}')
    stranger.send('{"jsonrpc":"2.0","method":"event","params":{"last":true}}')
    stranger.send('{"jsonrpc":"2.0","id":9,"method":"ask","params":{"what":"still here"}}')

    with stranger.sock.makefile() as lines:
        assert json.loads(lines.readline())["method"] == "turn"
        assert json.loads(lines.readline())["result"] == "still here"
    assert asked.result(HANG_S) == "first"
    assert stranger.told == [{"last": True}]


@pytest.mark.parametrize(
    "line",
    [
        '{"id":1,"error":"no"}',
        '{"id":1,"error":{"message":"no code"}}',
        '{"id":1,"error":{"code":"x","message":"y"}}',
        '{"id":1,"error":{"code":1,"message":"y","data":[]}}'.replace("[]", "[1]"),
        "[" * 200_000,
        "1" * 10_000,
        "\0\0\0",
        "\x7f",
        "null",
        '{"method":"event","params":7}',
        '{"method":"ask","id":3,"params":{}}',
    ],
    ids=range(11),
)
def test_a_line_without_sense_ends_the_wire_and_whoever_waits_is_told(stranger: Stranger, line: str) -> None:
    """At once, not at the deadline; no thread dies of it."""
    asked = stranger.peer.call("turn", {})

    stranger.send(line)

    with pytest.raises(WireClosed):
        asked.result(HANG_S)
    assert stranger.gone.wait(HANG_S)
    with pytest.raises(WireClosed):
        stranger.peer.call("turn", {}).result(HANG_S)


def test_nobody_waits_for_a_stranger_that_does_not_read(stranger: Stranger) -> None:
    """Far more than a socket holds: the callers go on, and once it reads it gets every message whole and in order."""
    large = "x" * 3_000_000
    asked = [stranger.peer.call("turn", {"message": large}) for _ in range(2)]
    stranger.peer.notify("cancel", {})

    with stranger.sock.makefile() as lines:
        first, second, third = (json.loads(lines.readline()) for _ in range(3))
    stranger.send('{"id":1,"result":"one"}')
    stranger.send('{"id":2,"result":"two"}')

    assert [first["params"]["message"], second["params"]["message"], third["method"]] == [large, large, "cancel"]
    assert [future.result(HANG_S) for future in asked] == ["one", "two"]


def test_a_stranger_that_asks_and_never_reads_is_left(stranger: Stranger) -> None:
    """Its answers would pile up in the service's memory."""
    asked = stranger.peer.call("turn", {})
    question = '{"id":1,"method":"ask","params":{"what":"%s"}}\n' % ("x" * 1_000_000)

    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        for _ in range(30):
            stranger.sock.sendall(question.encode())

    with pytest.raises(WireClosed):
        asked.result(HANG_S)


def test_an_error_in_its_shape_is_the_answer(stranger: Stranger) -> None:
    """The wire goes on."""
    asked = stranger.peer.call("turn", {})

    stranger.send('{"id":1,"error":{"code":-32010,"message":"no","data":{"class":"StoreError"}}}')

    with pytest.raises(WireError) as raised:
        asked.result(HANG_S)
    assert (raised.value.code, raised.value.data) == (-32010, {"class": "StoreError"})
    assert not stranger.peer.closed


FIELDS = {"scope": "tenant:a", "limit_tokens": 1, "used_tokens": 2, "reserved_tokens": 3, "asked_tokens": 4}


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        ({}, InternalError),
        ({"class": ["StoreError"]}, InternalError),
        ({"class": "BudgetExhaustedError"}, InternalError),
        ({"class": "BudgetExhaustedError", "fields": [1]}, InternalError),
        ({"class": "BudgetExhaustedError", "fields": {**FIELDS, "more": 1}}, InternalError),
        (
            {"class": "BudgetExhaustedError", "fields": FIELDS, "retry_after_s": "9\r\nSet-Cookie: x"},
            BudgetExhaustedError,
        ),
        ({"class": "SystemExit", "hint": {"a": 1}, "retry_after_s": float("nan")}, InternalError),
    ],
)
def test_an_error_is_read_as_data(data: Mapping[str, Any], expected: type[GovError]) -> None:
    """Never another exception than ours, and no wait that is none: it becomes a header."""
    error = decode_error(data, "said so")

    assert type(error) is expected
    assert error.retry_after_s is None
    assert str(error)


@pytest.mark.parametrize(
    "data",
    [
        {},
        {"kind": []},
        {"kind": "Popen", "args": "true"},
        {"kind": "TextEvent", "delta": 5},
        {"kind": "TextEvent", "delta": None},
        {"kind": "ToolEvent", "name": "a", "outcome": "a label of its own", "duration_ms": 3},
        {"kind": "ToolEvent", "name": "a", "outcome": "ok", "duration_ms": -3},
        {"kind": "ToolEvent", "name": "a", "outcome": "ok", "duration_ms": float("nan")},
        {"kind": "ToolEvent", "name": ["a"], "outcome": "ok", "duration_ms": 1},
        {"kind": "ToolCallEnd", "name": "a", "outcome": "ok", "duration_s": 1e300},
    ],
)
def test_what_could_break_a_counter_or_a_stream_is_refused(data: Mapping[str, Any]) -> None:
    """A negative count, a number that is none, text that is no text."""
    for decode in (decode_event, decode_observation):
        with pytest.raises((KeyError, TypeError, ValueError)):
            decode(data)


def test_what_happened_is_read_back() -> None:
    """Text whole, names cut to a length that a label may have."""
    text, name = "x" * 100_000, "y" * 100_000

    assert decode_event({"kind": "TextEvent", "delta": text}) == TextEvent(text)
    assert decode_event({"kind": "ToolEvent", "name": name, "outcome": "denied", "duration_ms": 1}) == ToolEvent(
        "y" * 512, "denied", 1
    )


@pytest.mark.parametrize(
    "changed",
    [{"messages": "abc"}, {"messages": [1]}, {"todos": {}}, {"active_skills": None}, {"anchor": 7}, {"anchor": [1]}],
)
def test_a_conversation_that_is_none_is_not_kept(changed: Mapping[str, Any]) -> None:
    """It would be what the next process starts from, and what is written to disk."""
    whole = {"messages": [{"role": "user", "content": "hi"}], "todos": [], "active_skills": [], "anchor": None}
    assert Conversation.of(whole).messages == ({"role": "user", "content": "hi"},)

    with pytest.raises((KeyError, TypeError)):
        Conversation.of({**whole, **changed})
