"""Every outcome of the contract, provoked on the simulated model with real agentao."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest

from agentao_gov.budget import MemoryStore, StoreSettings, TokenLedger
from agentao_gov.clock import SYSTEM_CLOCK
from agentao_gov.errors import StoreError
from agentao_gov.governor import IterationEvent, Outcome, TextEvent, ToolEvent
from tests.governor.harness import HANG_S, Harness, say

pytestmark = pytest.mark.usefixtures("on_each_wire")

GLOB = {"name": "glob", "args": {"pattern": "*{round}"}, "vary": True}


def calls(harness: Harness) -> int:
    return harness.simulator.truth(requests=False).total.calls


def test_a_question_is_answered(harness: Harness) -> None:
    """The answer, the usage as the provider counts it, and a ledger that agrees."""
    report = harness.run(say(text="Forty-two."))

    assert (report.outcome, report.answer, report.exit_code) == (Outcome.ANSWERED, "Forty-two.", 0)
    truth = harness.simulator.truth(requests=False).total
    assert report.usage.total_tokens == truth.prompt_tokens + truth.completion_tokens
    assert harness.used(report) == (report.usage.total_tokens, 0)
    assert report.usage.estimated_tokens == 0
    assert report.timing_ms.first_token is not None


def test_the_events_of_a_turn_come_in_order(harness: Harness) -> None:
    """A round, its tool, the next round, the text."""
    harness.run(say(text="Done.", tool=GLOB | {"rounds": 1}))

    kinds = [type(event) for event in harness.events]
    assert kinds[:3] == [IterationEvent, ToolEvent, IterationEvent]
    assert "".join(event.delta for event in harness.events if isinstance(event, TextEvent)) == "Done."


def test_max_iterations_is_exact_and_wraps_up(harness: Harness) -> None:
    """Three rounds, then one call without tools, whose answer counts."""
    report = harness.run(say(tool=GLOB | {"rounds": "endless"}), limits={"max_iterations": 3})

    assert report.outcome == Outcome.MAX_ITERATIONS
    assert report.answer
    assert (report.iterations, report.usage.llm_calls, report.exit_code) == (3, 4, 7)
    requests = harness.simulator.truth().requests
    assert [bool(request.tools) for request in requests] == [True, True, True, False]


def test_max_iterations_stops_where_the_profile_says_so(harness: Harness) -> None:
    """No call beyond the cap."""
    report = harness.run(
        say(tool=GLOB | {"rounds": "endless"}), limits={"max_iterations": 2}, on_limit={"max_iterations": "stop"}
    )

    assert (report.outcome, report.answer) == (Outcome.MAX_ITERATIONS, None)
    assert (report.iterations, report.usage.llm_calls, calls(harness)) == (2, 2, 2)


def test_a_wrap_up_that_asks_for_tools_again_ends_all_the_same(harness: Harness) -> None:
    """A model that calls tools it was not given must not get another round."""
    behaviour = {"tool": GLOB | {"rounds": "endless"}, "steps": [{}, {"tool": {"name": "glob", "raw": "{}"}}]}
    harness.simulator.configure({"default": behaviour})

    report = harness.run("go on", limits={"max_iterations": 1})

    assert report.outcome == Outcome.MAX_ITERATIONS
    assert calls(harness) <= 2


def test_the_repeat_guard_is_reported_as_itself(harness: Harness) -> None:
    """agentao ends a turn at the third identical call."""
    report = harness.run(say(tool={"name": "glob", "args": {"pattern": "*"}, "rounds": "endless"}))

    assert (report.outcome, report.exit_code) == (Outcome.REPEAT_GUARD, 7)
    assert report.usage.llm_calls == 3


def test_arguments_that_can_never_be_read_are_the_repeat_guard_too(harness: Harness) -> None:
    """Different garbage each time, so that it is not the identical-call guard that fires."""
    steps = [{"tool": {"name": "glob", "raw": f"<<{n} not json", "rounds": "endless"}} for n in range(4)]

    report = harness.run(say(steps=steps))

    assert report.outcome == Outcome.REPEAT_GUARD


def test_a_budget_larger_than_the_turn_is_impossible(harness: Harness) -> None:
    """Waiting would never help, so nothing is sent."""
    report = harness.run(say(text="x"), limits={"turn_tokens": 500})

    assert (report.outcome, report.exit_code, report.answer) == (Outcome.BUDGET_IMPOSSIBLE, 6, None)
    assert calls(harness) == 0
    assert report.usage.total_tokens == 0


def test_a_spent_budget_ends_the_turn_and_parks_the_session(harness: Harness) -> None:
    """The loop goes on until the next call does not fit; the session goes on under a larger budget."""
    report = harness.run(say(tool=GLOB | {"rounds": "endless"}), limits={"turn_tokens": 12_000})

    assert (report.outcome, report.exit_code) == (Outcome.BUDGET_EXHAUSTED, 6)
    assert 0 < report.usage.total_tokens <= 12_000
    assert harness.used(report)[1] == 0
    assert report.usage.llm_calls == calls(harness)
    again = harness.ask(harness.opened[0], say(text="ok"))
    assert again.outcome == Outcome.ANSWERED


def test_an_answer_the_budget_cuts_is_a_matter_of_the_budget(harness: Harness) -> None:
    """The output granted is what is left, and the provider is told so."""
    report = harness.run(say(answer_tokens=4_000), limits={"turn_tokens": 5_000})

    assert report.outcome == Outcome.BUDGET_EXHAUSTED
    assert report.usage.total_tokens <= 5_000
    (request,) = harness.simulator.truth().requests
    assert request.max_tokens is not None
    assert request.max_tokens < 4_000


def test_an_answer_cut_at_max_output_tokens_is_incomplete(harness: Harness) -> None:
    """The profile's own limit, with budget left."""
    report = harness.run(say(answer_tokens=400), limits={"max_output_tokens": 50})

    assert (report.outcome, report.exit_code) == (Outcome.INCOMPLETE, 4)
    assert report.answer
    assert report.usage.completion_tokens <= 50


