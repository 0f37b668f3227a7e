"""Raw records survive their trip, and every turn ends in exactly one way."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from agentao_gov.endings import Outcome
from agentao_gov.loadtest.record import Beat, Begin, SampleFile, Status, TurnSample, classify, parse_line, tally_of


def make_sample(**changes: Any) -> TurnSample:
    values: dict[str, Any] = {
        "id": "0.0.1", "phase": 0, "worker": 0, "session": "s", "profile": "qa", "tenant": "acme",
        "intended_s": 1.0, "sent_s": 1.0, "latency_us": 1000, "service_us": 1000, "late_us": 0, "outcome": "answered",
    }  # fmt: skip
    return TurnSample(**{**values, **changes})


@pytest.mark.parametrize(
    "record",
    [
        make_sample(error='a "quoted"\nline', retry_after_s=1.5),
        Begin("i", 0, "s", "qa", "acme", 1.0, 1.1),
        Beat(0, 1, 2.5, 3, 4, (1, 2), 0.5),
    ],
)
def test_a_record_survives_its_line(record: Any) -> None:
    """One line each, whatever the texts in it."""
    line = record.to_line()

    assert "\n" not in line
    assert parse_line(line) == record


@pytest.mark.parametrize("line", ["", "{", "[1]", '{"t":"turn"', '{"t":"turn","id":"x"}'])
def test_a_torn_line_is_no_record(line: str) -> None:
    """A generator that is killed leaves half a line; it must not end the reader."""
    assert parse_line(line) is None


@pytest.mark.parametrize("outcome", list(Outcome))
def test_every_outcome_of_the_governor_has_a_status(outcome: Outcome) -> None:
    """The words are spelled out in samples.py, because importing them would load agentao under gevent."""
    expected = {
        Outcome.ANSWERED: Status.ANSWERED,
        Outcome.TURN_TIMEOUT: Status.TIMED_OUT,
        Outcome.STUCK: Status.TIMED_OUT,
        Outcome.CANCELLED: Status.CANCELLED,
    }.get(outcome, Status.FAILED)

    assert classify(outcome.value) is expected


def test_the_books_balance_whatever_happens() -> None:
    """started = answered + failed + timed out + cancelled + unfinished."""
    outcomes = [*map(str, Outcome), "client_timeout", "unfinished", "queue_full", "http_599", "connection_error"]

    tally = tally_of(make_sample(id=str(n), outcome=outcome) for n, outcome in enumerate(outcomes))

    assert tally.balanced
    assert tally.started == len(outcomes)


def test_a_turn_without_an_end_is_unfinished(tmp_path: Path) -> None:
    """The generator's death must not take its open turns out of the books."""
    path = tmp_path / "samples.jsonl"
    begins = [Begin(str(n), 0, "s", "qa", "acme", 1.0, 1.0) for n in range(3)]
    lines = [begin.to_line() for begin in begins] + [make_sample(id="1").to_line(), '{"t":"turn","id"']
    path.write_text("\n".join(lines))
    file = SampleFile(path)

    file.poll()
    record = file.phase(0)
    record.close(at_s=3.0)

    tally = tally_of(record.samples)
    assert record.started == tally.started == 3
    assert tally.by_outcome == {"answered": 1, "unfinished": 2}
    assert all(s.latency_us == 2_000_000 for s in record.samples if s.outcome == "unfinished")


def test_a_growing_file_is_read_once(tmp_path: Path) -> None:
    """A torn last line is read when it is whole."""
    path = tmp_path / "samples.jsonl"
    line = make_sample(id="1").to_line()
    path.write_text(line[:20])
    file = SampleFile(path)
    assert file.poll() == 0

    with path.open("a") as out:
        out.write(line[20:] + "\n")

    assert file.poll() == 1
    assert file.poll() == 0
    assert [sample.id for sample in file.phase(0).samples] == ["1"]


@pytest.mark.parametrize("name", ["record", "plan", "client", "schedule"])
def test_what_the_generator_imports_does_not_load_agentao(name: str) -> None:
    """agentao calls asyncio.run and must never be in a process that gevent has patched."""
    code = (
        f"import json, sys, agentao_gov.loadtest.{name}; print(json.dumps([m for m in sys.modules if m == 'agentao']))"
    )

    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout

    assert json.loads(out) == []


def test_the_command_imports_neither_locust_nor_gevent() -> None:
    """They patch the whole process and cost 0.8 s."""
    code = (
        "import sys, agentao_gov.commands.loadtest, agentao_gov.loadtest.run;"
        "print([m for m in sys.modules if m in ('locust', 'gevent')])"
    )

    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout

    assert out.strip() == "[]"
