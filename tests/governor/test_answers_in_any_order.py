"""Every oddity of a provider in random order over one session: none of them ends it, and all of it is paid."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest

from agentao_gov.governor import Outcome
from tests.governor.harness import Harness
from tests.governor.provider import DONE, STOP, TEXT, Answer, Handler, Provide, chunk, reset, usage
from tests.governor.test_answers import (
    FUNCTION,
    MISTRAL,
    OVERFLOWS,
    ROLE,
    SHAPES,
    STAR,
    STAR_X,
    USED,
    call_delta,
    said,
    sends,
    streams,
)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]

STEPS = 500


def drops(*parts: bytes) -> Answer:
    """Writes these bytes and ends as a crash does."""

    def answer(handler: Handler, request: dict[str, Any]) -> None:
        streams(*parts)(handler, request)
        reset(handler)

    return answer


HALF_IN_ARGUMENTS = call_delta(0, "h", "glob", r'{"pattern": "*\ud83d"}')
ODDITIES: dict[str, Answer] = {
    **{
        f"refusal, {name}": sends(body.encode() if isinstance(body, str) else body, 400)
        for name, body in SHAPES.items()
    },
    **{f"too long, {name}": sends(body, 400) for name, body in OVERFLOWS.items()},
    **{
        f"status {status}": sends({"error": {"message": "no"}}, status)
        for status in (401, 403, 404, 413, 429, 500, 524)
    },
    **{f"ended by {reason}": streams(TEXT, chunk({}, reason), USED, DONE) for reason in ("abort", "SAFETY", "length")},
    **{
        f"half a character, {n}": said(*pieces)
        for n, pieces in enumerate([(r"\ud83d",), (r"a\ud83d", r"\ude00"), (r"\udcaf",)])
    },
    "half a character for a tool": streams(HALF_IN_ARGUMENTS, STOP, USED, DONE),
    "an unknown tool": streams(call_delta(0, "u", "globglob", STAR), STOP, USED, DONE),
    "arguments that are no JSON": streams(call_delta(0, "n", "glob", '{"pattern": '), STOP, USED, DONE),
    "arguments that are an object": streams(call_delta(0, "o", "glob", {"pattern": "*"}), STOP, USED, DONE),
    "one index for two calls": streams(
        call_delta(0, "a", "glob", STAR), call_delta(0, "b", "glob", STAR_X), STOP, USED
    ),
    "one id for two calls": streams(call_delta(0, "a", "glob", STAR), call_delta(1, "a", "glob", STAR_X), STOP),
    "a call without an id": streams(call_delta(0, None, "glob", STAR), STOP, USED, DONE),
    "an old function call": streams(chunk(FUNCTION), STOP, USED, DONE),
    "parts": streams(*(chunk(delta) for delta in MISTRAL), STOP, USED, DONE),
    "a thought and a call": streams(chunk({"reasoning": "hm"}), call_delta(0, "t", "glob", STAR), STOP, USED, DONE),
    "only a thought": streams(chunk({"reasoning_content": "hm"}), STOP, USED, DONE),
    "nothing": streams(),
    "a role alone": streams(ROLE),
    "an empty answer": streams(ROLE, STOP, USED, DONE),
    "a page": sends(b"<html>", 200, "text/html"),
    "broken JSON": streams(b'data: {"choices": [{"delta"\n\n'),
    "an error in the stream": streams(TEXT, b'data: {"error": {"message": "no"}}\n\n'),
    "cut before the end": drops(TEXT),
    "cut after the end": drops(TEXT, STOP),
    "cut in a call": drops(call_delta(0, "c", "glob", '{"pat')),
    "records without data": streams(b"data:\n\n", b"event: ping\n\n", TEXT, b"data: ping\n\n", STOP, USED, DONE),
    "usage that cannot be": streams(TEXT, STOP, chunk(None, None, usage(-1, None)), DONE),
    "a whole answer": sends({"choices": [{"message": {"content": "fine"}, "finish_reason": "stop"}]}),
}


@pytest.mark.parametrize("seed", [1, 2])
def test_after_any_oddity_the_session_answers_its_next_turn(harness: Harness, provide: Provide, seed: int) -> None:
    """A session that can never be sent again is the worst that a provider can do."""
    rng = random.Random(seed)
    oddity: list[str] = []

    def answer(handler: Handler, request: dict[str, Any]) -> None:
        json.dumps(request, ensure_ascii=False).encode()
        name = oddity.pop() if oddity else ""
        ODDITIES.get(name, streams(TEXT, STOP, USED, DONE))(handler, request)

    limits = {"llm_retries": 0, "turn_tokens": 10_000_000, "max_context_tokens": 20_000}
    session = harness.open(base_url=provide(answer).base_url, limits=limits)
    charged = 0
    for step in range(STEPS // 2):
        oddity[:] = [name := rng.choice(list(ODDITIES))]
        odd = harness.ask(session, f"question {step}")
        oddity.clear()
        healthy = harness.ask(session, f"and {step}?")

        assert odd.outcome in {Outcome.ANSWERED, Outcome.MODEL_ERROR, Outcome.INCOMPLETE}, (name, odd)
        assert (healthy.outcome, healthy.answer) == (Outcome.ANSWERED, "fine"), (name, healthy.operator_detail)
        charged += odd.usage.total_tokens + healthy.usage.total_tokens

    assert harness.used(healthy) == (charged, 0)
