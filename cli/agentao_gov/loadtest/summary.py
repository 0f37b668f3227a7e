"""Turns a load-test report into a gate: its cases, and what stands below them. Pure.

Every format is made from the same `LoadTestReport`, so that JSON, JUnit, Markdown and HTML tell the same numbers.
"""

from __future__ import annotations

from agentao_gov.loadtest.document import LoadTestReport, ThresholdPart
from agentao_gov.loadtest.summary_tables import counted, facts, show_ms, show_value, tables
from agentao_gov.report.gate import CaseStatus, GateCase, GateReport

__all__ = ["gate_report", "headline", "threshold_case"]


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
    found = report.capacity
    if report.conclusion == "pass" and found.bottleneck is not None:
        return f"passed: {found.sessions} busy sessions hold, {found.turns_per_s} turns/s, bound by {found.bottleneck}"
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
        observed=bound or f"p50 {show_ms(late.get('p50'))}, p99 {show_ms(late.get('p99'))} late",
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
