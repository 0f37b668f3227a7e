"""The generator tells when it was itself what held the load up."""

from __future__ import annotations

from pathlib import Path

import pytest

from agentao_gov.loadtest.generator import CpuShare
from agentao_gov.loadtest.measure import generator_figures, sustained_cpu
from agentao_gov.loadtest.record import Beat, TurnSample
from tests.support.clock import FakeClock


def turns(count: int, *, took_ms: int = 20, outcome: str = "answered", error: str = "") -> list[TurnSample]:
    return [
        TurnSample(
            id=str(number), phase=0, worker=0, session=f"s{number}", profile="qa", tenant="t", intended_s=number / 10,
            sent_s=number / 10, latency_us=took_ms * 1000, service_us=took_ms * 1000, late_us=0, outcome=outcome,
            error=error,
        )
        for number in range(count)
    ]  # fmt: skip


def beat(at_s: float, *lags_us: int, worker: int = 0, cpu: float = 0.1, wait: float = 0.0) -> Beat:
    return Beat(0, worker, at_s, 1, 1, lags_us, cpu, wait)


@pytest.mark.parametrize(("lag_us", "took_ms", "late"), [(1_500, 20, False), (3_000, 20, True), (3_000, 100, False)])
@pytest.mark.parametrize("planned", [None, 60])
def test_a_generator_that_reads_late_is_bound_though_it_sent_in_time(
    lag_us: int, took_ms: int, late: bool, planned: int | None
) -> None:
    """2 ms, or a twentieth of a turn, with a schedule and without: answers are timed when they are read."""
    beats = [beat(at, *[lag_us] * 12) for at in range(5)]

    figures = generator_figures(turns(60, took_ms=took_ms), beats, planned=planned, complete=True)

    assert (figures.bound is not None) == late
    assert not late or str(figures.bound).startswith("it read answers late by 3.0 ms at p50, more than 2.0 ms")


@pytest.mark.parametrize(("rare", "late"), [(1, False), (5, True)])
def test_a_rare_lag_spoils_the_99th_percentile_once_it_is_no_chance(rare: int, late: bool) -> None:
    """Of 400 looks 1 % may be as late as they like; with fewer than 299 nobody can tell."""
    lags = [100] * (400 - rare) + [50_000] * rare

    long = generator_figures(turns(60), [beat(1.0, *lags)], planned=60, complete=True)
    short = generator_figures(turns(60), [beat(1.0, *lags[-200:])], planned=60, complete=True)

    assert (long.bound is not None) == late
    assert short.bound is None


def test_turns_that_could_not_be_sent_are_the_generators() -> None:
    """One is enough to doubt every rate."""
    samples = turns(99) + turns(1, outcome="generator_error", error="OSError: [Errno 24] Too many open files")

    figures = generator_figures(samples, [], planned=100, complete=True)

    assert figures.unsent == 1
    assert figures.bound == "it could not send 1 of 100 turns: OSError: [Errno 24] Too many open files"


def test_a_burst_of_a_moment_is_not_sustained() -> None:
    """The median of the window, of the busiest worker, what it waited for included."""
    beats = [beat(at / 4, cpu=1.0 if at < 3 else 0.2) for at in range(20)]
    beats += [beat(at / 4, worker=1, cpu=0.1, wait=0.5) for at in range(20)]

    assert sustained_cpu(beats, 0.0, 5.0) == (0.1, 0.5)
    assert sustained_cpu(beats, 0.0, 0.7) == (1.0, 0.0)
    assert sustained_cpu(beats, 9.0, 10.0) is None


@pytest.mark.parametrize(("counted", "waited"), [(True, 0.25), (False, 0.0)])
def test_a_process_that_has_to_share_its_core_counts_what_it_waited_for(
    tmp_path: Path, counted: bool, waited: float
) -> None:
    """Shares of the time since the last look, where the kernel counts what a thread stood in its queue (proc(5))."""
    now, cpu, schedstat = FakeClock(), FakeClock(), tmp_path / "schedstat"
    schedstat.write_text("7000000000 3000000000 42\n" if counted else "")
    pulse = CpuShare(clock=now.monotonic, cpu_clock=cpu.monotonic, schedstat=schedstat)

    for nanoseconds in (4_000_000_000, 5_000_000_000):
        now.advance(4.0)
        cpu.advance(2.0)
        schedstat.write_text(f"9000000000 {nanoseconds} 57\n" if counted else "")

        assert pulse.look() == (0.5, waited)
