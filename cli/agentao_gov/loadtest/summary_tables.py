"""What stands below a load test's cases: facts in a dozen lines, and tables. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from agentao_gov.loadtest.document import Group, LoadTestReport, Percentiles
from agentao_gov.report.gate import GateTable

__all__ = ["LATENCY_NAMES", "counted", "facts", "show_ms", "show_value", "tables"]

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
    rows = [
        ("load", f"{_load(plan)}, {plan['duration_s']:g} s, seed {plan['seed']}"),
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
        _remains_table(report),
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


def _remains_table(report: LoadTestReport) -> GateTable:
    """The quiet level of each count at every rest: before the load, between waves, after it."""
    rows = []
    for name, title in (("fds", "descriptors"), ("children", "processes"), ("threads", "threads")):
        part = report.server.leaks.get(name)
        if part and part["floors"]:
            leaked = "-" if part["leaked"] is None else str(part["leaked"])
            rows.append((title, " → ".join(map(str, part["floors"])), leaked))
    return GateTable("From rest to rest", ("", "at each rest", "leaked"), tuple(rows))


LATENCY_NAMES = {
    "turn": "turn, from its intended start",
    "service": "turn, from the send",
    "first_token": "first token, from the send",
    "queue": "waiting for a place",
    "gap": "between texts (mean of a turn)",
    "session": "session",
}


def _latency_row(name: str, p: Percentiles) -> tuple[str, ...]:
    return (name, *(show_ms(value) for value in (p.p50, p.p90, p.p95, p.p99, p.max)), str(p.count))


def _group_table(title: str, groups: Mapping[str, Group]) -> GateTable:
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
