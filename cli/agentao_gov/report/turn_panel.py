"""What a person reads after a turn: what was used of each limit, and why the turn ended."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

from rich.console import Console
from rich.text import Text

from agentao_gov.config.units import format_duration
from agentao_gov.governor.report import BudgetLine, Outcome, TurnReport
from agentao_gov.report.terminal import STYLES, bar, printable

__all__ = ["ENDINGS", "print_budget", "print_limits", "print_panel", "tokens"]

#: Why a turn ended, in words. A test holds that every outcome has one.
ENDINGS = {
    Outcome.ANSWERED: "answered",
    Outcome.TURN_TIMEOUT: "stopped at its time limit",
    Outcome.MAX_ITERATIONS: "reached its iteration cap",
    Outcome.BUDGET_EXHAUSTED: "stopped: a token budget is spent",
    Outcome.BUDGET_IMPOSSIBLE: "not started: larger than a whole token budget",
    Outcome.CANCELLED: "cancelled",
    Outcome.REPEAT_GUARD: "stopped by the repeat guard",
    Outcome.MODEL_ERROR: "the model failed",
    Outcome.INCOMPLETE: "the answer is empty or cut off",
    Outcome.REFUSED: "refused: no capacity",
    Outcome.SHUTDOWN: "cancelled by the shutdown",
    Outcome.STORE_UNAVAILABLE: "not run: the ledger cannot be used",
    Outcome.STUCK: "abandoned: something in it never returned",
    Outcome.INTERNAL_ERROR: "internal error",
}
#: From this share on a daily budget is shown in a brief panel, too.
_HIGH = 0.8
#: Limits that are seconds in a report.
_DURATIONS = {"cancel_grace", "tool_timeout", "turn_timeout"}


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
    out.print(Text.assemble(mark, (ENDINGS[report.outcome], STYLES["strong"]), where))
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
    """Every scope's balance, as bars."""
    for line in lines:
        out.print(Text.assemble(f"  {line.scope:<8}", bar(line.used, line.limit), f"  {_budget(line)}"))
