"""What a person reads after a turn: what was used of each limit, and why the turn ended."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.markdown import Markdown
from rich.spinner import Spinner
from rich.text import Text

from agentao_gov.config.units import format_duration
from agentao_gov.endings import Outcome
from agentao_gov.governor.report import BudgetLine, TurnReport
from agentao_gov.governor.types import IterationEvent, TextEvent, ToolEvent, TurnEvent
from agentao_gov.report.terminal import STYLES, bar, printable

if TYPE_CHECKING:
    from agentao_gov.config import Limits

#: From this share on a daily budget is shown in a brief panel, too.
_HIGH = 0.8
#: Limits that are seconds in a report.
_DURATIONS = {"cancel_grace", "tool_timeout", "turn_timeout"}
_REFRESH_PER_S = 8
#: Lines of text shown while it grows; the whole answer is printed at the end.
_TAIL_LINES_MIN = 5


def tokens(count: int | None) -> str:
    """A number of tokens with thousands separated; `unlimited` for None."""
    return "unlimited" if count is None else f"{count:,}"


def print_panel(out: Console, report: TurnReport, *, brief: bool = False, told: Collection[str] = ()) -> None:
    """The compact panel: the ending, then one line per limit, then what is worth a warning.

    `brief` leaves out what is the same in each turn of a conversation, and daily budgets that have room. `told` are
    warnings that were shown before.
    """
    good = report.outcome is Outcome.ANSWERED
    mark = ("✓ " if good else "✗ ", STYLES["ok"] if good else STYLES["bad"])
    where = "" if brief else f"  {report.profile} · {report.model} · {report.mode} · session {report.session}"
    out.print(Text.assemble(mark, (report.outcome.ending.words, STYLES["strong"]), where))
    if report.detail:
        out.print(Text(f"  {printable(report.detail)}"))
    for name, used, limit, shown in (*_turn_rows(report), *_budget_rows(report, least=_HIGH if brief else 0.0)):
        out.print(Text.assemble(f"  {name:<12}", bar(used, limit), f"  {shown}"))
    for warning in report.warnings:
        if warning not in told:
            out.print(Text.assemble(("  warning: ", STYLES["warn"]), printable(warning)))


_Row = tuple[str, float, float | None, str]


def _turn_rows(report: TurnReport) -> Iterable[_Row]:
    limits = {name: line.value for name, line in report.limits.items()}
    total_s = report.timing_ms.total / 1000
    timeout_s = limits.get("turn_timeout")
    if timeout_s:
        first = report.timing_ms.first_token
        heard = f", first token after {first / 1000:.1f} s" if first is not None else ""
        yield "time", total_s, timeout_s, f"{total_s:.1f} of {timeout_s:g} s{heard}"
    cap = limits.get("max_iterations")
    if cap:
        calls = _count(report.usage.llm_calls, "model call")
        yield "iterations", report.iterations, cap, f"{report.iterations} of {cap}, {calls}"
    usage = report.usage
    spent = f"prompt {usage.prompt_tokens:,} + completion {usage.completion_tokens:,}"
    if usage.estimated_tokens:
        spent += f", {usage.estimated_tokens:,} of it estimated"
    turn_cap = limits.get("turn_tokens")
    if turn_cap:
        yield "tokens", usage.total_tokens, turn_cap, f"{usage.total_tokens:,} of {turn_cap:,} ({spent})"
    if report.tool_calls:
        yield "tools", 0, None, _tools(report)


def _budget_rows(report: TurnReport, *, least: float) -> Iterable[_Row]:
    for line in report.budget:
        if line.limit is not None and line.scope != "turn" and line.used >= least * line.limit:
            yield line.scope, line.used, line.limit, _budget(line)


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'s' * (number != 1)}"


def _tools(report: TurnReport) -> str:
    bad = [call for call in report.tool_calls if call.outcome != "ok"]
    names = ", ".join(f"{printable(call.name)} {call.outcome}" for call in bad[:3])
    more = f", {len(bad) - 3} more" if len(bad) > 3 else ""
    took = f"{_count(len(report.tool_calls), 'call')}, {report.timing_ms.tools / 1000:.1f} s"
    return f"{took} ({names}{more})" if bad else took


def _budget(line: BudgetLine) -> str:
    held = f", {line.reserved:,} reserved" if line.reserved else ""
    when = "in this turn" if line.scope == "turn" else f"on {line.window} ({line.timezone})"
    return f"{line.used:,} of {tokens(line.limit)} {when}{held}"


def print_limits(out: Console, report: TurnReport) -> None:
    """Every limit with its value and where it came from."""
    for name, line in sorted(report.limits.items()):
        value = _limit(name, line.value)
        out.print(
            Text.assemble(f"  {name:<20}", (f"{value:<12}", STYLES["strong"]), (f" {line.source}", STYLES["dim"]))
        )


def _limit(name: str, value: Any) -> str:
    """A limit as people write it."""
    if isinstance(value, Mapping):
        return ", ".join(f"{tool} {format_duration(seconds)}" for tool, seconds in value.items()) or "none"
    if name in _DURATIONS:
        return format_duration(value)
    return f"{value:,}" if isinstance(value, int) else str(value)


def print_budget(out: Console, lines: Iterable[BudgetLine]) -> None:
    """Prints every scope's balance to `out`, as bars."""
    for line in lines:
        out.print(Text.assemble(f"  {line.scope:<8}", bar(line.used, line.limit), f"  {_budget(line)}"))


