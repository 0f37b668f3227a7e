"""Providers and gateways that would make a turn cost more than the ledger knows: each is charged what it bills.

Where nobody can know, the most that it can have been is charged, and the report says how much of it is a guess.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from agentao_gov.budget import SqliteStore, TokenLedger
from agentao_gov.budget.types import CALL_TOKENS_MAX
from agentao_gov.errors import StoreError
from agentao_gov.governor import Outcome, TurnReport
from agentao_gov.governor.tokens import count_tokens
from tests.governor.harness import Harness, say
from tests.governor.provider import DONE, STOP, TEXT, Answer, Handler, Provide, chunk, reset, usage

WORDS = "and so it goes on and on " * 40
GRANTED = 300


def writes(*pieces: bytes) -> Answer:
    """A stream of these bytes, closed in order."""

    def answer(handler: Handler, _: dict[str, Any]) -> None:
        handler.stream()
        for piece in pieces:
            handler.wfile.write(piece)

    return answer


def promises(kind: str, body: bytes) -> Answer:
    """A body that ends before its announced length."""

    def answer(handler: Handler, _: dict[str, Any]) -> None:
        handler.send_response(200)
        handler.send_header("Content-Type", kind)
        handler.send_header("Content-Length", str(len(body) + 100))
        handler.end_headers()
        handler.wfile.write(body)

    return answer


def ask(harness: Harness, provide: Provide, answer: Answer, **options: Any) -> TurnReport:
    limits = {"max_output_tokens": GRANTED, "llm_retries": 0, **options.pop("limits", {})}
    return harness.ask(harness.open(base_url=provide(answer).base_url, limits=limits, **options), "hello")


@pytest.mark.parametrize(
    ("reported", "billed"),
    [
        (usage(32, 9, total_tokens=135, completion_tokens_details={"reasoning_tokens": 94}), (32, 103)),
        (usage(32, 9, total_tokens=135), (32, 103)),
        (usage(32, 9, completion_tokens_details={"reasoning_tokens": 94}), (32, 103)),
        (usage(32, 103, total_tokens=135, completion_tokens_details={"reasoning_tokens": 94}), (32, 103)),
        (usage(10, 9, cache_read_input_tokens=5_000), (5_010, 9)),
        (usage(10, 9, cache_creation_input_tokens=5_000), (5_010, 9)),
        (usage(5_010, 9, prompt_tokens_details={"cached_tokens": 5_000}), (5_010, 9)),
        (usage(32, 9, total_tokens=0), (32, 9)),
        (usage(32.0, 9.0), (32, 9)),
        (usage(10**30, 9), (CALL_TOKENS_MAX, 9)),
        (usage(1e30, 10**30), (CALL_TOKENS_MAX, CALL_TOKENS_MAX)),
    ],
)
def test_what_a_provider_bills_is_what_is_charged(
    harness: Harness, provide: Provide, reported: dict[str, Any], billed: tuple[int, int]
) -> None:
    """Thoughts left out of the completion (xAI, Gemini), caches left out of the prompt, counts that no model has."""
    report = ask(harness, provide, writes(TEXT, STOP, chunk(used=reported), DONE), limits={"turn_tokens": 10**12})

    assert report.outcome == Outcome.ANSWERED
    assert (report.usage.prompt_tokens, report.usage.completion_tokens) == billed
    assert report.usage.estimated_tokens == 0
    assert harness.used(report) == (sum(billed), 0)


@pytest.mark.parametrize(
    "reported",
    ["much", [1], {}, usage("32", "9"), usage(True, True), usage(32, None), usage(32.5, 9.5), usage(32, 0)],
    ids=str,
)
def test_what_cannot_be_a_report_is_none(harness: Harness, provide: Provide, reported: Any) -> None:
    """Also none that says the text cost nothing; the reservation ends all the same."""
    report = ask(harness, provide, writes(TEXT, STOP, chunk(used=reported), DONE))

    assert report.outcome == Outcome.ANSWERED
    assert report.usage.completion_tokens >= 1
    assert report.usage.estimated_tokens >= report.usage.completion_tokens
    assert harness.used(report) == (report.usage.total_tokens, 0)


def test_the_larger_of_two_reports_counts(harness: Harness, provide: Provide) -> None:
    """A count that goes on never shrinks: the later and smaller one is the gateway's mistake."""
    twice = (chunk(used=usage(50, 40)), chunk(used=usage(50, 4)))

    report = ask(harness, provide, writes(TEXT, STOP, *twice, DONE))

    assert (report.usage.prompt_tokens, report.usage.completion_tokens) == (50, 40)


def test_a_report_from_before_the_text_does_not_cover_it(harness: Harness, provide: Provide) -> None:
    """Some report the prompt in the first event, with a completion of one token, and nothing at the end."""
    first = chunk({"role": "assistant", "content": ""}, used=usage(5_000, 1))

    report = ask(harness, provide, writes(first, chunk({"content": WORDS}), STOP, DONE))

    assert report.usage.prompt_tokens == 5_000
    assert count_tokens(WORDS) <= report.usage.completion_tokens <= GRANTED
    assert report.usage.estimated_tokens == report.usage.completion_tokens
    assert harness.used(report) == (report.usage.total_tokens, 0)


