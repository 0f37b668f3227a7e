"""Sub-agents: off unless the profile turns them on, and then under the parent's ledger, deadline and confinement."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from agentao_gov.budget.journal import JournalEntry, decode
from agentao_gov.governor import Outcome, TurnReport
from tests.governor.harness import Harness, say

pytestmark = pytest.mark.usefixtures("on_each_wire")

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


def test_eight_in_parallel_land_exactly_on_the_limit_and_the_parent_reports(harness: Harness, workdir: Path) -> None:
    """Elsewhere a limit of 9 ran 16 calls, and a budget stop inside a sub-agent hung for ever.

    Exactly: used and held together reach the limit itself and never pass it, because the last call is granted all that
    is left; and what stays unused is less than the call that was refused asked for. An answer is 1,500 tokens of a
    grant of up to 6,000, so that no call steps from a full grant to none.
    """
    limit = 100_000
    endless = {"name": "glob", "args": {"pattern": "{round}*"}, "vary": True, "rounds": "endless"}
    # A first token that takes its time: a call cut before it has produced nothing, which is what is charged for it.
    answer = {"tool": {**endless, "text": "word " * 1_500}, "first_token": 0.05}
    task = {"respond": answer, "match": {"contains": "carry on"}}
    harness.simulator.configure({"rules": [task]})
    tool = {"name": "agent_helper{call}", "args": {"task": "carry on"}, "parallel": 8}

    report = harness.run(
        say(tool=tool),
        tools=TOOLS,
        limits={"turn_tokens": limit, "max_output_tokens": 6_000, "turn_timeout": 60},
    )

    total = harness.simulator.wait_for(idle=True).total
    used, reserved = harness.used(report)
    assert report.outcome == Outcome.BUDGET_EXHAUSTED
    assert {call.name for call in report.tool_calls} == {"glob", *(f"agent_helper{n}" for n in range(8))}
    assert report.usage.llm_calls == total.calls
    assert (report.usage.total_tokens, 0) == (used, reserved)
    # Those in flight when the first one is refused are cut and charged their bound; nothing else is guessed.
    assert used - report.usage.estimated_tokens <= total.total_tokens <= used
    assert peak(harness, report) == limit
    assert 0 <= limit - used < asked(report)


def asked(report: TurnReport) -> int:
    """What the refused call wanted, by the report's own words."""
    found = re.search(r"the call needs ([\d,]+)", report.detail or "")
    assert found is not None, report.detail
    return int(found[1].replace(",", ""))


def peak(harness: Harness, report: TurnReport) -> int:
    """The most that the turn ever used and held at once, from the journal."""
    (own,) = [entry.id for entry in journal(harness) if entry.kind == "line" and report.turn_id in entry.note]
    level = highest = 0
    for entry in journal(harness):
        if own in entry.refs:
            level += entry.used + entry.reserved
            highest = max(highest, level)
    return highest


def journal(harness: Harness) -> list[JournalEntry]:
    """Every step of every call, in order."""
    return [decode(text) for _, text, _ in harness.ledger.store.journal()]


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
    task: dict[str, Any] = {"text": "sub", "tool": {"name": "read_file", "args": {"file_path": "/etc/hostname"}}}

    report = harness.run(delegate(**task), tools=TOOLS)

    assert outcomes(report) == {("agent_helper0", "ok"), ("read_file", "denied")}


def test_their_rounds_are_bounded_by_the_profile(harness: Harness, workdir: Path) -> None:
    """agentao's own bound is the definition's, 15 by default."""
    endless: dict[str, Any] = {
        "tool": {"name": "glob", "args": {"pattern": "{round}*"}, "vary": True, "rounds": "endless"}
    }

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