def test_an_empty_answer_is_incomplete(harness: Harness) -> None:
    """agentao's placeholder is not an answer."""
    report = harness.run(say(text=""))

    assert (report.outcome, report.answer) == (Outcome.INCOMPLETE, None)


@pytest.mark.parametrize("status", [400, 401, 404])
def test_a_refusal_of_the_provider_is_a_model_error_at_once(harness: Harness, status: int) -> None:
    """What does not pass is not sent again, and costs nothing."""
    report = harness.run(say(fault={"kind": "status", "status": status}))

    assert (report.outcome, report.exit_code) == (Outcome.MODEL_ERROR, 4)
    assert str(status) in (report.detail or "")
    assert (report.usage.llm_calls, report.usage.total_tokens) == (1, 0)
    assert harness.used(report) == (0, 0)


def test_a_passing_failure_is_sent_again_and_each_request_is_reserved(harness: Harness) -> None:
    """One refusal, then an answer: two requests, one paid."""
    report = harness.run(say(text="ok", fault={"kind": "status", "status": 500, "times": 1}))

    assert (report.outcome, report.usage.llm_calls, report.iterations) == (Outcome.ANSWERED, 2, 1)
    assert harness.used(report) == (report.usage.total_tokens, 0)


def test_llm_retries_zero_sends_once(harness: Harness) -> None:
    """Zero is allowed."""
    report = harness.run(say(fault="500"), limits={"llm_retries": 0})

    assert (report.outcome, report.usage.llm_calls) == (Outcome.MODEL_ERROR, 1)