class LiveTurn:
    """Shows a turn on a terminal while it runs: the text as it arrives, and one status line against the limits.

    `on_event` is called on the turn's thread, the rest on the caller's.
    """

    def __init__(
        self, console: Console, limits: Limits, *, show_text: bool, note: Callable[[], str] = lambda: ""
    ) -> None:
        """`note` adds a word to the status line: what an embedded model is doing."""
        self._console = console
        self._limits = limits
        self._show_text = show_text
        self._note = note
        self._lock = threading.Lock()
        #: Text of the round that is being written; under `_lock`.
        self._text = ""
        #: Under `_lock`.
        self._iteration = 0
        self._tokens = 0
        self._last_tool = ""
        self._started = time.monotonic()
        self._live = Live(
            console=console, get_renderable=self._render, refresh_per_second=_REFRESH_PER_S, transient=True
        )

    def on_event(self, event: TurnEvent) -> None:
        """Takes one event of the turn."""
        with self._lock:
            match event:
                case TextEvent(delta):
                    self._text += printable(delta)
                case IterationEvent(iteration, used):
                    # A new round: what was written before it was said on the way, not the answer.
                    self._iteration, self._tokens, self._text = iteration, used, ""
                case ToolEvent(name, outcome, duration_ms):
                    self._last_tool = f"{printable(name)} {outcome} {duration_ms / 1000:.1f} s"

    def pause(self) -> None:
        """Clears the screen for a question to the person."""
        self._live.stop()

    def resume(self) -> None:
        """Goes on after the question."""
        self._live.start()

    def _render(self) -> RenderableType:
        with self._lock:
            text, iteration, used, tool = self._text, self._iteration, self._tokens, self._last_tool
        limits = self._limits
        elapsed_s = time.monotonic() - self._started
        parts = [
            f"{elapsed_s:4.0f} of {limits.turn_timeout_s:g} s",
            f"iteration {iteration} of {limits.max_iterations}",
            f"{used:,} of {limits.turn_tokens:,} tokens",
        ]
        parts += [part for part in (tool, self._note()) if part]
        status = Spinner("dots", Text(" · ".join(parts), STYLES["dim"]))
        if not self._show_text or not text:
            return status
        room = max(_TAIL_LINES_MIN, self._console.height - 4)
        return Group(Markdown("\n".join(text.splitlines()[-room:])), status)

    def __enter__(self) -> LiveTurn:
        self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.stop()
