"""The search finds a known capacity in few probes, and says what binds."""

from __future__ import annotations

import random
from typing import Any

import pytest

from agentao_gov.loadtest.capacity import (
    CapacityResult,
    CapacitySearch,
    ProbeResult,
    Resources,
    binding_constraint,
    wilson,
)

TURN_S = 0.2
PROBE_S = 10.0


def search(limit: int, mode: str, seed: int, *, noise: float = 0.02, ceiling: int = 500) -> CapacityResult:
    """A search against a model of a service: `queue` waits at the limit, `refuse` answers 429."""
    rng = random.Random(f"{seed}:{mode}:{limit}")
    searching = CapacitySearch(ceiling=ceiling)
    while (load := searching.next_load()) is not None:
        served = min(load, limit)
        rate = served / TURN_S * rng.gauss(1, noise)
        good = max(1, round(rate * PROBE_S))
        refused = round((load - served) / 0.25 * PROBE_S) if mode == "refuse" else 0
        waiting = load if mode == "queue" else served
        searching.record(
            ProbeResult(
                load=load,
                good=good,
                total=good + refused,
                turns_per_s=rate,
                mean_s=waiting / rate,
                refusals={"model_error": refused} if refused else {},
                resources=Resources(model_ms=waiting / rate * 1000),
            )
        )
    return searching.result()


@pytest.mark.parametrize("mode", ["queue", "refuse"])
@pytest.mark.parametrize("limit", [3, 17, 60])
def test_a_known_limit_is_found_within_ten_percent_or_one_session(mode: str, limit: int) -> None:
    """In at most ten probes, and the model is named as what binds; 60 noisy services, at most three misses."""
    results = [search(limit, mode, seed) for seed in range(60)]

    missed = [r for r in results if r.sessions is None or abs(r.sessions - limit) > max(1, 0.1 * limit)]
    assert len(missed) <= 3
    assert max(len(r.probes) for r in results) <= 10
    assert sum(r.bottleneck == "model" for r in results) >= 57


def test_an_unlimited_service_is_called_so() -> None:
    """Nothing gave way up to the ceiling: that is a lower bound, and no knee."""
    result = search(10_000, "queue", 0)

    assert (result.outcome, result.sessions, result.high) == ("unlimited", 500, None)


def test_an_unattainable_objective_is_called_so() -> None:
    """Not even one session: no number is invented."""
    searching = CapacitySearch(ceiling=100)
    assert searching.next_load() == 1

    searching.record(ProbeResult(1, 50, 50, 5.0, 0.2, missed=("turn_p95<100ms",)))

    assert searching.next_load() is None
    assert (searching.result().outcome, searching.result().sessions) == ("unattainable", None)
    assert searching.result().bottleneck == "objective turn_p95<100ms"


def test_an_objective_binds_below_saturation() -> None:
    """Latency that grows with load and misses its objective at 20 sessions: 19 is the capacity."""
    searching = CapacitySearch(ceiling=500)

    while (load := searching.next_load()) is not None:
        missed = ("first_token_p95<1s",) if load >= 20 else ()
        searching.record(ProbeResult(load, 500, 500, load / TURN_S, TURN_S, missed=missed))

    assert searching.result().low in (18, 19)
    assert searching.result().bottleneck == "objective first_token_p95<1s"


def test_a_generator_that_gives_in_ends_the_search_without_a_claim() -> None:
    """Its limit is not the service's: the search goes half-way back, and then says it cannot tell."""
    searching = CapacitySearch(ceiling=500)
    loads = []

    while (load := searching.next_load()) is not None:
        loads.append(load)
        bound = "late by 300 ms" if load > 16 else None
        searching.record(ProbeResult(load, 200, 200, load / TURN_S, TURN_S, generator_bound=bound))

    assert loads[:5] == [1, 4, 16, 64, 32]
    assert len(loads) <= 10
    assert (searching.result().outcome, searching.result().bottleneck) == ("unclear", "the load generator")
    assert searching.result().sessions == 16


def test_a_generator_that_gives_in_far_above_does_not_spoil_the_search() -> None:
    """The service saturates at 60, the generator at 200: 60 is found."""
    searching = CapacitySearch(ceiling=1000)

    while (load := searching.next_load()) is not None:
        rate = min(load, 60) / TURN_S
        bound = "late" if load > 200 else None
        searching.record(ProbeResult(load, 500, 500, rate, load / rate, generator_bound=bound))

    assert searching.result().outcome == "found"
    assert searching.result().sessions == pytest.approx(60, abs=6)


ALONE = ProbeResult(1, 50, 50, 5.0, 0.2, resources=Resources(model_ms=100))


