"""A plan unfolds into the same sessions and turns wherever it is unfolded."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from agentao_gov.loadtest.plan import LoadPlan, LoadStream, Phase, draw, estimate, turns_of
from agentao_gov.loadtest.schedule import segments
from agentao_gov.simulator.script import read_directive


def make_plan(**changes: Any) -> LoadPlan:
    return LoadPlan(**{"run_id": "r", "target": "http://127.0.0.1:1", "seed": 7, **changes})


def make_phase(**changes: Any) -> Phase:
    stream = {"loop": "open", "segments": segments("constant", 20, 60), "mix": {"qa": 8, "code": 1, "research": 1}}
    return Phase(duration_s=60, drain_s=5, streams=(LoadStream(**{**stream, **changes}),))


def test_a_plan_survives_json() -> None:
    """It goes to the generator as JSON, and to workers on other machines."""
    plan, phase = make_plan(), make_phase()

    assert LoadPlan.model_validate_json(plan.model_dump_json()) == plan
    assert Phase.model_validate_json(phase.model_dump_json()) == phase


def test_turns_of_a_session_come_in_order_and_none_is_left_out() -> None:
    """Index 0, 1, 2, ... with ascending intended starts."""
    phase = make_phase()
    seen: dict[str, list[tuple[int, float]]] = {}

    for turn in turns_of(make_plan(), phase, phase.streams[0]):
        seen.setdefault(turn.session.id, []).append((turn.index, turn.intended_s))

    for turns in seen.values():
        assert [index for index, _ in turns] == list(range(len(turns)))
        assert [at for _, at in turns] == sorted(at for _, at in turns)


def test_workers_divide_the_schedule_without_rest() -> None:
    """Two workers' shares together are one worker's turns, each session on one worker."""
    plan, phase = make_plan(), make_phase()

    everything = [(t.session.id, t.index) for t in turns_of(plan, phase, phase.streams[0])]
    shares = [
        [(t.session.id, t.index) for t in turns_of(plan, phase, phase.streams[0]) if t.session.number % 2 == worker]
        for worker in (0, 1)
    ]

    assert sorted(shares[0] + shares[1]) == sorted(everything)
    assert {s for s, _ in shares[0]}.isdisjoint({s for s, _ in shares[1]})


def test_a_population_bounds_the_sessions_and_not_the_turns() -> None:
    """With 5 sessions at most, turns still come at the planned rate."""
    plan, single = make_plan(turns_per_session=1300), make_plan(turns_per_session=1)
    free, bounded = make_phase(), make_phase(population=5)

    turns = list(turns_of(plan, bounded, bounded.streams[0]))

    assert len({turn.session.id for turn in turns}) == 5
    assert len(turns) == sum(1 for _ in turns_of(single, free, free.streams[0]))


def test_the_mix_is_kept() -> None:
    """Sessions are drawn by the weights of their profiles."""
    plan, phase = make_plan(), make_phase()

    drawn = Counter(draw(plan, phase, phase.streams[0], number).profile for number in range(3000))

    assert drawn["qa"] / 3000 == pytest.approx(0.8, abs=0.03)


def test_without_variation_profiles_take_turns_and_turns_are_alike() -> None:
    """Capacity probes must differ by their load alone."""
    plan, phase = make_plan(variation=False), make_phase()

    sessions = [draw(plan, phase, phase.streams[0], number) for number in range(20)]

    assert Counter(session.profile for session in sessions) == {"qa": 16, "code": 2, "research": 2}
    assert len({session.turns for session in sessions if session.profile == "qa"}) == 1


def test_a_dry_run_counts_exactly_what_will_be_played() -> None:
    """The estimate of an open loop is a count, not a guess."""
    plan, phase = make_plan(), make_phase()

    total = estimate(plan, [phase])

    assert total.turns == sum(1 for _ in turns_of(plan, phase, phase.streams[0]))
    assert total.turns == sum(total.turns_by_profile.values())
    assert total.tokens > 5_000 * total.turns
    assert total.cost(1.0, 0.0) == pytest.approx(total.prompt_tokens / 1e6)


def test_a_closed_loop_is_estimated_by_nominal_times() -> None:
    """100 session-seconds hold about as many turns as fit by their nominal length and pause."""
    phase = make_phase(loop="closed", segments=segments("constant", 10, 60), mix={"qa": 1})

    total = estimate(make_plan(), [phase])

    assert 10 * 60 / 30 < total.turns < 10 * 60 / 3


def test_prompts_tell_a_simulated_model_what_to_do_and_a_real_one_nothing() -> None:
    """The directive is one the simulator accepts; without it there is plain text."""
    phase = make_phase()
    session = draw(make_plan(), phase, phase.streams[0], 0)

    scripted = session.message(make_plan(), 0)
    plain = session.message(make_plan(directives=False), 0)

    behaviour = read_directive(scripted)
    assert behaviour is not None
    assert behaviour.answer_tokens is not None
    assert read_directive(plain) is None
    assert "@sim" not in plain
