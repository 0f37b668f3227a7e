"""A load test on a terminal: its live figures, a dry run, a comparison, and the next command."""

from __future__ import annotations

import json
import sys
from typing import Any

from agentao_gov.loadtest.document import LoadTestReport
from agentao_gov.loadtest.dry_run import DryRun
from agentao_gov.loadtest.options import Options
from agentao_gov.loadtest.view import Live
from agentao_gov.report.gate_terminal import GateScreen
from agentao_gov.report.terminal import console, print_table

__all__ = ["TerminalView", "next_command", "print_comparisons", "print_dry_run"]

#: Of a core: a generator that uses so much is held up by itself, else by the machine.
_CPU_FULL = 0.7


class TerminalView:
    """Shows the run on standard error."""

    def __init__(self, screen: GateScreen) -> None:
        self._screen = screen

    def note(self, text: str) -> None:
        """A step."""
        self._screen.note(text)

    def live(self, look: Live) -> None:
        """The figures."""
        memory = "-" if look.memory_bytes is None else f"{look.memory_bytes / 1024**2:.0f} MiB"
        late = "-" if look.lateness_p99_ms is None else f"{look.lateness_p99_ms:.1f} ms"
        rows = [
            ("load", f"{look.level:.1f} planned, {look.answered_per_s:.1f} turns/s answered", ""),
            (
                "turns",
                f"{look.started} started, {look.answered} answered, {look.failed} not, {look.in_flight} open",
                "",
            ),
            ("service", f"{memory}, {'-' if look.sessions is None else look.sessions} sessions", ""),
            ("generator late", f"p99 {late}", "dim"),
        ]
        styles = {"pass": "ok", "fail": "bad", "inconclusive": "warn"}
        rows += [(expression, observed, styles[status]) for expression, observed, status in look.thresholds]
        failing = [expression for expression, _, status in look.thresholds if status == "fail"]
        rows.append(("verdict now", f"fails {', '.join(failing)}" if failing else "holds", "bad" if failing else "ok"))
        self._screen.show(f"{look.label}  {look.at_s:.0f} of {look.duration_s:.0f} s", rows)


def print_dry_run(dry: DryRun, *, as_json: bool) -> None:
    data = dry.to_dict()
    if as_json:
        sys.stdout.write(json.dumps(data) + "\n")
        return
    rows = [(name.replace("_", " "), f"{data[name]:,}") for name in ("turns", "sessions", "llm_calls", "tokens")]
    rows.insert(0, ("duration", f"{data['duration_s']:g} s"))
    rows.append(("cost", "unknown: state --price IN,OUT" if dry.cost is None else f"{dry.cost:.4f}"))
    rows += [(f"turns of {name}", f"{count:,}") for name, count in data["turns_by_profile"].items()]
    rows += [
        (f"{part['from_s']:g}–{part['to_s']:g} s", f"{part['level_from']:g} → {part['level_to']:g}")
        for part in data["schedule"]
    ]
    rows += [("threshold", text) for text in dry.thresholds]
    rows.append(("at most", f"{dry.plan.max_turns:,} turns, {dry.plan.max_tokens:,} tokens"))
    rows += [("note", text) for text in dry.warnings]
    print_table(console(sys.stdout), ("expected", ""), rows)


def print_comparisons(comparisons: list[dict[str, Any]]) -> None:
    rows = []
    for item in comparisons:
        ratio = "-" if item["ratio"] is None else f"{item['ratio']:.3f}"
        interval = "-" if item["low"] is None else f"{item['low']:.3f} to {item['high']:.3f}"
        rows.append((item["status"], item["name"], ratio, interval, item["reason"]))
    print_table(console(sys.stdout), ("", "measure", "ratio", "95 % interval", ""), rows)


def next_command(report: LoadTestReport, options: Options) -> str:
    """The command that makes most sense now."""
    if report.conclusion == "pass" and options.shape != "capacity":
        return "agentao-gov loadtest --shape capacity"
    if report.conclusion == "pass":
        return "agentao-gov loadtest --shape capacity --write" if not options.write else "agentao-gov plan"
    if report.checklist.get("verdict") == "fail":
        return "agentao-gov checklist"
    if report.conclusion == "inconclusive" and report.generator.get("bound"):
        if (report.generator.get("cpu_max") or 0) > _CPU_FULL:
            return f"agentao-gov loadtest --workers {2 * options.workers} …"
        return "the same again when this machine has less to do, or with --master from another one"
    if report.conclusion == "inconclusive":
        return "agentao-gov loadtest --duration … (longer: percentiles need samples)"
    return "open report.html" if options.report_dir else "agentao-gov loadtest --report DIR … for the whole story"
