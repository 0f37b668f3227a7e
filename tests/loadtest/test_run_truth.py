"""Truth tests: what the load test reports against what a service of known behaviour really did."""

from __future__ import annotations

import json
import re
import statistics
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from agentao_gov.loadtest.document import LoadTestReport
from agentao_gov.loadtest.record import TurnSample, parse_line
from agentao_gov.simulator import start_simulator
from tests.loadtest.conftest import Stub

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]
Starter = Callable[..., Stub]
Load = Callable[..., LoadTestReport]


def samples_of(folder: Path) -> list[TurnSample]:
    lines = (folder / "samples.jsonl").read_text().splitlines()
    return [record for line in lines if isinstance(record := parse_line(line), TurnSample)]


def own_about_late_sends(report: LoadTestReport) -> None:
    """First tokens count from the true send, so turns that were sent late prove as much; but the run must own to it."""
    if report.generator["bound"] is not None:
        assert report.exit_code == 11


def test_a_stall_of_two_seconds_shows_in_the_corrected_percentiles(stub: Starter, load: Load) -> None:
    """At 200/s for 10 s: p90 within 10 % of 1.03 s and the planned load offered; closed-loop tools report 26 ms.

    A machine that is too busy to send on time makes the run inconclusive instead.
    """
    service = stub(stall_at_s=4.0, stall_for_s=2.0)

    report = load(service.url, rate=200.0, duration_s=10.0, process="constant", turns_per_session=1)

    assert report.turns.attempted == pytest.approx(2000, rel=0.01)
    assert report.generator["planned"] == report.generator["offered"] == report.turns.attempted
    if report.generator["bound"] is None:
        assert report.latency_ms["turn"].p90 == pytest.approx(1033, rel=0.1)
    else:
        assert report.exit_code == 11


def test_500_sessions_at_500_turns_a_second_are_timed_to_the_millisecond(stub: Starter, load: Load) -> None:
    """Against an instant service: p50 within 2 ms and p99 within 10 ms, or the run says it cannot tell."""
    service = stub()

    report = load(
        service.url,
        rate=500.0,
        users=500,
        duration_s=6.0,
        process="constant",
        turns_per_session=6,
        thresholds=["turn_p95<2s"],
    )

    turn = report.latency_ms["turn"]
    assert turn.p50 is not None
    assert turn.p99 is not None
    if report.conclusion == "pass":
        # The stub's own part is not the generator's error: its event loop is as late as the machine is busy.
        with urllib.request.urlopen(f"{service.url}/truth") as answer:
            lag_ms = json.load(answer)["lag_ms"]
        assert turn.p50 <= 2.0 + lag_ms["p50"]
        assert turn.p99 <= 10.0 + lag_ms["p99"]
    else:
        assert report.exit_code == 11
        assert "load generator was the bottleneck" in " ".join(report.reasons)


QUIRKS = ["crlf", "comments", "role_only", "split_utf8", "usage_every_chunk"]


def test_first_tokens_of_100_streams_are_true(load: Load, tmp_path: Path) -> None:
    """Within 3 ms at p50 of when the simulator wrote them, with every oddity of framing it knows."""
    behaviour: dict[str, Any] = {"first_token": "100ms", "per_token": "50ms", "chunk_tokens": 1, "answer_tokens": 40}
    script = {"default": {**behaviour, "quirks": QUIRKS}, "directives": False}
    with start_simulator(script) as simulator:
        # The first request loads a tokenizer; and independent arrivals do not stand in line at the simulator's door.
        load(simulator.base_url, api="openai", rate=5.0, duration_s=1.0, turns_per_session=1)
        simulator.reset()
        report = load(
            simulator.base_url, api="openai", rate=50.0, duration_s=5.0, turns_per_session=1, report_dir=tmp_path
        )
        truth = simulator.truth()

    own_about_late_sends(report)
    epoch = float(report.plan["start_epoch"])
    written: dict[str, float] = {}
    for request in truth.requests:
        asked = re.search(r"session (\d+) turn", request.question)
        assert asked is not None
        assert request.first_byte_at is not None
        written[asked[1]] = request.first_byte_at
    read_late_ms = [
        (epoch + s.sent_s + s.first_token_us / 1e6 - written[s.session.rsplit("-", 1)[1]]) * 1000
        for s in samples_of(tmp_path)
        if s.first_token_us is not None
    ]
    assert len(read_late_ms) == truth.total.answered >= 200
    # On top of the 3 ms only what the generator itself measured as the lag of a busy machine.
    assert 0 <= statistics.median(read_late_ms) <= 3 + report.generator["loop_lag_ms"]["p99"]


@pytest.mark.parametrize("fragment", [7, 1000])
def test_first_tokens_are_true_however_the_stream_is_cut(
    fragment: int, stub: Starter, load: Load, tmp_path: Path
) -> None:
    """Over a real socket in writes of 7 bytes: comments, `\\r\\n`, an empty delta and a split character come first.

    100 streams at once; the stub tells when it wrote the last byte of the first text, and the median is 3 ms after it.
    """
    service = stub(fragment=fragment, first_token_s=0.2, service_s=1.0, quirks=True)

    report = load(
        service.url, rate=100.0, duration_s=3.0, turns_per_session=1, report_dir=tmp_path, thresholds=["error_rate<1%"]
    )

    own_about_late_sends(report)
    with urllib.request.urlopen(f"{service.url}/truth") as answer:
        truth = json.load(answer)
    epoch = float(report.plan["start_epoch"])
    late_ms = [
        (epoch + s.sent_s + s.first_token_us / 1e6 - truth["first_text"][s.session]) * 1000
        for s in samples_of(tmp_path)
        if s.first_token_us is not None
    ]
    assert report.turns.by_outcome == {"answered": len(late_ms)}
    assert len(late_ms) >= 200
    assert -0.5 <= statistics.median(late_ms) <= 3 + report.generator["loop_lag_ms"]["p99"] + truth["lag_ms"]["p99"]
