"""File names in a conversation are found as agentao finds them, but in bounded time."""

from __future__ import annotations

import faulthandler
from typing import Any

import pytest
from agentao.prompts.helpers import extract_context_hints

from agentao_gov.governor.agentao_bounds import path_hints
from tests.governor.harness import Harness


@pytest.mark.parametrize(
    "text",
    [
        "see src/app.py and ../docs/README.md, then C:\\temp\\a.txt.",
        "no names here",
        "v1.2.30 a.b.cd.efg x.toolongsuffix .env ...py",
        "名前/ファイル.txt — “quoted.json”",
    ],
)
def test_the_names_are_those_that_agentao_finds(text: str) -> None:
    """In texts, in typed parts, and in the first twenty of the last ten messages only."""
    messages: list[dict[str, Any]] = [{"content": "early.py"}] * 3
    messages += [{"content": [{"type": "text", "text": text}]}, {"content": None}] * 5
    messages += [{"content": text}]

    assert path_hints(messages) == extract_context_hints(messages)


@pytest.mark.parametrize("text", ["a" * 1_000_000, "." * 1_000_000, "a." * 500_000, ("a" * 256 + " ") * 4_000])
def test_a_long_run_of_letters_takes_no_time(text: str) -> None:
    """What took agentao minutes; the guard ends a test run that would not come back."""
    faulthandler.dump_traceback_later(30, exit=True)
    try:
        assert len(path_hints([{"content": text}] * 10)) <= 20
    finally:
        faulthandler.cancel_dump_traceback_later()


def test_a_turn_with_a_long_run_of_letters_ends(harness: Harness) -> None:
    """The whole way through the agent."""
    report = harness.run("a" * 400_000)

    assert report.outcome.value in {"answered", "budget_impossible"}
