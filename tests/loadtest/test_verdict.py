"""One conclusion and one exit code for every way a run can end."""

from __future__ import annotations

import signal
from typing import Any

import pytest

from agentao_gov.loadtest.compare import Comparison
from agentao_gov.loadtest.record import TurnTally
from agentao_gov.loadtest.thresholds import ThresholdResult, parse_threshold
from agentao_gov.loadtest.verdict import RunEnding, judge


def books(**outcomes: int) -> TurnTally:
    tally = TurnTally(started=sum(outcomes.values()))
    tally.by_outcome.update(outcomes)
    for outcome, count in outcomes.items():
        status = outcome if outcome in ("answered", "unfinished", "cancelled") else "failed"
        tally.by_status[status] += count
    return tally


def result(status: Any, text: str = "turn_p95<2s", *, sure: bool = False) -> ThresholdResult:
    return ThresholdResult(parse_threshold(text), 1.0, status, 100, "because", sure)


ANSWERED = books(answered=100)
PASS = {"tally": ANSWERED, "thresholds": [result("pass")]}


@pytest.mark.parametrize(
    ("ending", "code"),
    [
        (PASS, 0),
        ({"tally": books(), "thresholds": []}, 11),
        ({"tally": books(unfinished=10), "thresholds": []}, 1),
        ({"tally": books(queue_full=10), "thresholds": []}, 1),
        ({**PASS, "service_died": "it ended with 1"}, 1),
        ({**PASS, "generator_died": "killed"}, 11),
        ({"tally": books(unfinished=9), "generator_died": "killed"}, 11),
        ({**PASS, "signal": signal.SIGINT}, 130),
        ({**PASS, "signal": signal.SIGTERM}, 143),
        ({"tally": ANSWERED, "thresholds": [result("inconclusive")]}, 11),
        ({**PASS, "generator_bound": "late"}, 11),
        ({"tally": ANSWERED, "thresholds": [result("fail")]}, 1),
        ({"tally": ANSWERED, "thresholds": [result("fail")], "generator_bound": "late"}, 11),
        ({"tally": ANSWERED, "thresholds": [result("fail", sure=True)], "generator_bound": "late"}, 1),
        ({"tally": ANSWERED, "thresholds": [result("fail", "error_rate<1%")], "generator_bound": "late"}, 1),
        # What could not be sent is not what the service got wrong.
        ({"tally": books(generator_error=9), "generator_bound": "x", "unsent": 9}, 11),
        ({"tally": ANSWERED, "thresholds": [result("fail", "error_rate<1%")], "generator_bound": "x", "unsent": 1}, 11),
        ({"tally": ANSWERED, "thresholds": [result("fail"), result("inconclusive")]}, 1),
        ({**PASS, "checklist_failed": True}, 1),
        ({**PASS, "comparisons": [Comparison("turn_p95", 1, 2, 2.0, 1.5, 2.5, "fail")]}, 1),
        ({**PASS, "comparisons": [Comparison("turn_p95", 1, 2, None, None, None, "inconclusive", "few")]}, 11),
        # None before: there is no ratio, and it is worse all the same.
        ({**PASS, "comparisons": [Comparison("unanswered", 0, 0.3, None, None, None, "fail", "9 of 30")]}, 1),
        ({**PASS, "capacity_failed": "not even one"}, 1),
        ({**PASS, "capacity_unclear": "time ran out"}, 11),
        ({"tally": TurnTally(started=5), "thresholds": [result("pass")]}, 11),
    ],
)
def test_an_ending_has_one_code_and_its_reasons(ending: dict[str, Any], code: int) -> None:
    """A pass has no reason to give; everything else has."""
    verdict = judge(RunEnding(**ending))

    assert verdict.exit_code == code
    assert (verdict.word == "pass") == (code == 0) == (not verdict.reasons)


def test_an_empty_ending_is_never_green() -> None:
    """The least one can know is not enough."""
    assert judge(RunEnding(TurnTally())).exit_code == 11
