"""When a failed model call is sent again."""

from __future__ import annotations

import httpx2
import openai
import pytest

from agentao_gov.governor.classify import spell_out
from agentao_gov.governor.retry import (
    BACKOFF_S_MAX,
    JITTER,
    RetryDecision,
    asked_pause_s,
    decide_retry,
    parse_retry_after_s,
)


def decide(**changes: object) -> RetryDecision:
    facts: dict[str, object] = {
        "retryable": True,
        "retries_done": 0,
        "retries_max": 2,
        "retry_after_s": None,
        "remaining_s": 60.0,
        "jitter": 0.0,
    }
    return decide_retry(**{**facts, **changes})  # type: ignore[arg-type]


def test_an_error_that_does_not_pass_is_not_sent_again() -> None:
    """A wrong key stays wrong."""
    assert not decide(retryable=False).again


@pytest.mark.parametrize(("done", "again"), [(0, True), (1, True), (2, False), (3, False)])
def test_retries_are_counted(done: int, again: bool) -> None:
    """`llm_retries = 2` is two more requests, not three."""
    assert decide(retries_done=done).again is again


def test_llm_retries_zero_never_sends_again() -> None:
    """Zero is allowed and means zero."""
    assert not decide(retries_max=0).again


def test_retry_after_is_respected_within_the_deadline() -> None:
    """The provider knows when it will serve again."""
    assert decide(retry_after_s=7.0) == RetryDecision(True, 7.0)


def test_a_pause_beyond_the_deadline_is_not_begun() -> None:
    """Sleeping into a time-out would hide the reason and cost the caller the wait."""
    decision = decide(retry_after_s=20.0, remaining_s=12.0)

    assert not decision.again
    assert "20 s" in decision.reason
    assert "12 s" in decision.reason


def test_pauses_double_and_have_a_ceiling() -> None:
    """Ten failures in a row must not mean minutes."""
    pauses = [decide(retries_done=n, retries_max=20, jitter=1.0).delay_s for n in range(10)]

    assert pauses == sorted(pauses)
    assert pauses[-1] == pytest.approx(BACKOFF_S_MAX * (1 + JITTER))


@pytest.mark.parametrize(
    ("header", "seconds"),
    [("3", 3.0), ("0", 0.0), ("1.5", 1.5), ("-4", 0.0), (None, None), ("", None), ("soon", None)],
)
def test_a_retry_after_header_in_seconds(header: str | None, seconds: float | None) -> None:
    """Providers send whole and broken seconds, and nonsense."""
    assert parse_retry_after_s(header, now=1_000.0) == seconds


def test_a_retry_after_header_with_a_date() -> None:
    """The other form of the standard; a date that has passed means now."""
    now = 1_790_000_000.0  # 2026-09-21T14:13:20Z

    assert parse_retry_after_s("Mon, 21 Sep 2026 14:13:50 GMT", now) == 30.0
    assert parse_retry_after_s("Mon, 21 Sep 2026 14:00:00 GMT", now) == 0.0


@pytest.mark.parametrize(
    ("headers", "body", "seconds"),
    [
        ({"retry-after-ms": "350"}, None, 0.35),
        ({"retry-after-ms": "350", "retry-after": "1"}, None, 0.35),
        ({"retry-after": "7"}, {"message": "try again in 3s"}, 7.0),
        ({}, {"message": "Rate limit reached. Please try again in 3.5s."}, 3.5),
        ({}, {"message": "Please try again in 6m0.5s."}, 360.5),
        ({}, {"message": "Please try again in 20ms."}, 0.02),
        ({}, {"message": "Please retry after 6 seconds."}, 6.0),
        ({}, {"details": [{"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "34s"}]}, 34.0),
        ({}, {"message": "Too many requests."}, None),
        ({"retry-after-ms": "nan"}, None, None),
    ],
)
def test_a_provider_s_pause_is_found_wherever_it_says_it(
    headers: dict[str, str], body: object, seconds: float | None
) -> None:
    """Three attempts within two seconds were all that a pause of seven got."""
    request = httpx2.Request("POST", "http://model.example")
    response = httpx2.Response(429, headers=headers, request=request)
    error = openai.RateLimitError("Error code: 429", response=response, body=body)
    spell_out(error)

    assert asked_pause_s(error, now=0.0) == seconds
