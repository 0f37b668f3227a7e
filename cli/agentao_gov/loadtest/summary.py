"""Turns a load-test report into the shapes that the writers know: a gate, and a page with charts. Pure.

Every format is made from the same `LoadTestReport`, so that JSON, JUnit, Markdown and HTML tell the same numbers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from agentao_gov.loadtest.document import Group, LoadTestReport, Percentiles, ThresholdPart
from agentao_gov.report.charts import Chart, Line, Mark
from agentao_gov.report.gate import CaseStatus, GateCase, GateReport, GateTable
from agentao_gov.report.html import Page, Section

__all__ = ["gate_report", "page", "show_value", "threshold_case"]

_MIB = 1024**2


def show_value(value: float | None, unit: str) -> str:
    """A measure as people read it."""
    if value is None:
        return "nothing"
    if math.isinf(value):
        return "never"
    if unit == "ms":
        return f"{value / 1000:.2f} s" if value >= 1000 else f"{value:.1f} ms"
    if unit == "ratio":
        return f"{value:.2%}"
    if unit == "factor":
        return f"{value:.2f} times"
    if unit == "per_s":
        return f"{value:.2f}/s"
    if unit in ("bytes", "bytes_per_turn"):
        size = f"{value / _MIB:.1f} MiB" if abs(value) >= _MIB else f"{value / 1024:.1f} KiB"
        return f"{size} per turn" if unit == "bytes_per_turn" else size
    return f"{value:g}"


def gate_report(report: LoadTestReport) -> GateReport:
    """The report as cases: thresholds, the generator's honesty, the books, what else was asked for."""
    cases = [threshold_case(part) for part in report.thresholds]
    cases += [_books_case(report), _generator_case(report)]
    cases += _checklist_cases(report) + _baseline_cases(report) + _fault_cases(report)
    if report.plan["shape"] == "capacity":
        cases.append(_capacity_case(report))
    return GateReport(
        name="loadtest",
        headline=headline(report),
        conclusion=report.conclusion,
        cases=tuple(cases),
        facts=tuple(facts(report)),
        tables=tuple(tables(report)),
        notes=tuple(_notes(report)),
        duration_s=report.duration_s,
        properties={
            "attempted": str(report.turns.attempted),
            "answered": str(report.turns.answered),
            "turn_p95_ms": str(report.latency_ms["turn"].p95),
            "conclusion": report.conclusion,
            "seed": str(report.plan["seed"]),
        },
    )


def headline(report: LoadTestReport) -> str:
    """The one sentence."""
    turns = f"{report.turns.answered} of {report.turns.attempted} turns answered"
    if report.conclusion == "pass":
        return f"passed: {turns}, p95 {show_value(report.latency_ms['turn'].p95, 'ms')}"
    return f"{report.conclusion}: {'; '.join(report.reasons[:2]) or turns}"


def threshold_case(part: ThresholdPart) -> GateCase:
    """One threshold."""
    return GateCase(
        id=part.expression,
        title=part.expression,
        status=part.status,
        expected=part.expression,
        observed=show_value(part.observed, part.unit) + (f" ({part.reason})" if part.reason else ""),
        evidence=(f"{part.samples} samples",) if part.unit == "ms" else (),
    )


def _books_case(report: LoadTestReport) -> GateCase:
    turns = report.turns
    ends = turns.answered + turns.failed + turns.timed_out + turns.cancelled + turns.unfinished
    balanced = ends == turns.attempted and not report.imbalances
    return GateCase(
        id="conservation",
        title="every started turn has one end",
        status="fail" if not balanced else "inconclusive" if turns.attempted == 0 else "pass",
        expected=f"{turns.attempted} ends",
        observed=f"{turns.answered} answered, {turns.failed} failed, {turns.timed_out} timed out, "
        f"{turns.cancelled} cancelled, {turns.unfinished} unfinished",
        evidence=tuple(report.imbalances),
    )


