"""What is certain before a turn is sent is said before a turn is sent."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from agentao_gov.config import ResolvedDeployment, load_deployment
from agentao_gov.errors import ConfigError, UsageError
from agentao_gov.loadtest.options import (
    LoadOptions,
    bounded,
    build_plan,
    loaded_tenants,
    planned_phases,
    settle_mix,
    undecidable,
)
from agentao_gov.loadtest.plan import Estimate
from agentao_gov.loadtest.schedule import RecordedTurn
from agentao_gov.loadtest.thresholds import parse_threshold

DEPLOYMENT = """
[tenants.acme]
profiles = ["qa", "code"]
[tenants.globex]
"""


@pytest.fixture
def deployment(tmp_path: Path) -> ResolvedDeployment:
    path = tmp_path / "agentao-gov.toml"
    path.write_text(DEPLOYMENT)
    return load_deployment(path, environ={})


def recorded(profile: str | None) -> RecordedTurn:
    return RecordedTurn(0.0, "s", profile, None, 0, 10)


@pytest.mark.parametrize(
    ("changes", "planned", "threshold", "reason"),
    [
        ({}, 298, "turn_p99<2s", "p99 needs 299 turns and 298 are planned"),
        ({"max_turns": 58}, 1000, "first_token_p95<2s", "p95 needs 59 turns and 58"),
        ({}, 1000, "isolation_p95<1.5", "--victim"),
        ({}, 1000, "cost<1", "--price"),
        ({"target": "http://10.0.0.1"}, 1000, "fds_leaked<=0", "not on this machine"),
        ({"target": "http://10.0.0.1"}, 1000, "orphans<=0", "not started here"),
        ({"model_flags": {"--model": "m"}}, 1000, "budget_overshoot<=0", "simulated model"),
    ],
)
def test_a_threshold_that_can_have_no_samples_is_announced(
    changes: dict[str, Any], planned: int, threshold: str, reason: str
) -> None:
    """With what would help; the run itself ends inconclusive, never green."""
    options = replace(LoadOptions(), **changes)

    (said,) = undecidable([parse_threshold(threshold)], options, planned=planned, processes=options.target is None)

    assert said.startswith(f"{threshold} cannot be decided")
    assert reason in said


@pytest.mark.parametrize("threshold", ["turn_p99<2s", "error_rate<1%", "fds_leaked<=0", "orphans<=0"])
def test_a_threshold_that_can_be_decided_is_not_announced(threshold: str) -> None:
    """299 turns are enough for p99."""
    assert undecidable([parse_threshold(threshold)], LoadOptions(), planned=299, processes=True) == []


@pytest.mark.parametrize(("tenant", "loaded"), [(None, ("acme", "globex")), ("globex", ("globex",))])
def test_a_tenant_is_loaded_alone_when_it_is_named(
    tenant: str | None, loaded: tuple[str, ...], deployment: ResolvedDeployment
) -> None:
    """Else all of them."""
    assert loaded_tenants(LoadOptions(tenant=tenant), deployment) == loaded


@pytest.mark.parametrize(
    "changes", [{"tenant": "umbrella"}, {"victim": "umbrella"}, {"victim": "acme", "tenant": "acme"}]
)
def test_an_unknown_tenant_is_refused_with_those_there_are(
    changes: dict[str, str], deployment: ResolvedDeployment
) -> None:
    """Before anything starts."""
    with pytest.raises(ConfigError) as caught:
        loaded_tenants(LoadOptions(**changes), deployment)  # type: ignore[arg-type]

    assert "acme, globex" in str(caught.value) or "--victim is measured beside" in str(caught.value)


def test_a_mix_nobody_chose_leaves_out_what_a_tenant_may_not_use(deployment: ResolvedDeployment) -> None:
    """A refusal of the default mix would look like a failure of the service."""
    options, notes = settle_mix(LoadOptions(), deployment, None)

    assert options.mix == {"qa": 8.0, "code": 1.0}
    assert notes == ["mix: without research, which not every tenant may use"]


def test_a_chosen_mix_that_a_tenant_may_not_use_is_refused(deployment: ResolvedDeployment) -> None:
    """With what it may."""
    with pytest.raises(ConfigError, match=r"acme may not use profile research.*\n?.*qa=1,code=1"):
        settle_mix(LoadOptions(mix={"research": 1.0}, mix_given=True), deployment, None)


def test_a_recording_brings_its_mix() -> None:
    """Unless one was chosen; then it is said what becomes of the others."""
    recording = [recorded("code"), recorded("code"), recorded("qa")]

    followed, _ = settle_mix(LoadOptions(), None, recording)
    chosen, notes = settle_mix(LoadOptions(mix={"qa": 1.0}, mix_given=True), None, recording)
    unknown, _ = settle_mix(LoadOptions(), None, [recorded(None)])

    assert followed.mix == {"code": 2.0, "qa": 1.0}
    assert (chosen.mix, notes) == ({"qa": 1.0}, ["recorded turns of code are played as qa"])
    assert unknown.mix == LoadOptions().mix


@pytest.mark.parametrize(
    ("changes", "turns", "tokens"),
    [
        ({}, 2_000, 100_000_000),
        ({"users": 5}, 10_000, 500_000_000),
        ({"max_turns": 7}, 7, 100_000_000),
        ({"max_tokens": 9_000}, 2_000, 9_000),
    ],
)
def test_every_run_has_upper_bounds(changes: dict[str, Any], turns: int, tokens: int) -> None:
    """The user's, else a multiple of the plan: twice a schedule, ten times a closed loop."""
    options = LoadOptions(**changes)
    plan = build_plan(options, target="http://h", profiles={}, queue_timeout_s=10, simulated=True)

    limited = bounded(plan, options, Estimate(turns=1_000, prompt_tokens=10_000_000))

    assert (limited.max_turns, limited.max_tokens) == (turns, tokens)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rate": 1e9}, "60,000,000,000 turns"),
        ({"rate": 1e6, "duration_s": 3.0}, "3,000,000 turns"),
        ({"users": 1_000_000}, "20,000"),
        ({"shape": "ramp", "spawn_rate": 3.0}, "--spawn-rate"),
        ({"shape": "capacity", "victim": "acme"}, "--victim"),
        ({"shape": "capacity", "faults": Path("x")}, "--faults"),
        ({"target": "http://127.0.0.1:1", "model_flags": {"--model": "m"}}, "--model"),
        ({"write": True}, "--shape capacity"),
        ({"report_dir": Path(__file__)}, "not a directory"),
        ({"replay": Path("x"), "rate": 3.0}, "--replay"),
    ],
)
def test_what_nobody_can_mean_is_refused(changes: dict[str, Any], message: str) -> None:
    """At once: a schedule of sixty thousand million turns must not be unfolded first."""
    with pytest.raises(UsageError, match=message):
        LoadOptions(**changes).check()


def test_a_search_is_planned_up_to_its_ceiling() -> None:
    """A dry run shows the probes that are made where nothing gives way."""
    options = LoadOptions(shape="capacity", users=50, duration_s=100.0)
    plan = build_plan(options, target="http://h", profiles={}, queue_timeout_s=10, simulated=True)

    phases = planned_phases(options, plan, ("default",))

    assert [phase.label for phase in phases] == [f"{n} sessions" for n in (1, 4, 16, 50)]
    assert {phase.duration_s for phase in phases} == {8.0}