@pytest.mark.parametrize(
    "pieces",
    [
        (TEXT,),
        (TEXT, DONE),
        (chunk({"content": "fi"}, used=usage(40, 1)), chunk({"content": "ne"}, used=usage(40, 2))),
        (chunk(used=usage(40, 0)),),
        (chunk({"content": "fi"}), b'data: {"id": "1", "choi'),
        (chunk({"tool_calls": [{"index": 0, "id": "c", "function": {"name": "glob", "arguments": '{"pat'}}]}),),
    ],
    ids=["text", "text and DONE", "with its count so far", "the prompt's alone", "half an event", "half a tool call"],
)
def test_a_stream_that_breaks_off_is_charged_its_bound(
    harness: Harness, provide: Provide, pieces: tuple[bytes, ...]
) -> None:
    """A proxy that closes in good order leaves the model writing behind it: nobody said why the answer ends."""
    report = ask(harness, provide, writes(*pieces))

    assert report.outcome != Outcome.ANSWERED
    assert report.usage.completion_tokens == report.usage.llm_calls * GRANTED
    assert report.usage.estimated_tokens >= report.usage.completion_tokens
    assert harness.used(report) == (report.usage.total_tokens, 0)


def test_a_connection_lost_after_the_report_is_settled_exactly(harness: Harness, provide: Provide) -> None:
    """All that will ever be known is known; nothing has to be guessed."""

    def answer(handler: Handler, _: dict[str, Any]) -> None:
        handler.stream()
        handler.wfile.write(TEXT + STOP + chunk(used=usage(40, 3)))
        reset(handler)

    report = ask(harness, provide, answer)

    assert (report.usage.total_tokens, report.usage.estimated_tokens) == (43, 0)
    assert harness.used(report) == (43, 0)


def test_json_that_breaks_off_was_produced_whole(harness: Harness, provide: Provide) -> None:
    """An endpoint that does not stream sends nothing before it has everything."""
    report = ask(harness, provide, promises("application/json", b'{"id": "1", "choices": [{"index": 0, "mess'))

    assert report.outcome == Outcome.MODEL_ERROR
    assert report.usage.completion_tokens == GRANTED


@pytest.mark.parametrize(("status", "free"), [(500, True), (503, True), (429, True), (504, False), (524, False)])
def test_a_gateway_that_lost_patience_is_charged_like_a_cut(
    harness: Harness, provide: Provide, status: int, free: bool
) -> None:
    """A refusal costs nothing; a time-out at the gateway says nothing of the model behind it."""

    def answer(handler: Handler, _: dict[str, Any]) -> None:
        handler.send(status, "application/json", b'{"error": {"message": "no"}}')

    report = ask(harness, provide, answer)

    assert report.outcome == Outcome.MODEL_ERROR
    assert (report.usage.total_tokens == 0) == free
    assert report.usage.completion_tokens == 0
    assert harness.used(report) == (report.usage.total_tokens, 0)


@pytest.mark.parametrize(
    ("model", "granted"), [("gpt-4.1", 0), ("qwen3", 0), ("o3-mini", GRANTED), ("openai/gpt-5", GRANTED)]
)
def test_silence_proves_nothing_of_a_model_that_thinks_unseen(harness: Harness, model: str, granted: int) -> None:
    """Before the first byte the prompt is charged, unless thinking is what the model does before it."""
    session = harness.open(model=model, limits={"max_output_tokens": GRANTED})

    report = harness.ask_and_cancel(session, say(text="never", fault="hang"))

    assert report.outcome == Outcome.CANCELLED
    assert report.usage.completion_tokens == granted
    assert report.usage.prompt_tokens > 0


def test_a_model_that_reports_thoughts_nobody_saw_is_known_from_then_on(harness: Harness) -> None:
    """No table has every model."""
    session = harness.open(limits={"max_output_tokens": GRANTED})
    harness.ask(session, say(text="ok", usage={"reasoning_tokens": 50}))

    report = harness.ask_and_cancel(session, say(text="never", fault="hang"))

    assert report.usage.completion_tokens == GRANTED


def test_an_answer_past_its_grant_is_charged_as_it_came(harness: Harness, provide: Provide) -> None:
    """An endpoint that overlooks `max_tokens` and reports nothing: the grant bounds nothing."""
    whole = {"index": 0, "message": {"role": "assistant", "content": WORDS * 8}, "finish_reason": "stop"}
    body = json.dumps({"id": "1", "object": "chat.completion", "created": 1, "model": "m", "choices": [whole]})

    report = ask(harness, provide, lambda handler, _: handler.send(200, "application/json", body.encode()))

    assert count_tokens(WORDS * 8) > 2 * GRANTED
    assert report.usage.completion_tokens >= count_tokens(WORDS * 8)
    assert report.usage.estimated_tokens == report.usage.total_tokens


