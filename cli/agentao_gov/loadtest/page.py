"""A load test's HTML page: the figures that matter in tiles, then charts, each with its table. Pure."""

from __future__ import annotations

from typing import Any

from agentao_gov.loadtest.document import LoadTestReport
from agentao_gov.loadtest.summary import gate_report
from agentao_gov.loadtest.summary_tables import LATENCY_NAMES, show_ms, show_value
from agentao_gov.report.charts import Chart, Line, Mark
from agentao_gov.report.html import Page, Section, Tile

__all__ = ["page"]

_MIB = 1024**2
_PERCENTILES = ("p50", "p90", "p95", "p99", "max")
_SINCE = "seconds since the load began"


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


def _marks(report: LoadTestReport) -> tuple[Mark, ...]:
    return tuple(
        Mark(fault["at_s"], fault["at_s"] + fault["for_s"], str(fault["kind"]))
        for fault in report.faults
        if fault["played"]
    )


def _latency_chart(report: LoadTestReport) -> Chart | None:
    rows = [row for row in report.timeline if row["p50_ms"] is not None]
    if not rows:
        return None
    lines = (
        Line("p50", _column(rows, "p50_ms")),
        Line("p95", _column(rows, "p95_ms")),
        Line("slowest", _column(rows, "max_ms")),
    )
    return Chart("Latency over time", _SINCE, "ms", lines, marks=_marks(report))


def _percentile_chart(report: LoadTestReport) -> Chart | None:
    lines = []
    for name in ("turn", "service", "first_token"):
        values = [getattr(report.latency_ms[name], percentile) for percentile in _PERCENTILES]
        points = tuple((float(at), float(value)) for at, value in enumerate(values) if value is not None)
        if points:
            lines.append(Line(LATENCY_NAMES[name], points))
    # At equal distances: on a linear axis everything worth seeing would stand in its last tenth.
    return Chart("Latency by percentile", "percentile", "ms", tuple(lines), x_names=_PERCENTILES) if lines else None


def _load_charts(report: LoadTestReport) -> list[Chart | None]:
    probes = sorted(report.capacity.probes, key=lambda probe: int(probe["load"]))
    if probes:
        knee = report.capacity.sessions
        marks = (Mark(float(knee), float(knee), f"knee: {knee}"),) if knee else ()
        points = tuple((float(probe["load"]), float(probe["turns_per_s"])) for probe in probes)
        means = tuple((float(p["load"]), float(p["mean_s"]) * 1000) for p in probes if p["mean_s"] is not None)
        return [
            Chart("Load against goodput", "busy sessions", "turns/s", (Line("answered", points),), marks, dots=True),
            Chart("Load against latency", "busy sessions", "ms", (Line("mean turn", means),), marks, dots=True),
        ]
    if not report.timeline:
        return []
    lines = (
        Line("started", _column(report.timeline, "started_per_s")),
        Line("answered", _column(report.timeline, "answered_per_s")),
    )
    return [Chart("Load and answers", _SINCE, "turns/s", lines, marks=_marks(report))]


def _server_charts(report: LoadTestReport) -> list[Chart | None]:
    rows = report.server.samples
    x, shift = _SINCE, 0.0
    if report.capacity.probes and rows:
        # Seen over all probes, while second 0 is the beginning of the one that the figures are about.
        x, shift = "seconds since the search began", -float(rows[0]["at_s"])
    memory = (
        _server_line(rows, "process tree", "memory_bytes", _MIB, shift),
        _server_line(rows, "service", "rss_bytes", _MIB, shift),
    )
    counts = (
        _server_line(rows, "descriptors", "fds", 1, shift),
        _server_line(rows, "threads", "threads", 1, shift),
        _server_line(rows, "children", "children", 1, shift),
    )
    sessions = [
        Line(
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


def _if_any(title: str, x: str, y: str, lines: tuple[Line, ...], marks: tuple[Mark, ...]) -> Chart | None:
    kept = tuple(line for line in lines if line.points)
    return Chart(title, x, y, kept, marks=marks) if kept else None


def _server_line(rows: list[dict[str, Any]], name: str, key: str, divisor: float, shift: float) -> Line:
    return Line(
        name, tuple((float(r["at_s"]) + shift, float(r[key]) / divisor) for r in rows if r.get(key) is not None)
    )


def _column(rows: list[dict[str, Any]], key: str) -> tuple[tuple[float, float], ...]:
    return tuple((float(row["at_s"]), float(row[key])) for row in rows if row[key] is not None)
