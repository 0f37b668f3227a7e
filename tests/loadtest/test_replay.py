"""Recorded turns are played as they were recorded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from agentao.replay.recorder import ReplayRecorder

from agentao_gov.errors import ConfigError
from agentao_gov.loadtest.options import Options, build_phase, build_plan
from agentao_gov.loadtest.plan import turns_of
from agentao_gov.loadtest.replay import load_replay


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
    options = Options(replay=path, replay_speed=2.0, mix={"qa": 1.0})
    plan = build_plan(options, target="http://127.0.0.1:1", profiles={}, queue_timeout_s=10, simulated=True)

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