@pytest.mark.parametrize(
    ("fault", "said", "public"),
    [
        ("html", "text/html instead of a model's answer", "did not answer as an OpenAI-compatible model does"),
        ("malformed", "not readable", "did not answer as an OpenAI-compatible model does"),
        ("error_event", "fails in mid-stream", "ended with an error"),
        ("drop", "The connection to the model at", "The connection to the model broke"),
        ("401", "Check the API key", "rejected the service's key (401)"),
        ("404", "Check the model's name and the base URL", "does not know the model (404)"),
        ("429", "answered 429", "limits the rate of requests (429)"),
        ("500", "answered 500", "had a server error (500)"),
    ],
)
def test_a_broken_answer_is_a_model_error_that_says_what_happened(
    harness: Harness, fault: str, said: str, public: str
) -> None:
    """Whatever a gateway sends: no traceback, nothing lost, nothing left reserved."""
    report = harness.run(say(fault=fault), limits={"llm_retries": 0})

    assert report.outcome == Outcome.MODEL_ERROR
    assert said in (report.for_operator().detail or "")
    assert public in (report.detail or "")
    assert "Traceback" not in (report.for_operator().detail or "")
    used, reserved = harness.used(report)
    assert reserved == 0
    truth = harness.simulator.truth(requests=False).total
    assert used >= truth.prompt_tokens + truth.completion_tokens


def test_a_stream_that_ends_without_a_reason_is_incomplete(harness: Harness) -> None:
    """Neither finish_reason nor usage nor [DONE]: a proxy cut it."""
    report = harness.run(say(text="half an answer", fault={"kind": "no_done", "after": 3}))

    assert report.outcome == Outcome.INCOMPLETE
    assert report.usage.estimated_tokens > 0


def test_an_endpoint_that_is_not_there_is_a_model_error_and_free(harness: Harness) -> None:
    """Nothing was sent, so nothing is charged and no call is counted as such."""
    session = harness.open(base_url="http://127.0.0.1:9/v1", limits={"llm_retries": 0})

    report = harness.ask(session, "hello")

    assert report.outcome == Outcome.MODEL_ERROR
    assert report.detail == "The model cannot be reached. (1 attempt, llm_retries is 0)"
    assert "cannot be reached" in (report.for_operator().detail or "")
    assert "refused" in (report.for_operator().detail or "")
    assert (report.usage.total_tokens, report.usage.llm_calls, harness.used(report)) == (0, 0, (0, 0))


@pytest.mark.parametrize("fault", ["401", "500", "html", "drop", "malformed", "error_event"])
def test_what_a_tenant_reads_names_neither_the_endpoint_nor_the_provider_s_words(harness: Harness, fault: str) -> None:
    """The report as JSON is what the HTTP service sends; only `for_operator` tells all."""
    report = harness.run(say(fault=fault), limits={"llm_retries": 0})

    assert "127.0.0.1" not in report.to_json()
    assert "127.0.0.1" in report.for_operator().to_json() or fault == "error_event"
    assert "simulat" not in (report.detail or "")


def test_the_turn_timeout_is_real(harness: Harness) -> None:
    """A model that answers for ever is cut at the deadline."""
    report = harness.run(
        say(answer_tokens=100_000, per_token=0.01), limits={"turn_timeout": 0.5, "max_output_tokens": 4_096}
    )

    assert (report.outcome, report.exit_code, report.answer) == (Outcome.TURN_TIMEOUT, 5, None)


def test_a_request_may_bring_its_own_deadline(harness: Harness) -> None:
    """The pool hands down what remains."""
    report = harness.run(say(fault="hang"), deadline_s=0.3)

    assert report.outcome == Outcome.TURN_TIMEOUT


@pytest.mark.parametrize(
    ("reason", "outcome", "exit_code"),
    [
        ("cancelled", Outcome.CANCELLED, 130),
        ("client_gone", Outcome.CANCELLED, 130),
        ("shutdown", Outcome.SHUTDOWN, 8),
    ],
)
def test_a_cancel_ends_the_turn_and_the_session_goes_on(
    harness: Harness, reason: str, outcome: Outcome, exit_code: int
) -> None:
    """Cancelled while the model says nothing; the next turn works."""
    session = harness.open()

    report = harness.ask_and_cancel(session, say(fault="hang"), reason)

    assert (report.outcome, report.exit_code) == (outcome, exit_code)
    assert harness.ask(session, say(text="still here")).answer == "still here"