def _generator_case(report: LoadTestReport) -> GateCase:
    generator = report.generator
    bound = generator.get("bound")
    late = generator.get("lateness_ms") or {}
    limits = generator.get("limits_ms") or {}
    return GateCase(
        id="generator",
        title="the load generator kept its own schedule",
        status="inconclusive" if bound or not late.get("count") else "pass",
        expected=", ".join(f"{name} at most {value:g} ms late" for name, value in limits.items()),
        observed=bound or f"p50 {_ms(late.get('p50'))}, p99 {_ms(late.get('p99'))} late",
    )


def _checklist_cases(report: LoadTestReport) -> list[GateCase]:
    checklist = report.checklist
    if "items" not in checklist:
        return [GateCase("checklist", "checklist", "skip", observed=str(checklist.get("reason", "not run")))]
    failed = [str(item.get("id")) for item in checklist["items"] if item.get("status") == "fail"]
    status: CaseStatus = "fail" if checklist.get("verdict") == "fail" else "pass"
    return [GateCase("checklist", "checklist", status, "all items hold", ", ".join(failed) or "all items hold")]


def _baseline_cases(report: LoadTestReport) -> list[GateCase]:
    cases = []
    for item in report.baseline.get("comparisons", ()):
        interval = f" [{item['low']:.3f}, {item['high']:.3f}]" if item["low"] is not None else ""
        observed = item["reason"] or f"{item['ratio']:.3f} times the baseline{interval}"
        expected = f"at most {1 + report.baseline['allowance']:.2f} times the baseline, or within chance"
        cases.append(
            GateCase(f"baseline.{item['name']}", f"baseline {item['name']}", item["status"], expected, observed)
        )
    return cases


def _fault_cases(report: LoadTestReport) -> list[GateCase]:
    cases = []
    for number, fault in enumerate(report.faults, 1):
        recovered = fault["recovery_s"] is not None
        left = {name: count for name, count in fault["left_behind"].items() if count}
        status: CaseStatus = "skip" if not fault["played"] else "pass" if recovered and not left else "warn"
        cases.append(
            GateCase(
                id=f"fault.{number}",
                title=f"fault {number}: {fault['kind']} at {fault['at_s']:g} s",
                status=status,
                expected="turns are answered again afterwards, nothing is left behind",
                observed=f"answered again after {fault['recovery_s']:.2f} s" if recovered else "not answered again",
                evidence=(str(fault["done"]), f"outcomes {fault['outcomes']}", f"left behind {left or 'nothing'}"),
            )
        )
    return cases


def _capacity_case(report: LoadTestReport) -> GateCase:
    capacity = report.capacity
    outcome = capacity.knee.get("outcome")
    status: CaseStatus = {"found": "pass", "unlimited": "pass", "unattainable": "fail"}.get(  # type: ignore[assignment]
        str(outcome), "inconclusive"
    )
    return GateCase(
        id="capacity",
        title="capacity",
        status=status,
        expected="a largest load within the objectives",
        observed=f"{capacity.sessions} sessions, {capacity.turns_per_s} turns/s; bound by {capacity.bottleneck}",
        evidence=(str(capacity.knee.get("evidence", "")),),
    )


def facts(report: LoadTestReport) -> list[tuple[str, str]]:
    """A dozen lines that say what this was."""
    plan, turns = report.plan, report.turns
    load = f"{plan['rate']:g} turns/s, {plan['arrivals']}" if plan["loop"] == "open" else f"{plan['users']} sessions"
    rows = [
        ("load", f"{plan['shape']}, {load}, {plan['duration_s']:g} s, seed {plan['seed']}"),
        ("turns", f"{turns.attempted} attempted, {turns.answered} answered, {show_value(turns.rate_per_s, 'per_s')}"),
        ("goodput", show_value(turns.goodput_per_s, "per_s")),
        ("tokens", f"{report.tokens['total']:,} ({report.tokens['llm_calls']:,} calls)"),
    ]
    if report.tokens["cost"] is not None:
        rows.append(("cost", f"{report.tokens['cost']:.4f}"))
    if report.capacity.knee.get("interval"):
        low, high = report.capacity.knee["interval"]
        rows.append(("capacity", f"{report.capacity.sessions} busy sessions, {report.capacity.turns_per_s} turns/s"))
        rows.append(("interval", f"holds at {low}, not at {high}" if high else f"holds at {low}, no limit met"))
        rows.append(("bound by", f"{report.capacity.bottleneck}: {report.capacity.knee.get('evidence')}"))
    if report.isolation:
        rows.append(
            ("isolation", f"{report.isolation['victim']}: p95 times {report.isolation['ratio_p95']} beside the load")
        )
    peak = report.server.peaks.get("memory_bytes")
    if peak:
        rows.append(("memory peak", show_value(float(peak), "bytes")))
    return rows


