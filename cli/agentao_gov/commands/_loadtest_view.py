"""A load test on a terminal: its live figures, a dry run, a comparison, and the next command."""

from __future__ import annotations

import json
import sys
from typing import Any

from agentao_gov.loadtest.capacity import GENERATOR_CPU, NOT_THE_SERVICE
from agentao_gov.loadtest.document import LoadTestReport
from agentao_gov.loadtest.options import LoadOptions
from agentao_gov.loadtest.render import show_ms, show_value
from agentao_gov.loadtest.run import DryRun
from agentao_gov.loadtest.view import LiveFigures
from agentao_gov.report.gate_terminal import GateScreen
from agentao_gov.report.terminal import console, print_table

#: Of a core: a generator that uses so much is held up by itself, else by the machine.
_CPU_FULL = 0.7


class TerminalView:
    """Shows the run on standard error."""

    def __init__(self, screen: GateScreen) -> None:
        self._screen = screen

    def note(self, text: str) -> None:
        """A step."""
        self._screen.note(text)

    def live(self, look: LiveFigures) -> None:
        """The load, latencies, the service, each threshold as it stands, and the verdict so far."""
        p50, p95, first = (show_ms(value) for value in look.latency_ms)
        memory = "-" if look.memory_bytes is None else show_value(float(look.memory_bytes), "bytes")
        service = [memory, _many(look.sessions, "sessions"), _many(look.processes, "processes below it")]
        service += [] if look.cpu is None else [f"{look.cpu:.1f} cores"]
        ends = f"{look.answered} answered, {look.failed} failed, {look.refused} refused, {look.in_flight} open"
        rows = [
            ("load", f"{look.level:.1f} {look.level_unit} planned, {look.answered_per_s:.1f} turns/s answered", ""),
            ("turns", f"{look.started} started: {ends}", ""),
            ("latency", f"p50 {p50}, p95 {p95}; first token p95 {first}", ""),
            ("service", ", ".join(filter(None, service)), ""),
            ("generator", f"late by {show_ms(look.lateness_p99_ms)} at p99", "dim"),
        ]
        rows += [
            (expression, _stands(value, unit, status), _STYLES[status])
            for expression, value, unit, status in look.thresholds
        ]
        rows.append(("verdict now", *_verdict_now(look)))
        self._screen.show(f"{look.label}  {_progress(look.at_s, look.duration_s)}", rows)


_STYLES = {"pass": "ok", "fail": "bad", "inconclusive": "warn"}
_BAR = 24


def _stands(value: float | None, unit: str, status: str) -> str:
    if value is None:
        return "no turns yet"
    return show_value(value, unit) + (", too few turns to tell" if status == "inconclusive" else "")


def _verdict_now(look: LiveFigures) -> tuple[str, str]:
    standing = {status: [e for e, *_, s in look.thresholds if s == status] for status in _STYLES}
    if standing["fail"]:
        return f"fails {', '.join(standing['fail'])}", "bad"
    if standing["inconclusive"]:
        return "too early to tell", "warn"
    return "holds so far", "ok"


def _progress(at_s: float, duration_s: float) -> str:
    done = min(_BAR, int(_BAR * at_s / duration_s))
    over = "; waiting for the last turns" if at_s > duration_s else ""
    return f"{'█' * done}{'░' * (_BAR - done)}  {min(at_s, duration_s):.0f} of {duration_s:.0f} s{over}"


def _many(count: int | None, what: str) -> str:
    return "" if count is None else f"{count} {what}"


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


def next_command(report: LoadTestReport, options: LoadOptions) -> str:
    """The command that makes most sense now."""
    if report.conclusion == "pass" and options.shape != "capacity":
        return "agentao-gov loadtest --shape capacity"
    if report.conclusion == "pass":
        return "agentao-gov loadtest --shape capacity --write" if not options.write else "agentao-gov plan"
    if report.checklist.get("verdict") == "fail":
        return "agentao-gov checklist"
    bottleneck = report.capacity.bottleneck
    if report.conclusion == "inconclusive" and (report.generator.get("bound") or bottleneck in NOT_THE_SERVICE):
        if (report.generator.get("cpu_max") or 0) > _CPU_FULL or bottleneck == GENERATOR_CPU:
            return f"agentao-gov loadtest --workers {2 * options.workers} …"
        return "the same again when this machine has less to do, or with --master from another one"
    if report.conclusion == "inconclusive" and options.replay is not None:
        return "agentao-gov loadtest --replay FILE (a longer recording: percentiles need samples)"
    if report.conclusion == "inconclusive":
        return "agentao-gov loadtest --duration … (longer: percentiles need samples)"
    return (
        f"open {options.report_dir / 'report.html'}"
        if options.report_dir
        else "agentao-gov loadtest --report DIR … for the whole story"
    )