def test_every_choice_of_an_answer_is_counted(harness: Harness, provide: Provide) -> None:
    """Nobody asked for two, and both are billed."""
    both = [{"index": n, "delta": {"content": WORDS[:400]}, "finish_reason": "stop"} for n in range(2)]
    body = {"id": "1", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": both}

    report = ask(harness, provide, writes(b"data: " + json.dumps(body).encode() + b"\n\n", DONE))

    assert report.usage.completion_tokens >= 2 * count_tokens(WORDS[:400])


def test_a_cache_that_is_left_out_of_the_prompt_bounds_no_later_one(harness: Harness, provide: Provide) -> None:
    """The third prompt is counted whole again: a bound built on the second would be off by all of it."""
    full = 6_000
    counts = iter([full, 20, full])
    answered: list[int] = []

    def answer(handler: Handler, _: dict[str, Any]) -> None:
        prompt = next(counts)
        answered.append(prompt)
        writes(TEXT, STOP, chunk(used=usage(prompt, 10)), DONE)(handler, {})

    limits = {"max_output_tokens": GRANTED}
    session = harness.open(base_url=provide(answer).base_url, limits=limits)
    harness.ask(session, "one")
    harness.ask(session, "two")
    held = session._parts.model.anchor.bound(session._parts.agent.messages, None, "simulated") or full

    assert held >= full


@pytest.mark.parametrize("store", ["memory", "sqlite"])
def test_an_absurd_report_breaks_no_ledger(harness: Harness, provide: Provide, tmp_path: Path, store: str) -> None:
    """Not for this session, whose next prompt is bounded by it, and not for its neighbours in the same file."""
    if store == "sqlite":
        harness.ledger.close()
        harness.ledger = TokenLedger(SqliteStore(tmp_path / "ledger.db"), heartbeat_s=None)
    answer = writes(TEXT, STOP, chunk(used=usage(10**40, 10**40)), DONE)
    session = harness.open(base_url=provide(answer).base_url, limits={"turn_tokens": 10**12})

    outcomes = [harness.ask(session, "hello").outcome for _ in range(3)]
    report = harness.ask(harness.open("other"), say(text="ok"))
    harness.ledger.store.heartbeat()

    assert outcomes == [Outcome.ANSWERED] * 3
    assert report.outcome == Outcome.ANSWERED
    assert harness.used(report)[1] == 0
    assert harness.ledger.store.verify().ok


class FailingOnce:
    """A store whose dispatch fails once, before or after it did its work."""

    def __init__(self, store: Any, *, late: bool) -> None:
        self._store = store
        self._late = late
        self._failed = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def dispatch(self, reservation_id: str) -> None:
        if self._failed:
            self._store.dispatch(reservation_id)
            return
        self._failed = True
        if self._late:
            self._store.dispatch(reservation_id)
        raise StoreError("The answer was lost.")


@pytest.mark.parametrize("late", [False, True])
def test_a_call_that_could_not_be_dispatched_strands_no_tokens(harness: Harness, late: bool) -> None:
    """It was not sent, and its owner lives: nobody but the owner can give back what it holds."""
    harness.ledger._store = FailingOnce(harness.ledger.store, late=late)
    session = harness.open()

    report = harness.ask(session, say(text="never"))

    assert report.outcome == Outcome.STORE_UNAVAILABLE
    assert harness.simulator.truth(requests=False).total.calls == 0
    assert harness.used(report) == (0, 0)


def test_answers_are_asked_for_unpacked(harness: Harness, provide: Provide) -> None:
    """A packed stream hides how much has come: cut before its first whole block, it would look like silence."""
    asked: list[str | None] = []

    def answer(handler: Handler, body: dict[str, Any]) -> None:
        asked.append(handler.headers["Accept-Encoding"])
        writes(TEXT, STOP, chunk(used=usage(9, 1)), DONE)(handler, body)

    ask(harness, provide, answer)

    assert asked == ["identity"]


WHOLE: list[Callable[[], dict[str, Any]]] = [
    lambda: {"choices": [{"index": 0, "message": None, "finish_reason": "stop"}]},
    lambda: {"choices": [{"index": 0, "message": {"content": [{"type": "text"}]}, "finish_reason": "stop"}]},
    lambda: {"choices": [{"index": 0, "finish_reason": "stop"}], "usage": {"prompt_tokens_details": "none"}},
    lambda: {"choices": [], "usage": usage(7, 7)},
]


@pytest.mark.parametrize("body", WHOLE)
@pytest.mark.parametrize("model", ["simulated", "gemini/simulated"])
def test_whatever_an_answer_looks_like_its_reservation_ends(
    harness: Harness, provide: Provide, body: Callable[[], dict[str, Any]], model: str
) -> None:
    """Asked for as a stream or in one piece."""
    text = json.dumps({"id": "1", "object": "chat.completion", "created": 1, "model": "m", **body()}).encode()

    report = ask(harness, provide, lambda handler, _: handler.send(200, "application/json", text), model=model)

    assert report.outcome != Outcome.INTERNAL_ERROR
    assert harness.used(report)[1] == 0
