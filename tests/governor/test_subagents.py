"""Sub-agents: off unless the profile turns them on, and then under the parent's ledger, deadline and confinement."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from agentao_gov.governor import Outcome, TurnReport
from tests.governor.harness import Harness, say

TOOLS = {"allow": ["read_file", "glob"], "sub_agents": True}


@pytest.fixture
def workdir(harness: Harness, tmp_path: Path) -> Path:
    """A session's directory that defines eight sub-agents."""
    where = tmp_path / "s1"
    agents = where / ".agentao" / "agents"
    agents.mkdir(parents=True)
    for n in range(8):
        text = f"---\nname: helper{n}\ndescription: helps\ntools: read_file, glob\n---\nYou are helper {n}."
        (agents / f"helper{n}.md").write_text(text)
    return where


def delegate(agents: int = 1, **task: Any) -> str:
    """Asks for so many different sub-agents at once, each with a scripted task."""
    tool = {"name": "agent_helper{call}", "args": {"task": f"\n@sim {json.dumps(task)}"}, "parallel": agents}
    return say(text="after", tool=tool)


def truth(harness: Harness) -> int:
    total = harness.simulator.truth(requests=False).total
    return total.prompt_tokens + total.completion_tokens


def outcomes(report: TurnReport) -> set[tuple[str, str]]:
    return {(call.name, call.outcome) for call in report.tool_calls}


def test_they_are_off_by_default(harness: Harness, workdir: Path) -> None:
    """A definition in the working directory does not turn them on."""
    report = harness.run(delegate(text="sub"), tools={"allow": ["read_file"]})

    assert outcomes(report) == {("agent_helper0", "denied")}
    assert len(harness.simulator.truth().requests) == 2


def test_their_calls_are_paid_by_the_turn(harness: Harness, workdir: Path) -> None:
    """agentao gives a sub-agent a stock client outside every veto and every event."""
    report = harness.run(delegate(2, text="from below"), tools=TOOLS)

    assert (report.outcome, report.answer) == (Outcome.ANSWERED, "after")
    assert report.usage.llm_calls == 4
    assert report.usage.total_tokens == truth(harness)
    assert 0 < report.usage.subtree_tokens < report.usage.total_tokens
    assert report.iterations == 2
    assert harness.used(report) == (truth(harness), 0)


def test_eight_in_parallel_land_on_the_limit_and_the_parent_reports(harness: Harness, workdir: Path) -> None:
    """Elsewhere a limit of 9 ran 16 calls, and a budget stop inside a sub-agent hung for ever."""
    endless = {"tool": {"name": "glob", "args": {"pattern": "{round}*"}, "vary": True, "rounds": "endless"}}
    limit = 60_000

    report = harness.run(
        delegate(8, **endless),
        tools=TOOLS,
        limits={"turn_tokens": limit, "max_output_tokens": 1_500, "turn_timeout": 60},
    )

    assert report.outcome == Outcome.BUDGET_EXHAUSTED
    assert limit * 0.85 <= truth(harness) <= limit
    assert report.usage.total_tokens == truth(harness)
    assert harness.used(report)[1] == 0
    assert report.usage.llm_calls == harness.simulator.truth(requests=False).total.calls


@pytest.mark.parametrize("fault", ["hang", "stall"])
def test_one_that_hangs_ends_with_the_turn(harness: Harness, workdir: Path, fault: str) -> None:
    """Its socket is shut down like the parent's."""
    report = harness.run(
        delegate(3, text="a b c d e", fault=fault), tools=TOOLS, limits={"turn_timeout": 4.0, "cancel_grace": 2.0}
    )

    assert report.outcome == Outcome.TURN_TIMEOUT
    assert harness.simulator.wait_for(client_gone=3).total.in_flight == 0
    assert not harness.opened[0].stuck


def test_they_are_confined_and_their_tools_are_recorded(harness: Harness, workdir: Path) -> None:
    """The same file system, the same guard, the same report."""
    task = {"text": "sub", "tool": {"name": "read_file", "args": {"file_path": "/etc/hostname"}}}

    report = harness.run(delegate(**task), tools=TOOLS)

    assert outcomes(report) == {("agent_helper0", "ok"), ("read_file", "denied")}


def test_their_rounds_are_bounded_by_the_profile(harness: Harness, workdir: Path) -> None:
    """agentao's own bound is the definition's, 15 by default."""
    endless = {"tool": {"name": "glob", "args": {"pattern": "{round}*"}, "vary": True, "rounds": "endless"}}

    report = harness.run(delegate(**endless), tools=TOOLS, limits={"max_iterations": 3})

    assert report.outcome == Outcome.ANSWERED
    assert report.usage.llm_calls == 2 + 3


def test_a_sub_agent_at_its_limit_is_cut_and_the_parent_goes_on(harness: Harness, workdir: Path) -> None:
    """A tool like any other: with a limit of its own name."""
    limits = {"tool_timeouts": {"agent_helper0": 0.5}}

    report = harness.run(delegate(text="x", fault="hang"), tools=TOOLS, limits=limits)

    assert (report.outcome, report.answer) == (Outcome.ANSWERED, "after")
    assert outcomes(report) == {("agent_helper0", "timeout")}
    assert harness.used(report)[1] == 0
