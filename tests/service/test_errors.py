"""Every refusal and outcome has the contract's status, code, type and Retry-After."""

from __future__ import annotations

import json
from datetime import UTC, datetime

import pytest

from agentao_gov import errors
from agentao_gov.endings import Outcome
from agentao_gov.service.errors import failure_of_error, failure_of_report
from tests.service.samples import line, report

NOW = datetime(2026, 11, 22, 23, 0, tzinfo=UTC)

#: contract.md, "HTTP service" and fine print 8, typed by hand.
CONTRACT = [
    (errors.BadRequestError("x"), 400, "invalid_request"),
    (errors.TooLargeError("x"), 413, "too_large"),
    (errors.AuthError("x"), 401, "invalid_api_key"),
    (errors.ProfileNotAllowedError("x"), 403, "profile_not_allowed"),
    (errors.UnknownProfileError("x", []), 403, "profile_not_allowed"),
    (errors.SessionNotFoundError("x"), 404, "session_not_found"),
    (errors.NotFoundError("x"), 404, "not_found"),
    (errors.TenantSessionLimitError("x"), 429, "tenant_session_limit"),
    (errors.UserSessionLimitError("x"), 429, "user_session_limit"),
    (errors.QueueFullError("x"), 429, "queue_full"),
    (errors.QueueTimeoutError("x"), 429, "queue_timeout"),
    (errors.DrainingError("x"), 503, "draining"),
    (errors.StoreError("x"), 503, "ledger_unavailable"),
    (errors.ModelError("x"), 502, "model_error"),
    (errors.TurnTimeoutError("x"), 504, "turn_timeout"),
    (errors.InternalError("x"), 500, "internal_error"),
]
OUTCOMES = [
    (Outcome.TURN_TIMEOUT, 504, "turn_timeout"),
    (Outcome.MODEL_ERROR, 502, "model_error"),
    (Outcome.BUDGET_EXHAUSTED, 429, "budget_exhausted"),
    (Outcome.BUDGET_IMPOSSIBLE, 400, "budget_impossible"),
    (Outcome.CANCELLED, 409, "cancelled"),
    (Outcome.SHUTDOWN, 503, "draining"),
    (Outcome.STORE_UNAVAILABLE, 503, "ledger_unavailable"),
    (Outcome.STUCK, 500, "stuck"),
    (Outcome.INTERNAL_ERROR, 500, "internal_error"),
]


@pytest.mark.parametrize(("error", "status", "code"), CONTRACT, ids=lambda value: str(value)[:20])
def test_each_error_has_its_status_and_code(error: errors.GovError, status: int, code: str) -> None:
    """OpenAI's shape, all four fields, and Retry-After exactly where waiting helps."""
    response = failure_of_error(error).response()
    body = json.loads(bytes(response.body))

    assert response.status_code == status
    assert body["error"]["code"] == code
    assert set(body["error"]) == {"message", "type", "code", "param"}
    assert ("retry-after" in response.headers) == (status in (429, 503))


@pytest.mark.parametrize(("outcome", "status", "code"), OUTCOMES)
def test_each_outcome_without_an_answer_has_its_status_and_code(outcome: Outcome, status: int, code: str) -> None:
    """The report travels beside the error."""
    response = failure_of_report(report(outcome, answer=None), NOW).response()
    body = json.loads(bytes(response.body))

    assert response.status_code == status
    assert body["error"]["code"] == code
    assert body["agentao_gov"]["outcome"] == outcome.value


def test_an_exhausted_budget_is_an_insufficient_quota_until_its_window_ends() -> None:
    """Retry-After is the end of the tightest scope's day, in that scope's zone."""
    lines = (line("tenant", "acme", limit=1000, used=10), line("user", "acme/ann", limit=100, used=99))

    failure = failure_of_report(report(Outcome.BUDGET_EXHAUSTED, answer=None, budget=lines), NOW)

    assert failure.ending.http_type == "insufficient_quota"
    assert failure.retry_after_s == 3600


def test_the_window_ends_at_the_scopes_own_midnight() -> None:
    """23:00 UTC is 07:00 in Shanghai: seventeen hours to go there."""
    lines = (line("tenant", "acme", limit=100, used=100, zone="Asia/Shanghai", window="2026-11-23"),)

    failure = failure_of_report(report(Outcome.BUDGET_EXHAUSTED, answer=None, budget=lines), NOW)

    assert failure.retry_after_s == 17 * 3600


def test_a_turns_own_budget_does_not_come_back_by_waiting() -> None:
    """No Retry-After where the turn's budget was the tightest."""
    lines = (line("tenant", "acme", limit=10_000, used=10), line("turn", "t1", limit=100, used=90, window="turn"))

    failure = failure_of_report(report(Outcome.BUDGET_EXHAUSTED, answer=None, budget=lines), NOW)

    assert failure.retry_after_s is None


@pytest.mark.parametrize("kind", [errors.ConfigError, errors.StoreError, errors.ModelError, errors.InternalError])
def test_an_error_that_names_the_operators_things_is_told_without_them(kind: type[errors.GovError]) -> None:
    """Files, addresses and a provider's words are for the log; a tenant learns of what kind the failure is."""
    failure = failure_of_error(kind("/srv/state/ledger.db at 10.0.0.7", hint="Look at /srv."))

    assert "/srv" not in json.dumps(failure.body())
    assert "10.0.0.7" not in json.dumps(failure.body())
    assert failure.message
    assert failure.ending is kind.ending


def test_a_report_is_told_without_what_is_the_operators() -> None:
    """Also in the report beside the error."""
    said = "The model at http://10.0.0.7/v1 answered 401: key of /srv"
    body = failure_of_report(
        report(Outcome.MODEL_ERROR, answer=None, detail="rejected", operator_detail=said, operator_warnings=(said,))
    ).body()

    assert "rejected" in json.dumps(body)
    assert "10.0.0.7" not in json.dumps(body)


@pytest.mark.parametrize(
    ("detail", "message"),
    [
        (None, "The turn was cancelled."),
        ("The turn was cancelled.", "The turn was cancelled."),
        ("The turn was cancelled before it started.", "The turn was cancelled before it started."),
        ("Its session was deleted.", "The turn was cancelled. Its session was deleted."),
    ],
)
def test_a_report_is_told_once(detail: str | None, message: str) -> None:
    """What the detail says again is not said before it."""
    assert failure_of_report(report(Outcome.CANCELLED, answer=None, detail=detail), NOW).message == message


@pytest.mark.parametrize("outcome", [outcome for outcome in Outcome if outcome is not Outcome.ANSWERED])
def test_an_sdk_does_not_repeat_a_turn_that_had_begun(outcome: Outcome) -> None:
    """A model call was made: once more would be paid twice, and would undo a cancel."""
    response = failure_of_report(report(outcome, answer=None), NOW).response()

    assert response.headers["x-should-retry"] == "false"


def test_an_sdk_may_repeat_what_never_began_and_never_sleeps_until_a_budgets_window_ends() -> None:
    """OpenAI's npm SDK sleeps through any Retry-After, fourteen hours of it as well."""
    full = failure_of_error(errors.QueueFullError("x")).response()
    spent = errors.BudgetExhaustedError(
        "x", scope="tenant", limit_tokens=1, used_tokens=1, reserved_tokens=0, asked_tokens=1, retry_after_s=50_000.0
    )

    assert "x-should-retry" not in full.headers
    assert failure_of_error(spent).response().headers["x-should-retry"] == "false"
    assert failure_of_error(spent).response().headers["retry-after"] == "50000"
