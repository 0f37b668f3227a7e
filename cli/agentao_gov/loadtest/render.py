"""A load-test report in every format, all made from the same `LoadTestReport` so that they tell the same numbers.

A gate of cases with facts and tables below it makes JUnit, Markdown, annotations and the terminal; the HTML page has
tiles and charts around the same gate.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from agentao_gov.errors import StoreError
from agentao_gov.loadtest.document import GroupPart, LoadTestReport, Percentiles, ThresholdPart
from agentao_gov.report.gate import CaseStatus, GateCase, GateReport, GateTable
from agentao_gov.report.gate_formats import github_annotations, junit_xml, markdown
from agentao_gov.report.html import Chart, ChartLine, ChartMark, Page, Section, Tile, html_page

LATENCY_NAMES = {
    "turn": "turn, from its intended start",
    "service": "turn, from the send",
    "first_token": "first token, from the send",
    "queue": "waiting for a place",
    "gap": "between texts (mean of a turn)",
    "session": "session",
}
_MIB = 1024**2
_PERCENTILES = ("p50", "p90", "p95", "p99", "max")
_SINCE = "seconds since the load began"


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
        steps = ((1024**3, "GiB"), (_MIB, "MiB"), (1024, "KiB"))
        step, name = next((pair for pair in steps if abs(value) >= pair[0]), steps[-1])
        size = f"{value / step:.1f} {name}"
        return f"{size} per turn" if unit == "bytes_per_turn" else size
    return f"{value:g}"


def show_ms(value: float | None) -> str:
    """Milliseconds as people read them; a dash for none."""
    return "-" if value is None else show_value(float(value), "ms")


def counted(counts: Mapping[str, Any]) -> str:
    """Counts by name, the largest first."""
    return ", ".join(f"{n} {name}" for name, n in sorted(counts.items(), key=lambda item: -item[1])) or "none"


def _load(plan: Mapping[str, Any]) -> str:
    if plan["replay"]:
        return f"{plan['replay']['turns']} recorded turns at speed {plan['replay']['speed']:g}"
    if plan["shape"] == "capacity":
        return f"capacity, up to {plan['users']} busy sessions" if plan["users"] else "capacity"
    if plan["loop"] == "open":
        return f"{plan['shape']}, {plan['rate']:g} turns/s, {plan['arrivals']}"
    return f"{plan['shape']}, {plan['users']} sessions"


def facts(report: LoadTestReport) -> list[tuple[str, str]]:
    """A dozen lines that say what this was."""
    plan, turns = report.plan, report.turns
    pace = plan["model_pace_s"]
    model = f"simulated, first token after {pace['first_token']:g} s, then {pace['per_token']:g} s a token"
    rows = [
        ("target", "the configuration, started for this run" if plan["target"] == "own" else str(plan["target"])),
        ("model", model if plan["simulated"] else "the service's own"),
        ("load", f"{_load(plan)}, {plan['duration_s']:g} s, seed {plan['seed']}"),
        ("mix", ", ".join(f"{name} {weight:g}" for name, weight in plan["mix"].items())),
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
    slope = report.server.leaks.get("memory_bytes_per_turn")
    if slope is not None:
        low, high = (show_value(slope[end], "bytes") for end in ("low", "high"))
        rows.append(
            ("memory growth", f"{show_value(slope['slope'], 'bytes_per_turn')} once warm (95 %: {low} to {high})")
        )
    seen = report.environment
    rows.append(("versions", ", ".join(f"{name} {number}" for name, number in seen["versions"].items())))
    rows.append(("machine", f"{seen['cpus']} CPUs, {seen['system']} {seen['machine']}, Python {seen['python']}"))
    return rows


def tables(report: LoadTestReport) -> list[GateTable]:
    """Latency, profiles, tenants and outcomes; what else was asked for, where there is any."""
    out = [
        GateTable(
            "Latency",
            ("", "p50", "p90", "p95", "p99", "max", "samples"),
            tuple(_latency_row(LATENCY_NAMES.get(name, name), p) for name, p in report.latency_ms.items() if p.count),
        ),
        _baseline_table(report),
        _isolation_table(report),
        _fault_table(report),
        _group_table("Profiles", report.by_profile),
        _group_table("Tenants", report.by_tenant),
        GateTable(
            "Outcomes", ("outcome", "turns"), tuple((name, str(n)) for name, n in report.turns.by_outcome.items())
        ),
        GateTable(
            "Probes",
            ("busy sessions", "turns/s", "mean", "answered", "missed"),
            tuple(_probe_row(probe) for probe in report.capacity.probes),
        ),
        _leaks_table(report),
    ]
    return [table for table in out if table.rows]


def _baseline_table(report: LoadTestReport) -> GateTable:
    rows = []
    for item in report.baseline.get("comparisons", ()):
        show = show_ms if item["name"] != "unanswered" else lambda value: show_value(value, "ratio")
        ratio = "-" if item["ratio"] is None else f"{item['ratio']:.3f}"
        interval = "-" if item["low"] is None else f"{item['low']:.3f} to {item['high']:.3f}"
        rows.append((item["name"], show(item["baseline"]), show(item["current"]), ratio, interval, item["status"]))
    columns = ("measure", "then", "now", "ratio", "95 % interval (bootstrap)", "result")
    return GateTable("Against the baseline", columns, tuple(rows))


def _isolation_table(report: LoadTestReport) -> GateTable:
    rows = []
    for name, key in (("alone", "alone"), ("beside the load", "beside_load")):
        if part := report.isolation.get(key):
            p, turns = part["turn_ms"], part["turns"]
            counts = f"{turns['answered']} of {turns['attempted']}"
            rows.append((name, *(show_ms(p[q]) for q in ("p50", "p95", "max")), counts))
    victim = report.isolation.get("victim", "")
    return GateTable(f"Isolation of {victim}", (victim, "p50", "p95", "max", "answered"), tuple(rows))


def _fault_table(report: LoadTestReport) -> GateTable:
    rows = []
    for number, fault in enumerate(report.faults, 1):
        recovery = "-" if fault["recovery_s"] is None else f"{fault['recovery_s']:.2f} s"
        left = {name: count for name, count in fault["left_behind"].items() if count}
        ends = counted(fault["outcomes"]) if fault["played"] else str(fault["done"])
        rows.append((f"{number} {fault['kind']}", f"{fault['at_s']:g} s", ends, recovery, counted(left)))
    columns = ("fault", "at", "ends of the turns that met it", "answered again after", "left behind")
    return GateTable("Faults", columns, tuple(rows))


def _leaks_table(report: LoadTestReport) -> GateTable:
    """The quiet level of each count at every rest: before the load, between waves, after it."""
    rows = []
    for name, title in (("fds", "descriptors"), ("children", "processes"), ("threads", "threads")):
        part = report.server.leaks.get(name)
        if part and part["floors"]:
            leaked = "-" if part["leaked"] is None else str(part["leaked"])
            if not part["leaked"] and part["floors"][-1] > part["floors"][0]:
                leaked += f", as up to {part['kept']} are opened once and kept"
            rows.append((title, " → ".join(map(str, part["floors"])), leaked))
    return GateTable("From rest to rest", ("", "at each rest", "leaked"), tuple(rows))


def _latency_row(name: str, p: Percentiles) -> tuple[str, ...]:
    return (name, *(show_ms(value) for value in (p.p50, p.p90, p.p95, p.p99, p.max)), str(p.count))


def _group_table(title: str, groups: Mapping[str, GroupPart]) -> GateTable:
    columns = (title.lower()[:-1], "attempted", "answered", "failed", "timed out", "cancelled", "unfinished", "p95")
    rows = []
    for name, group in groups.items():
        t = group.turns
        counts = (t.attempted, t.answered, t.failed, t.timed_out, t.cancelled, t.unfinished)
        rows.append((name, *map(str, counts), show_ms(group.latency_ms["turn"].p95)))
    return GateTable(title, columns, tuple(rows))


def _probe_row(probe: Mapping[str, Any]) -> tuple[str, ...]:
    mean = "-" if probe["mean_s"] is None else f"{probe['mean_s'] * 1000:.0f} ms"
    missed = ", ".join(probe["missed"]) or "-"
    return (str(probe["load"]), f"{probe['turns_per_s']:.2f}", mean, f"{probe['good']} of {probe['total']}", missed)


def gate_report(report: LoadTestReport) -> GateReport:
    """The report as cases: thresholds, the generator's honesty, the books, what else was asked for."""
    cases = [_threshold_case(part) for part in report.thresholds]
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
    found = report.capacity
    if report.conclusion == "pass" and found.bottleneck is not None:
        return f"passed: {found.sessions} busy sessions hold, {found.turns_per_s} turns/s, bound by {found.bottleneck}"
    if report.conclusion == "pass":
        return f"passed: {turns}, p95 {show_value(report.latency_ms['turn'].p95, 'ms')}"
    return f"{report.conclusion}: {'; '.join(report.reasons[:2]) or turns}"


