"""What people see: plain without a terminal, never colour where none was asked for."""

from __future__ import annotations

import io

import pytest

from agentao_gov.endings import Outcome
from agentao_gov.governor.report import BudgetLine, LimitLine, Timing, ToolCall, TurnReport, Usage
from agentao_gov.report.terminal import bar, console, is_styled, print_table, printable
from agentao_gov.report.turn_panel import print_limits, print_panel


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def _report(**changes: object) -> TurnReport:
    values: dict[str, object] = {
        "turn_id": "t", "tenant": "local", "user": "ann", "session": "s", "profile": "qa", "mode": "in-process",
        "model": "m", "outcome": Outcome.ANSWERED, "answer": "yes", "exit_code": 0,
        "started_at": "2026-11-22T08:00:00Z", "timing_ms": Timing(total=1500, first_token=300), "iterations": 2,
        "usage": Usage(prompt_tokens=5230, completion_tokens=118, total_tokens=5348, llm_calls=3, estimated_tokens=7),
        "limits": {
            "turn_timeout": LimitLine(value=90.0, source="flag --timeout"),
            "max_iterations": LimitLine(value=25, source="profile qa"),
            "turn_tokens": LimitLine(value=100_000, source="profile qa"),
        },
    }  # fmt: skip
    return TurnReport.model_validate({**values, **changes})


@pytest.mark.parametrize(
    ("stream", "environ", "styled"),
    [
        (_Terminal, {"TERM": "xterm"}, True),
        (_Terminal, {"TERM": "dumb"}, False),
        (_Terminal, {"TERM": "xterm", "NO_COLOR": "1"}, False),
        (_Terminal, {"TERM": "xterm", "NO_COLOR": "1", "FORCE_COLOR": "1"}, False),
        (io.StringIO, {"TERM": "xterm"}, False),
        (io.StringIO, {"TERM": "xterm", "GITHUB_ACTIONS": "true"}, False),
        (io.StringIO, {"TERM": "xterm", "FORCE_COLOR": "1"}, True),
    ],
)
def test_colour_is_for_terminals(
    monkeypatch: pytest.MonkeyPatch, stream: type[io.StringIO], environ: dict[str, str], styled: bool
) -> None:
    """NO_COLOR beats everything; a CI's variable alone colours nothing; FORCE_COLOR asks for it."""
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    out = stream()

    console(out).print("word", style="bold red")

    assert is_styled(out) == styled
    assert ("\x1b" in out.getvalue()) == styled


def test_brackets_of_users_stay_text() -> None:
    """Rich would take `[red]` for markup, and an answer would lose it."""
    out = io.StringIO()

    console(out).print("a [red]b[/red] :smile:")

    assert out.getvalue() == "a [red]b[/red] :smile:\n"


def test_a_table_is_tab_separated_without_a_terminal() -> None:
    """`| cut -f1` works, and a line break in a cell breaks no row."""
    out = io.StringIO()

    print_table(console(out), ("a", "b"), [("1", "x\ny")])

    assert out.getvalue() == "a\tb\n1\tx y\n"


def test_every_outcome_has_an_ending_in_words() -> None:
    """A new outcome without words would leave its line on somebody's screen empty."""
    assert all(outcome.ending.words for outcome in Outcome)


def test_the_panel_shows_what_was_used_of_each_limit() -> None:
    """Time, iterations, tokens, tools, budgets; and what is estimated."""
    out = io.StringIO()
    budget = BudgetLine(
        scope="session", key="local/s", window="2026-11-22", timezone="UTC", limit=300_000, used=5348, reserved=0
    )
    tools = (
        ToolCall(name="glob", outcome="timeout", duration_ms=20_000),
        ToolCall(name="x", outcome="ok", duration_ms=1),
    )

    print_panel(console(out), _report(budget=(budget,), tool_calls=tools, warnings=("low",)))

    text = out.getvalue()
    for words in (
        "answered", "1.5 of 90 s, first token after 0.3 s", "2 of 25, 3 model calls",
        "5,348 of 100,000 (prompt 5,230 + completion 118, 7 of it estimated)", "glob timeout",
        "5,348 of 300,000 on 2026-11-22 (UTC)", "warning: low",
    ):  # fmt: skip
        assert words in text


def test_the_panel_says_why_a_turn_failed() -> None:
    """The ending and its detail come first."""
    out = io.StringIO()

    print_panel(console(out), _report(outcome=Outcome.TURN_TIMEOUT, answer=None, detail="met its limit", exit_code=5))

    first, second, *_ = out.getvalue().splitlines()
    assert "stopped at its time limit" in first
    assert second.strip() == "met its limit"


def test_a_brief_panel_shows_daily_budgets_only_where_they_run_out() -> None:
    """After each turn of a conversation the same bars of empty budgets would be noise; so would a told warning."""
    lines = tuple(
        BudgetLine(scope=scope, key="k", window="2026-11-22", timezone="UTC", limit=100, used=used, reserved=0)
        for scope, used in (("tenant", 10), ("user", 80))
    )
    out = io.StringIO()

    print_panel(console(out), _report(budget=lines, warnings=("told", "new")), brief=True, told=("told",))

    text = out.getvalue()
    assert "user " in text
    assert "tenant " not in text
    assert "warning: new" in text
    assert "told" not in text


def test_limits_are_shown_as_people_write_them() -> None:
    """`90s` and `100,000`, not `90.0` and `{}`."""
    limits = {
        "turn_timeout": LimitLine(value=90.0, source="flag --timeout"),
        "turn_tokens": LimitLine(value=100_000, source="profile qa"),
        "tool_timeouts": LimitLine(value={"run_shell_command": 15.0}, source="profile qa"),
    }
    out = io.StringIO()

    print_limits(console(out), _report(limits=limits))

    rows = {row.split()[0]: " ".join(row.split()[1:]) for row in out.getvalue().splitlines()}
    assert rows == {
        "turn_timeout": "90s flag --timeout",
        "turn_tokens": "100,000 profile qa",
        "tool_timeouts": "run_shell_command 15s profile qa",
    }


@pytest.mark.parametrize(("used", "limit", "full"), [(0, 10, 0), (5, 10, 6), (10, 10, 12), (50, 10, 12), (3, None, 0)])
def test_a_bar_shows_the_share(used: float, limit: float | None, full: int) -> None:
    """Never longer than its frame, and none where nothing limits."""
    assert bar(used, limit).plain.count("█") == full


def test_nothing_that_a_terminal_obeys_gets_through() -> None:
    """A model, a provider or a tool's name could set the title, clear the screen or write the clipboard."""
    evil = "\x1b]0;title\x07\x1b[2J\x9b1Jhello\r\nworld\tend\x7f"

    assert printable(evil) == "]0;title[2J1Jhello\nworld\tend"

    out = _Terminal()
    print_panel(
        console(out), _report(outcome=Outcome.MODEL_ERROR, answer=None, detail=evil, warnings=(evil,), exit_code=4)
    )
    assert "\x1b]" not in out.getvalue()
    assert "\x1b[2J" not in out.getvalue()