@pytest.mark.parametrize(
    ("refusals", "resources", "name"),
    [
        ({"tenant_session_limit": 40}, {}, "tenant session cap"),
        ({"user_session_limit": 40}, {}, "user session cap"),
        ({"budget_exhausted": 40}, {}, "token budget"),
        ({}, {"busy": 64, "busy_max": 64, "service_cpu": 0.3}, "max_busy"),
        ({"queue_full": 40}, {"busy": 64, "busy_max": 64}, "max_busy"),
        ({"queue_timeout": 40}, {"sessions": 500, "sessions_held": 500, "sessions_max": 500}, "max_sessions"),
        # Residents that are idle make room: not they are short, but the places for busy turns.
        ({}, {"sessions": 500, "sessions_held": 64, "sessions_max": 500, "busy": 64, "busy_max": 64}, "max_busy"),
        ({"queue_timeout": 40}, {}, "queue"),
        ({"model_error": 40}, {}, "model"),
        ({"rate_limited": 40}, {}, "model"),
        ({}, {"memory_bytes": 990, "memory_max_bytes": 1000}, "memory"),
        ({}, {"fds": 1020, "fds_max": 1024}, "descriptors"),
        # Places are full at any overload; here their turns are held up by something else.
        ({}, {"busy": 64, "busy_max": 64, "service_cpu": 0.97}, "CPU of the service"),
        ({}, {"busy": 64, "busy_max": 64, "model_ms": 300}, "model"),
        ({}, {"busy": 12, "busy_max": 12, "service_cpu": 0.97}, "max_busy"),
        ({"internal_error": 40}, {"oom_kills": 2}, "memory"),
        ({"internal_error": 40}, {}, "failing turns"),
        ({}, {"service_cpu": 0.97}, "CPU of the service"),
        ({}, {"service_cpu": 0.5, "service_cores": 1.8, "cores": 2}, "CPU of the service"),
        ({}, {"service_cores": 1.2, "cores": 2, "machine_cpu": 0.99, "generator_cpu": 0.7}, "CPU of the service"),
        ({}, {"service_cores": 0.6, "cores": 2, "machine_cpu": 0.99, "model_cpu": 0.8, "generator_cpu": 0.5}, "model"),
        ({}, {"service_cores": 0.6, "cores": 2, "machine_cpu": 0.99}, "other programs on this machine"),
        ({}, {"service_cpu": 0.5, "model_cpu": 0.97}, "model"),
        # A generator that waits for a core is as short of it as one that uses it up.
        ({}, {"generator_cpu": 0.4, "generator_wait": 0.5}, "CPU of the load generator"),
        ({}, {"generator_cpu": 0.87, "service_cpu": 0.99}, "CPU of the service"),
        ({}, {"generator_cpu": 0.97, "service_cpu": 0.97}, "CPU of the load generator"),
        ({}, {"model_ms": 300}, "model"),
        ({}, {"model_ms": 101}, "unknown"),
    ],
)
def test_the_binding_constraint_is_named(refusals: dict[str, int], resources: dict[str, Any], name: str) -> None:
    """With the evidence for it."""
    beyond = ProbeResult(80, 900, 1000, 60.0, 1.0, refusals=refusals, resources=Resources(**resources))

    found, evidence = binding_constraint([beyond], ALONE)

    assert found == name
    assert "80 sessions" in evidence


def test_what_was_used_up_further_up_is_named_before_who_seemed_slow_near_the_knee() -> None:
    """A service short of CPU reads its model's answers late; at twice the load the core is seen to be full."""
    near = ProbeResult(10, 900, 900, 45.0, 0.25, resources=Resources(service_cpu=0.7, model_ms=120))
    far = ProbeResult(40, 900, 900, 60.0, 0.7, resources=Resources(service_cpu=0.98, model_ms=200))

    assert binding_constraint([near, far], ALONE)[0] == "CPU of the service"
    assert binding_constraint([near], ALONE)[0] == "model"


@pytest.mark.parametrize(
    "beyond",
    [
        {"resources": Resources(memory_bytes=1100, memory_max_bytes=1000, memory_max_by="[capacity] memory")},
        {"died": "it ended with -9"},
    ],
)
def test_a_load_that_takes_more_than_there_is_does_not_hold(beyond: dict[str, Any]) -> None:
    """However well its turns went: more memory than planned, or the end of the service."""
    searching = CapacitySearch(ceiling=100)
    for load in (1, 4):
        searching.record(ProbeResult(load, 50, 50, load / TURN_S, TURN_S))

    searching.record(ProbeResult(16, 500, 500, 16 / TURN_S, TURN_S, **beyond))

    assert (searching.low, searching.high) == (4, 16)
    assert searching.result().bottleneck in ("memory", "the service's death")


def test_turns_that_fail_set_no_ceiling() -> None:
    """Out of descriptors at 40 the service answers fewer turns than at 16: the limit is looked for between them."""
    searching = CapacitySearch(ceiling=500)

    while (load := searching.next_load()) is not None:
        short = load > 28
        searching.record(
            ProbeResult(
                load, 60 if short else 5 * load, 600 if short else 5 * load, 12.0 if short else load / TURN_S, TURN_S,
                refusals={"ledger_unavailable": 540} if short else {},
                resources=Resources(fds=130 if short else 20 + 4 * load, fds_max=130),
            )
        )  # fmt: skip

    assert searching.result().sessions == pytest.approx(28, abs=2)
    assert searching.result().bottleneck == "descriptors"


def test_an_upper_bound_that_ends_the_search_is_no_fault_of_the_generator() -> None:
    """It is named for what it is."""
    searching = CapacitySearch(ceiling=500)
    searching.record(ProbeResult(1, 50, 50, 5.0, TURN_S))
    searching.record(ProbeResult(4, 20, 20, 20.0, TURN_S, cut_short="the upper bound of turns was reached"))

    assert searching.result().outcome == "unclear"
    assert searching.result().bottleneck == "an upper bound of this run"


def test_a_missed_objective_is_named_where_nothing_was_at_its_limit() -> None:
    """Before giving up on naming anything."""
    beyond = ProbeResult(80, 900, 1000, 60.0, 1.0, missed=("turn_p95<2s",), resources=Resources(model_ms=100))

    assert binding_constraint([beyond], ALONE)[0] == "objective turn_p95<2s"


def test_wilson_knows_how_little_it_knows() -> None:
    """Ten of ten is no proof of 99 %; nothing says nothing."""
    assert wilson(0, 0) == (0.0, 1.0)
    assert wilson(10, 10)[0] < 0.8
    assert wilson(990, 1000)[0] == pytest.approx(0.982, abs=0.002)
