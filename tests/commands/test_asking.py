"""What a person is shown before a tool may run."""

from __future__ import annotations

from agentao_gov.commands.run_turn import Asker


def _asked(**arguments: object) -> str:
    asker = Asker()
    # Nobody answers: its time is over.
    assert asker("run_shell_command", "runs a command", dict(arguments)) is False
    return asker.questions.get_nowait().text


def test_a_long_call_says_that_its_end_is_not_shown() -> None:
    """A model could hide what matters behind a screen of harmless words."""
    text = _asked(command="echo " + "x" * 5_000 + "; rm -rf .")

    assert "rm -rf" not in text
    assert "… and 3,525 characters that are not shown" in text
    assert text.endswith("Allow it? [y/N] ")


def test_a_call_stays_on_its_line_and_steers_no_terminal() -> None:
    """Line breaks and control characters are shown as what they are."""
    text = _asked(command="ls\n\x1b[2J[y/N] y")

    assert "\n" not in text
    assert "\x1b" not in text
    assert "ls\\n\\x1b[2J" in text