def tables(report: LoadTestReport) -> list[GateTable]:
    """Latency, profiles, tenants, outcomes, and probes where there were any."""
    out = [
        GateTable(
            "Latency",
            ("", "p50", "p90", "p95", "p99", "max", "samples"),
            tuple(_latency_row(_LATENCY_NAMES.get(name, name), p) for name, p in report.latency_ms.items() if p.count),
        ),
        _group_table("Profiles", report.by_profile),
        _group_table("Tenants", report.by_tenant),
        GateTable(
            "Outcomes", ("outcome", "turns"), tuple((name, str(n)) for name, n in report.turns.by_outcome.items())
        ),
    ]
    if report.capacity.probes:
        columns = ("busy sessions", "turns/s", "mean", "answered", "missed")
        out.append(GateTable("Probes", columns, tuple(_probe_row(probe) for probe in report.capacity.probes)))
    return [table for table in out if table.rows]


_LATENCY_NAMES = {
    "turn": "turn, from its intended start",
    "service": "turn, from the send",
    "first_token": "first token, from the send",
    "queue": "waiting for a place",
    "gap": "between texts (mean of a turn)",
    "session": "session",
}


def _latency_row(name: str, p: Percentiles) -> tuple[str, ...]:
    return (name, *(_ms(value) for value in (p.p50, p.p90, p.p95, p.p99, p.max)), str(p.count))


def _group_table(title: str, groups: Mapping[str, Group]) -> GateTable:
    columns = (title.lower()[:-1], "attempted", "answered", "failed", "timed out", "cancelled", "unfinished", "p95")
    rows = []
    for name, group in groups.items():
        t = group.turns
        counts = (t.attempted, t.answered, t.failed, t.timed_out, t.cancelled, t.unfinished)
        rows.append((name, *map(str, counts), _ms(group.latency_ms["turn"].p95)))
    return GateTable(title, columns, tuple(rows))


def _probe_row(probe: Mapping[str, Any]) -> tuple[str, ...]:
    mean = "-" if probe["mean_s"] is None else f"{probe['mean_s'] * 1000:.0f} ms"
    missed = ", ".join(probe["missed"]) or "-"
    return (str(probe["load"]), f"{probe['turns_per_s']:.2f}", mean, f"{probe['good']} of {probe['total']}", missed)


def _notes(report: LoadTestReport) -> list[str]:
    notes = list(report.reasons)
    if report.partial:
        notes.append("This report is partial: the run was ended before its time.")
    notes += [f"Differs from your configuration: {text}." for text in report.plan["differences"]]
    notes += [
        f"The load was ended by its upper bound of {report.plan[f'max_{kind}']:,} {kind}."
        for kind in report.generator.get("upper_bounds_reached", ())
    ]
    return notes


def _ms(value: float | None) -> str:
    return "-" if value is None else show_value(float(value), "ms")


# -- the page ------------------------------------------------------------------------------------------------------


def page(report: LoadTestReport) -> Page:
    """The HTML page: the gate and the charts, each with its table."""
    charts = [_latency_chart(report), _percentile_chart(report), _load_chart(report), *_server_charts(report)]
    return Page(
        title="agentao-gov load test",
        gate=gate_report(report),
        started_at=report.started_at,
        sections=tuple(Section(chart) for chart in charts if chart is not None),
    )


