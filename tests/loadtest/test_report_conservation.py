"""Starts and ends are counted apart, and a run in which they differ is never a pass."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from agentao_gov.loadtest.document import LoadTestReport
from agentao_gov.loadtest.options import LoadOptions
from agentao_gov.loadtest.record import Begin, SampleFile, TurnSample
from agentao_gov.loadtest.render import gate_report
from agentao_gov.loadtest.report import Findings, assemble, imbalances
from agentao_gov.loadtest.thresholds import parse_threshold
from tests.loadtest.made import played


def begin(number: int, profile: str = "qa", tenant: str = "acme") -> str:
    return Begin(str(number), 0, "s", profile, tenant, 0.0, 0.0).to_line()


def end(number: int, profile: str = "qa", tenant: str = "acme") -> str:
    return TurnSample(
        id=str(number), phase=0, worker=0, session="s", profile=profile, tenant=tenant, intended_s=0.0, sent_s=0.0,
        latency_us=1000, service_us=1000, late_us=0, outcome="answered",
    ).to_line()  # fmt: skip


WHOLE = [line for number in range(80) for line in (begin(number), end(number))]
FINISHED = [json.dumps({"t": "phase_end", "phase": 0, "worker": 0})]
Judged = Callable[[list[str]], LoadTestReport]


@pytest.fixture
def judged(tmp_path: Path) -> Judged:
    """The report of a run that left these lines."""

    def judge(lines: list[str]) -> LoadTestReport:
        path = tmp_path / "samples.jsonl"
        path.write_text("\n".join(lines) + "\n")
        file = SampleFile(path)
        file.poll()
        record = file.phase(0)
        record.close(1.0, complete=bool(record.ended))
        execution = played(tenants=("acme",), profiles=("qa",), turns=0)
        execution.played[0].record = record
        thresholds = [parse_threshold("error_rate<1%")]
        return assemble(LoadOptions(), execution.plan, thresholds, execution, Findings(started_at=0.0))

    return judge


def test_whole_books_are_a_pass(judged: Judged) -> None:
    """The twin of all that follows."""
    report = judged(WHOLE + FINISHED)

    assert (report.conclusion, report.imbalances) == ("pass", [])


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([*WHOLE, end(7), *FINISHED], "ended without a start, or twice"),
        ([*WHOLE, end(900), *FINISHED], "ended without a start"),
        ([*WHOLE, begin(900), *FINISHED], "never said how they ended"),
        ([*WHOLE, begin(900), end(900, tenant="globex"), *FINISHED], "profile qa of tenant globex: 0 turns started"),
        ([*WHOLE, begin(900), end(900, profile="code"), *FINISHED], "profile code of tenant acme: 0 turns started"),
    ],
)
def test_broken_books_are_never_green(lines: list[str], message: str, judged: Judged) -> None:
    """A lost end, a second one, or one that was booked elsewhere; every format says it."""
    report = judged(lines)

    assert (report.exit_code, report.conclusion, report.verdict) == (11, "inconclusive", "fail")
    assert any(message in text for text in report.imbalances)
    assert "do not balance" in " ".join(report.reasons)
    case = next(case for case in gate_report(report).cases if case.id == "conservation")
    assert (case.status, case.evidence) == ("fail", tuple(report.imbalances))


def test_a_generator_that_died_leaves_unfinished_turns_and_whole_books(judged: Judged) -> None:
    """Nothing was lost: what began and was cut off is known."""
    report = judged([*WHOLE, begin(900)])

    assert report.imbalances == []
    assert (report.turns.attempted, report.turns.unfinished) == (81, 1)


def test_what_comes_after_the_books_are_closed_is_not_booked_again(tmp_path: Path) -> None:
    """A generator that is being ended says how its last turns went, which count as unfinished by then."""
    path = tmp_path / "samples.jsonl"
    path.write_text(begin(1) + "\n")
    file = SampleFile(path)
    file.poll()
    file.phase(0).close(1.0)

    with path.open("a") as late:
        late.write(f"{end(1)}\n{begin(2)}\n{end(2)}\n")
    file.poll()

    record = file.phase(0)
    assert ([s.outcome for s in record.samples], record.started, imbalances(record)) == (["unfinished"], 1, [])
