"""Recorded turns are played as they were recorded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from agentao.replay.recorder import ReplayRecorder

from agentao_gov.errors import ConfigError, UsageError
from agentao_gov.loadtest.options import LoadOptions, build_phase, build_plan
from agentao_gov.loadtest.plan import LoadPlan, turns_of
from agentao_gov.loadtest.schedule import load_replay, until


def report(second: int, session: str, **changes: Any) -> str:
    record = {
        "schema": "agentao-gov/turn-report/1",
        "session": session,
        "profile": "qa",
        "started_at": f"2026-11-22T08:00:{second:02d}Z",
        "iterations": 3,
        "usage": {"completion_tokens": 77},
    }
    return json.dumps({**record, **changes})


def test_turn_reports_keep_sessions_times_and_shapes(tmp_path: Path) -> None:
    """Out of order in the file, in order in time; half a line at the end is left out."""
    path = tmp_path / "batch.jsonl"
    path.write_text("\n".join([report(9, "b"), report(3, "a"), report(5, "a", iterations=1), '{"schema":']))

    turns = load_replay(path)

    assert [(t.at_s, t.session, t.tool_rounds, t.answer_tokens) for t in turns] == [
        (0, "a", 2, 77),
        (2, "a", 0, 77),
        (6, "b", 2, 77),
    ]


def test_speed_shortens_the_distances(tmp_path: Path) -> None:
    """Twice as fast: half the time between turns, the same turns."""
    path = tmp_path / "batch.jsonl"
    path.write_text("\n".join([report(0, "a"), report(10, "b")]))
    options = LoadOptions(replay=path, replay_speed=2.0, mix={"qa": 1.0})
    plan = build_plan(
        options,
        target="http://127.0.0.1:1",
        profiles={},
        queue_timeout_s=10,
        simulated=True,
        recording=load_replay(path),
    )

    phase = build_phase(options, plan, ("acme", "globex"))
    turns = list(turns_of(plan, phase, phase.streams[0]))

    assert [turn.intended_s for turn in turns] == [0.0, 5.0]
    assert [turn.session.tenant for turn in turns] == ["acme", "globex"]
    assert phase.duration_s == 6.0


def test_agentao_replay_files_are_understood(tmp_path: Path) -> None:
    """Written by agentao's own recorder: the question, the rounds, the answer's length."""
    recorder = ReplayRecorder.create("s-1", tmp_path)
    for turn in ("t1", "t2"):
        recorder.record("turn_started", turn_id=turn, payload={})
        recorder.record("user_message", turn_id=turn, payload={"content": f"question {turn}"})
        for tokens in (11, 42):
            recorder.record("llm_call_completed", turn_id=turn, payload={"completion_tokens": tokens})
        recorder.record("turn_completed", turn_id=turn, payload={})
    recorder.close()

    turns = load_replay(recorder.path)

    assert [(t.session, t.message, t.tool_rounds, t.answer_tokens) for t in turns] == [
        ("s-1", "question t1", 1, 42),
        ("s-1", "question t2", 1, 42),
    ]


@pytest.mark.parametrize("text", ["", "{}", "not json", '{"schema": "other"}'])
def test_a_file_without_turns_is_a_configuration_error(text: str, tmp_path: Path) -> None:
    """An empty replay would be an empty, green run."""
    path = tmp_path / "x.jsonl"
    path.write_text(text)

    with pytest.raises(ConfigError, match="holds no turns"):
        load_replay(path)


def test_a_plan_takes_its_recording_along(tmp_path: Path) -> None:
    """Workers on other machines have the plan and not the file."""
    path = tmp_path / "batch.jsonl"
    path.write_text("\n".join([report(0, "a"), report(3, "b"), report(4, "a")]))
    options = LoadOptions(replay=path, mix={"qa": 1.0})
    plan = build_plan(
        options, target="http://h", profiles={}, queue_timeout_s=10, simulated=True, recording=load_replay(path)
    )
    phase = build_phase(options, plan, ("default",))
    path.unlink()

    sent = LoadPlan.model_validate_json(plan.model_dump_json())

    turns = [(turn.intended_s, turn.session.id, turn.index) for turn in turns_of(sent, phase, phase.streams[0])]
    assert [(at, index) for at, _, index in turns] == [(0.0, 0), (3.0, 0), (4.0, 1)]
    assert len({session for _, session, _ in turns}) == 2


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([report(0, "a"), '{"half', report(1, "a")], "line 2 is not JSON"),
        ([report(0, "a", started_at="yesterday")], "line 1: .*yesterday"),
        (
            [report(0, "a"), json.dumps({"schema": "agentao-gov/turn-report/1", "profile": "qa"})],
            "line 2: .*started_at",
        ),
        ([report(0, "a", usage="many")], "line 1"),
        ([report(0, "a", iterations="x")], "line 1"),
    ],
)
def test_a_damaged_recording_is_named_by_its_line(lines: list[str], message: str, tmp_path: Path) -> None:
    """Not played in part: the load would be another one."""
    path = tmp_path / "x.jsonl"
    path.write_text("\n".join(lines))

    with pytest.raises(ConfigError, match=message):
        load_replay(path)


def test_a_huge_recording_is_refused_by_its_size(tmp_path: Path) -> None:
    """Before it is read into memory."""
    path = tmp_path / "huge.jsonl"
    with path.open("wb") as file:
        file.truncate(1024**3)

    with pytest.raises(ConfigError, match="1,024 MiB"):
        load_replay(path)


def test_absurd_counts_are_cut_to_what_can_be_played(tmp_path: Path) -> None:
    """One damaged number must not make a turn endless."""
    path = tmp_path / "x.jsonl"
    path.write_text(report(0, "a", iterations=10**9, usage={"completion_tokens": 10**12}))

    (turn,) = load_replay(path)

    assert (turn.tool_rounds, turn.answer_tokens) == (1000, 100_000)


def test_a_time_without_its_zone_is_utc(tmp_path: Path) -> None:
    """A recording means the same on every machine."""
    path = tmp_path / "x.jsonl"
    path.write_text("\n".join([report(0, "a", started_at="2026-11-22T08:00:00"), report(5, "a")]))

    assert [turn.at_s for turn in load_replay(path)] == [0.0, 5.0]


def test_a_duration_leaves_out_what_would_start_later(tmp_path: Path) -> None:
    """At the speed it is played."""
    path = tmp_path / "x.jsonl"
    path.write_text("\n".join(report(second, "a") for second in (0, 10, 30)))

    assert [turn.at_s for turn in until(load_replay(path), 15.0, 2.0)] == [0.0, 10.0]


def test_a_recording_longer_than_a_day_is_not_begun(tmp_path: Path) -> None:
    """Two files months apart, put together, would wait for months."""
    path = tmp_path / "x.jsonl"
    path.write_text("\n".join([report(0, "a"), report(0, "a", started_at="2026-12-22T08:00:00Z")]))
    options = LoadOptions(replay=path)
    plan = build_plan(
        options, target="http://h", profiles={}, queue_timeout_s=10, simulated=True, recording=load_replay(path)
    )

    with pytest.raises(UsageError, match="720"):
        build_phase(options, plan, ("default",))
