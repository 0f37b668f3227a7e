"""A pattern that the model chose cannot stop the process."""

from __future__ import annotations

import faulthandler
from pathlib import Path

import pytest

from tests.governor.harness import Harness, say


def search(harness: Harness, pattern: str, text: str) -> str:
    """What the tool tells a model that searches a file with the text."""
    workdir: Path = harness.spec().workdir
    workdir.mkdir(parents=True, exist_ok=True)
    (workdir / "data.txt").write_text(text)
    harness.run(
        say(text="after", tool={"name": "search_file_content", "args": {"pattern": pattern, "regex": True}}),
        tools={"allow": ["search_file_content"]},
    )
    messages = harness.opened[-1].snapshot().messages
    return "\n".join(str(message["content"]) for message in messages if message["role"] == "tool")


def test_a_pattern_that_backtracks_without_end_is_given_up(harness: Harness) -> None:
    """The guard ends a test run that would not come back."""
    faulthandler.dump_traceback_later(60, exit=True)
    try:
        told = search(harness, r"(a|aa)+$", "a" * 5_000 + "!\n")
    finally:
        faulthandler.cancel_dump_traceback_later()

    assert "the pattern took more than 1 s on one line" in told


@pytest.mark.parametrize("pattern", [r"needle\d+", r"(?i)NEEDLE\d{2}", r"^need(?=le)"])
def test_honest_patterns_find_what_they_found(harness: Harness, pattern: str) -> None:
    """As with `re`."""
    told = search(harness, pattern, "hay\nneedle42\nhay\n")

    assert "data.txt:2: needle42" in told


def test_a_pattern_that_is_none_is_an_error_to_the_model(harness: Harness) -> None:
    """As with `re`."""
    assert "Invalid regex pattern" in search(harness, "need(le", "needle\n")