def _marks(report: LoadTestReport) -> tuple[Mark, ...]:
    return tuple(Mark(fault["at_s"], fault["at_s"] + fault["for_s"], str(fault["kind"])) for fault in report.faults)


def _latency_chart(report: LoadTestReport) -> Chart | None:
    rows = [row for row in report.timeline if row["p50_ms"] is not None]
    if not rows:
        return None
    lines = (
        Line("p50", _column(rows, "p50_ms")),
        Line("p95", _column(rows, "p95_ms")),
        Line("slowest", _column(rows, "max_ms")),
    )
    return Chart("Latency over time", "seconds since the load began", "ms", lines, marks=_marks(report))


def _percentile_chart(report: LoadTestReport) -> Chart | None:
    lines = []
    for name in ("turn", "service", "first_token"):
        p = report.latency_ms[name]
        points = [
            (q, v) for q, v in ((50, p.p50), (90, p.p90), (95, p.p95), (99, p.p99), (100, p.max)) if v is not None
        ]
        if points:
            lines.append(Line(_LATENCY_NAMES[name], tuple((float(q), float(v)) for q, v in points)))
    return Chart("Latency by percentile", "percentile", "ms", tuple(lines)) if lines else None


def _load_chart(report: LoadTestReport) -> Chart | None:
    probes = sorted(report.capacity.probes, key=lambda probe: int(probe["load"]))
    if probes:
        points = tuple((float(probe["load"]), float(probe["turns_per_s"])) for probe in probes)
        knee = report.capacity.sessions
        marks = (Mark(float(knee), float(knee), f"knee: {knee}"),) if knee else ()
        return Chart("Load against goodput", "busy sessions", "turns/s", (Line("answered", points),), marks=marks)
    if not report.timeline:
        return None
    lines = (
        Line("started", _column(report.timeline, "started_per_s")),
        Line("answered", _column(report.timeline, "answered_per_s")),
    )
    return Chart("Load and answers", "seconds since the load began", "turns/s", lines, marks=_marks(report))


def _server_charts(report: LoadTestReport) -> list[Chart | None]:
    rows = report.server.samples
    x = "seconds since the load began"
    memory = (
        _server_line(rows, "process tree", "memory_bytes", _MIB),
        _server_line(rows, "service", "rss_bytes", _MIB),
    )
    counts = (
        _server_line(rows, "descriptors", "fds", 1),
        _server_line(rows, "threads", "threads", 1),
        _server_line(rows, "children", "children", 1),
    )
    sessions = [
        Line(state, tuple((float(r["at_s"]), float(r["sessions"].get(state, 0))) for r in rows if r["sessions"]))
        for state in ("busy", "idle", "hibernated")
    ]
    sessions.append(_server_line(rows, "queue", "queue", 1))
    cpu = (_server_line(rows, "service", "cpu", 1), _server_line(rows, "process tree", "tree_cpu", 1))
    marks = _marks(report)
    return [
        _if_any("Memory under load", x, "MiB", memory, marks),
        _if_any("Processes, threads and descriptors", x, "count", counts, marks),
        _if_any("Sessions", x, "sessions", tuple(sessions), marks),
        _if_any("CPU", x, "cores", cpu, marks),
    ]


def _if_any(title: str, x: str, y: str, lines: tuple[Line, ...], marks: tuple[Mark, ...]) -> Chart | None:
    kept = tuple(line for line in lines if line.points)
    return Chart(title, x, y, kept, marks=marks) if kept else None


def _server_line(rows: list[dict[str, Any]], name: str, key: str, divisor: float) -> Line:
    return Line(name, tuple((float(r["at_s"]), float(r[key]) / divisor) for r in rows if r.get(key) is not None))


def _column(rows: list[dict[str, Any]], key: str) -> tuple[tuple[float, float], ...]:
    return tuple((float(row["at_s"]), float(row[key])) for row in rows if row[key] is not None)