def _threshold_case(part: ThresholdPart) -> GateCase:
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
    seen = ", ".join(f"{name} {show_ms(late.get(name))} (at most {show_ms(limit)})" for name, limit in limits.items())
    if chance := generator.get("by_chance"):
        seen += f"; {' and '.join(chance)} within chance, with {late.get('count')} turns"
    return GateCase(
        id="generator",
        title="the load generator kept its own schedule",
        status="inconclusive" if bound or not late.get("count") else "pass",
        expected=", ".join(f"{name} at most {value:g} ms late" for name, value in limits.items()),
        observed=bound or f"turns started late by {seen}",
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
                expected="answered again, nothing left behind",
                observed=f"answered again after {fault['recovery_s']:.2f} s" if recovered else "not answered again",
                evidence=(
                    str(fault["done"]),
                    f"its turns: {counted(fault['outcomes'])}",
                    f"left behind: {counted(left)}",
                ),
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


def page(report: LoadTestReport) -> Page:
    """The page: the gate, tiles and charts."""
    charts = [*_load_charts(report), _latency_chart(report), _percentile_chart(report), *_server_charts(report)]
    return Page(
        title="agentao-gov load test",
        gate=gate_report(report),
        started_at=report.started_at,
        tiles=tuple(_tiles(report)),
        sections=tuple(Section(chart) for chart in charts if chart is not None),
    )


def _tiles(report: LoadTestReport) -> list[Tile]:
    """What a reader looks for first."""
    turns, turn = report.turns, report.latency_ms["turn"]
    tiles = []
    if report.capacity.bottleneck is not None:
        tiles.append(Tile("capacity", f"{report.capacity.sessions} sessions", f"bound by {report.capacity.bottleneck}"))
    share = turns.answered / turns.attempted if turns.attempted else None
    tiles += [
        Tile("answered", show_value(share, "ratio"), f"{turns.answered:,} of {turns.attempted:,} turns"),
        Tile("throughput", show_value(turns.rate_per_s, "per_s"), f"{show_value(turns.goodput_per_s, 'per_s')} good"),
        Tile("turn p95", show_ms(turn.p95), f"p50 {show_ms(turn.p50)}, p99 {show_ms(turn.p99)}"),
    ]
    if (first := report.latency_ms["first_token"]).count:
        tiles.append(Tile("first token p95", show_ms(first.p95), f"p50 {show_ms(first.p50)}"))
    if peak := report.server.peaks.get("memory_bytes"):
        tiles.append(Tile("memory peak", show_value(float(peak), "bytes"), "all processes of the service"))
    return tiles


def _marks(report: LoadTestReport) -> tuple[ChartMark, ...]:
    return tuple(
        ChartMark(fault["at_s"], fault["at_s"] + fault["for_s"], str(fault["kind"]))
        for fault in report.faults
        if fault["played"]
    )


def _latency_chart(report: LoadTestReport) -> Chart | None:
    rows = [row for row in report.timeline if row["p50_ms"] is not None]
    if not rows:
        return None
    lines = (
        ChartLine("p50", _column(rows, "p50_ms")),
        ChartLine("p95", _column(rows, "p95_ms")),
        ChartLine("slowest", _column(rows, "max_ms")),
    )
    return Chart("Latency over time", _SINCE, "ms", lines, marks=_marks(report))


def _percentile_chart(report: LoadTestReport) -> Chart | None:
    lines = []
    for name in ("turn", "service", "first_token"):
        values = [getattr(report.latency_ms[name], percentile) for percentile in _PERCENTILES]
        points = tuple((float(at), float(value)) for at, value in enumerate(values) if value is not None)
        if points:
            lines.append(ChartLine(LATENCY_NAMES[name], points))
    # At equal distances: on a linear axis everything worth seeing would stand in its last tenth.
    return Chart("Latency by percentile", "percentile", "ms", tuple(lines), x_names=_PERCENTILES) if lines else None


def _load_charts(report: LoadTestReport) -> list[Chart | None]:
    probes = sorted(report.capacity.probes, key=lambda probe: int(probe["load"]))
    if probes:
        knee = report.capacity.sessions
        marks = (ChartMark(float(knee), float(knee), f"knee: {knee}"),) if knee else ()
        points = tuple((float(probe["load"]), float(probe["turns_per_s"])) for probe in probes)
        means = tuple((float(p["load"]), float(p["mean_s"]) * 1000) for p in probes if p["mean_s"] is not None)
        return [
            Chart(
                "Load against goodput", "busy sessions", "turns/s", (ChartLine("answered", points),), marks, dots=True
            ),
            Chart("Load against latency", "busy sessions", "ms", (ChartLine("mean turn", means),), marks, dots=True),
        ]
    if not report.timeline:
        return []
    lines = (
        ChartLine("started", _column(report.timeline, "started_per_s")),
        ChartLine("answered", _column(report.timeline, "answered_per_s")),
    )
    return [Chart("Load and answers", _SINCE, "turns/s", lines, marks=_marks(report))]


def _server_charts(report: LoadTestReport) -> list[Chart | None]:
    rows = report.server.samples
    x, shift = _SINCE, 0.0
    if report.capacity.probes and rows:
        # Seen over all probes, while second 0 is the beginning of the one that the figures are about.
        x, shift = "seconds since the search began", -float(rows[0]["at_s"])
    memory = (
        _server_line(rows, "process tree, shared pages once (PSS)", "memory_bytes", _MIB, shift),
        _server_line(rows, "service, resident (RSS)", "rss_bytes", _MIB, shift),
    )
    counts = (
        _server_line(rows, "descriptors", "fds", 1, shift),
        _server_line(rows, "threads", "threads", 1, shift),
        _server_line(rows, "children", "children", 1, shift),
    )
    sessions = [
        ChartLine(
            state, tuple((float(r["at_s"]) + shift, float(r["sessions"].get(state, 0))) for r in rows if r["sessions"])
        )
        for state in ("busy", "idle", "hibernated")
    ]
    sessions.append(_server_line(rows, "queue", "queue", 1, shift))
    cpu = (
        _server_line(rows, "service", "cpu", 1, shift),
        _server_line(rows, "process tree", "tree_cpu", 1, shift),
    )
    marks = _marks(report)
    return [
        _if_any("Memory under load", x, "MiB", memory, marks),
        _if_any("Processes, threads and descriptors", x, "count", counts, marks),
        _if_any("Sessions", x, "sessions", tuple(sessions), marks),
        _if_any("CPU", x, "cores", cpu, marks),
    ]


def _if_any(title: str, x: str, y: str, lines: tuple[ChartLine, ...], marks: tuple[ChartMark, ...]) -> Chart | None:
    kept = tuple(line for line in lines if line.points)
    return Chart(title, x, y, kept, marks=marks) if kept else None


def _server_line(rows: list[dict[str, Any]], name: str, key: str, divisor: float, shift: float) -> ChartLine:
    return ChartLine(
        name, tuple((float(r["at_s"]) + shift, float(r[key]) / divisor) for r in rows if r.get(key) is not None)
    )


def _column(rows: list[dict[str, Any]], key: str) -> tuple[tuple[float, float], ...]:
    return tuple((float(row["at_s"]), float(row[key])) for row in rows if row[key] is not None)


def render(report: LoadTestReport, form: str) -> str:
    """The report as `json`, `junit`, `markdown` or `github`."""
    if form == "json":
        return report.to_json() + "\n"
    gate = gate_report(report)
    return {"junit": junit_xml, "markdown": markdown, "github": github_annotations}[form](gate)


def make_place(folder: Path) -> None:
    """Makes the directory where it is missing. Raises StoreError where nothing can be written into it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise StoreError(f"The reports cannot be written to {folder}: {error.strerror}.") from None


def write_reports(report: LoadTestReport, folder: Path) -> list[Path]:
    """Writes `report.json`, `report.html`, `junit.xml` and `summary.md`. Raises StoreError where it cannot."""
    files = {
        "report.json": render(report, "json"),
        "junit.xml": render(report, "junit"),
        "summary.md": render(report, "markdown"),
        "report.html": html_page(page(report)),
    }
    make_place(folder)
    try:
        for name, text in files.items():
            (folder / name).write_text(text, encoding="utf-8")
    except OSError as error:
        raise StoreError(f"The reports cannot be written to {folder}: {error.strerror}.") from None
    return [folder / name for name in files]
