"""A gate on a terminal: figures in place while it runs, one screen at the end; plain lines where nobody looks."""

from __future__ import annotations

import io

import pytest

from agentao_gov.commands._loadtest_view import TerminalView
from agentao_gov.loadtest.view import LiveFigures
from agentao_gov.report.gate import GateCase, GateReport
from agentao_gov.report.gate_terminal import GateScreen, print_gate

NASTY = "acme [bold]\x1b[31m\nforged"


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def look(status: str = "pass", **changes: object) -> LiveFigures:
    values: dict[str, object] = {
        "label": "load", "at_s": 15.0, "duration_s": 60.0, "started": 90, "answered": 80, "failed": 3, "refused": 2,
        "in_flight": 5, "level": 6.0, "level_unit": "turns/s", "answered_per_s": 5.5,
        "latency_ms": (812.0, 2310.0, 420.0), "thresholds": (("turn_p95<2s", 2310.0, "ms", status),),
        "memory_bytes": 132 * 2**20, "processes": 7, "cpu": 0.6, "sessions": 31, "lateness_p99_ms": 1.5,
    }  # fmt: skip
    return LiveFigures(**{**values, **changes})  # type: ignore[arg-type]


def shown(live: LiveFigures, stream: io.StringIO) -> str:
    screen = GateScreen(stream)
    TerminalView(screen).live(live)
    screen.close()
    return stream.getvalue()


@pytest.mark.parametrize("stream", [_Terminal(), io.StringIO()])
def test_the_live_screen_has_load_percentiles_service_and_verdict(stream: io.StringIO) -> None:
    """The same figures on a terminal and in a log."""
    text = shown(look("fail"), stream)

    for part in ("6.0 turns/s", "p95 2.31 s", "132.0 MiB", "31 sessions", "turn_p95<2s", "fails turn_p95<2s"):
        assert part in text
    assert "15 of 60 s" in text


@pytest.mark.parametrize(
    ("status", "said"), [("pass", "holds so far"), ("fail", "fails turn_p95<2s"), ("inconclusive", "too few turns")]
)
def test_the_verdict_so_far_is_no_pass_without_turns(status: str, said: str) -> None:
    """What cannot be told yet is not called holding."""
    assert said in shown(look(status), io.StringIO())


def test_nothing_was_seen_yet() -> None:
    """The first look has dashes, not errors."""
    empty = look(latency_ms=(None, None, None), memory_bytes=None, processes=None, cpu=None, sessions=None,
                 lateness_p99_ms=None, thresholds=())  # fmt: skip

    assert "p50 -" in shown(empty, io.StringIO())


def test_a_log_has_no_escape_codes_and_no_flood() -> None:
    """One line every few seconds."""
    stream = io.StringIO()
    screen = GateScreen(stream)
    for _ in range(50):
        TerminalView(screen).live(look())
    screen.close()

    assert "\x1b" not in stream.getvalue()
    assert len(stream.getvalue().splitlines()) == 1


@pytest.mark.parametrize("stream", [_Terminal(), io.StringIO()])
def test_the_end_screen_closes_with_the_verdict_and_the_next_command(stream: io.StringIO) -> None:
    """They stand at the bottom, where the eye is; what someone wrote stays text."""
    cases = (GateCase("a", NASTY, "fail", "5", "7"), GateCase("b", "turn_p95<2s", "pass", "turn_p95<2s", "1 s"))
    report = GateReport("loadtest", f"fail: {NASTY}", "fail", cases, facts=(("load", NASTY),), notes=("a note",))

    print_gate(report, stream, next_command="agentao-gov loadtest")

    text = stream.getvalue()
    assert "FAIL" in text.splitlines()[-2]
    assert "fail:" not in text.splitlines()[-2], "the verdict is said once"
    assert text.splitlines()[-1].endswith("agentao-gov loadtest")
    assert "7; expected 5" in text
    assert "[bold]" in text
    assert "\x1b[31m" not in text
    assert "\nforged" not in text