def test_a_cancel_between_turns_does_nothing(harness: Harness) -> None:
    """It is for the turn in flight, not for the next one."""
    session = harness.open()
    session.cancel("cancelled")

    assert harness.ask(session, say(text="ok")).outcome == Outcome.ANSWERED


class FailingStore(MemoryStore):
    """A store that fails from the named operation on."""

    failing = ""

    def reserve(self, *arguments: Any, **options: Any) -> Any:
        return self._do("reserve", *arguments, **options)

    def settle(self, *arguments: Any, **options: Any) -> Any:
        return self._do("settle", *arguments, **options)

    def _do(self, operation: str, *arguments: Any, **options: Any) -> Any:
        if self.failing == operation:
            raise StoreError("the disk is full")
        return getattr(super(), operation)(*arguments, **options)


@pytest.fixture
def failing_store() -> FailingStore:
    return FailingStore(SYSTEM_CLOCK, StoreSettings())


def test_no_call_is_made_where_the_ledger_cannot_answer(harness: Harness, failing_store: FailingStore) -> None:
    """Fail closed, with the store's own words."""
    failing_store.failing = "reserve"
    ledger = TokenLedger(failing_store, SYSTEM_CLOCK, heartbeat_s=None)
    session = harness.open(options={"ledger": ledger})

    report = harness.ask(session, "hello")

    assert (report.outcome, report.exit_code) == (Outcome.STORE_UNAVAILABLE, 9)
    assert "disk is full" in (report.for_operator().detail or "")
    assert "disk" not in report.to_json()
    assert calls(harness) == 0
    ledger.close()


def test_an_answer_that_could_not_be_booked_is_given_with_a_warning(
    harness: Harness, failing_store: FailingStore
) -> None:
    """The call is made and paid; recovery charges its row, and the next reservation fails."""
    failing_store.failing = "settle"
    ledger = TokenLedger(failing_store, SYSTEM_CLOCK, heartbeat_s=None)
    session = harness.open(options={"ledger": ledger})

    report = harness.ask(session, say(text="ok"))

    assert report.answer == "ok"
    assert any("could not record" in warning for warning in report.warnings)
    ledger.close()


def test_an_exception_of_the_agent_is_an_internal_error_with_a_report(harness: Harness) -> None:
    """One report, always."""
    session = harness.open()

    def explode(*_: object) -> str:
        raise KeyError("no such thing")

    session._parts.agent._build_system_prompt = explode

    report = harness.ask(session, "hello")

    assert (report.outcome, report.exit_code) == (Outcome.INTERNAL_ERROR, 10)
    assert "KeyError" in (report.for_operator().detail or "")
    assert "KeyError" not in report.to_json()


def test_a_turn_that_never_comes_back_is_stuck_and_the_session_quarantined(harness: Harness) -> None:
    """The agent's own thread hangs where no token is looked at."""
    session = harness.open(limits={"turn_timeout": 0.3, "cancel_grace": 0.5})
    release = threading.Event()
    session._parts.agent._build_system_prompt = lambda: str(release.wait(HANG_S))

    began = time.monotonic()
    report = harness.ask(session, "hello")

    assert time.monotonic() - began < HANG_S / 2
    assert (report.outcome, report.exit_code) == (Outcome.STUCK, 5)
    assert session.stuck
    assert harness.ask(session, "again").outcome == Outcome.STUCK
    assert calls(harness) == 0
    release.set()


def test_the_report_names_every_limit_and_its_source(harness: Harness) -> None:
    """Seconds, tokens and counts under the keys of the file."""
    report = harness.run(say(text="ok"), limits={"turn_timeout": "30s"})

    assert report.limits["turn_timeout"].value == 30.0
    assert report.limits["max_iterations"].value == 25
    assert all(line.source for line in report.limits.values())
    assert [line.scope for line in report.budget] == ["tenant", "user", "session", "turn"]
    assert report.budget[3].limit == 100_000
