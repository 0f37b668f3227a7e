"""Puts the report together: from what was played to the document, its thresholds and its verdict."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from agentao_gov.loadtest.capacity_part import capacity_end, capacity_part
from agentao_gov.loadtest.conservation import imbalances
from agentao_gov.loadtest.document import LoadTestReport, ServerPart, ThresholdPart
from agentao_gov.loadtest.execution import Execution, Played
from agentao_gov.loadtest.figures import cost_of, groups_part, latency_part, rounded, tokens_part, turns_part
from agentao_gov.loadtest.findings import Findings
from agentao_gov.loadtest.measure import (
    Figures,
    GeneratorFigures,
    generator_figures,
    measure,
    relieved,
    timeline,
)
from agentao_gov.loadtest.options import Options
from agentao_gov.loadtest.plan import LoadPlan
from agentao_gov.loadtest.provenance import environment, plan_part
from agentao_gov.loadtest.samples import TurnSample
from agentao_gov.loadtest.series import ServerRow
from agentao_gov.loadtest.server_part import server_part, server_rows
from agentao_gov.loadtest.thresholds import Observation, Threshold, ThresholdResult, evaluate, samples_needed
from agentao_gov.loadtest.verdict import Ending, judge

__all__ = ["assemble"]


def assemble(
    options: Options,
    plan: LoadPlan | None,
    thresholds: Sequence[Threshold],
    execution: Execution | None,
    findings: Findings,
) -> LoadTestReport:
    """The whole report. Works with whatever there is: a run that was ended before it began has a report too."""
    seen = _look(options, thresholds, execution, findings)
    verdict = judge(_ending(options, plan, execution, findings, seen))
    figures, samples = seen.figures, seen.samples
    return LoadTestReport(
        verdict=verdict.word,
        conclusion=verdict.conclusion,
        exit_code=verdict.exit_code,
        reasons=list(verdict.reasons),
        partial=findings.signal is not None or findings.generator_died is not None or findings.service_died is not None,
        started_at=datetime.fromtimestamp(findings.started_at, UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        duration_s=round(time.time() - findings.started_at, 3),
        plan=plan_part(options, plan, seen.main, findings),
        checklist=findings.checklist,
        thresholds=[_threshold(result) for result in seen.results],
        turns=turns_part(figures),
        imbalances=seen.imbalances,
        latency_ms=latency_part(figures),
        tokens=tokens_part(figures, options),
        by_profile=groups_part(samples, seen.duration_s, thresholds, options, "profile"),
        by_tenant=groups_part(samples, seen.duration_s, thresholds, options, "tenant"),
        server=seen.server,
        capacity=capacity_part(execution, figures, seen.rows),
        generator=seen.generator,
        cross_check=_cross_check(execution),
        faults=list(findings.faults),
        isolation=seen.isolation,
        baseline=findings.baseline,
        timeline=timeline(samples, seen.duration_s),
        histograms={name: figures.histograms[name].encode().decode() for name in ("turn", "service", "first_token")},
        environment=environment(),
    )


@dataclass(frozen=True, slots=True)
class _Seen:
    """What the phase that the figures are about comes to."""

    main: Played | None
    samples: list[TurnSample]
    duration_s: float
    figures: Figures
    rows: list[ServerRow]
    server: ServerPart
    isolation: dict[str, Any]
    generator: dict[str, Any]
    results: list[ThresholdResult]
    imbalances: list[str]


def _look(options: Options, thresholds: Sequence[Threshold], execution: Execution | None, findings: Findings) -> _Seen:
    main = execution.main if execution is not None else None
    samples = main.samples if main is not None else []
    duration_s = _played_s(main) if main is not None else 0.0
    figures = measure(samples, duration_s, thresholds)
    rows = server_rows(execution, main)
    server = server_part(rows, main, samples, findings.ttl_s)
    isolation = _isolation(options, execution)
    observed = Observation(figures.distributions, _values(figures, rows, server, findings, isolation, options))
    generator, kept = _generator(execution, main, findings)
    return _Seen(
        main=main,
        samples=samples,
        duration_s=duration_s,
        figures=figures,
        rows=rows,
        server=server,
        isolation=isolation,
        generator=generator,
        results=[_with_certainty(evaluate(threshold, observed), samples, kept) for threshold in thresholds],
        imbalances=[text for played in execution.played for text in imbalances(played.record)] if execution else [],
    )


def _ending(
    options: Options, plan: LoadPlan | None, execution: Execution | None, findings: Findings, seen: _Seen
) -> Ending:
    return Ending(
        tally=seen.figures.tally,
        imbalances=seen.imbalances,
        bounds=_own_bounds(options, plan, seen.generator.get("upper_bounds_reached", ())),
        refused=findings.refused,
        thresholds=seen.results,
        comparisons=findings.comparisons,
        generator_bound=seen.generator.get("bound"),
        unsent=seen.generator.get("unsent", 0),
        generator_died=findings.generator_died,
        service_died=findings.service_died,
        signal=findings.signal,
        checklist_failed=findings.checklist_failed,
        **capacity_end(execution),
    )


def _played_s(main: Played) -> float:
    """The planned length, or what there was of it when the run was cut short."""
    if main.end_epoch <= main.start_epoch:
        return 0.0
    return min(main.phase.duration_s, main.end_epoch - main.start_epoch)


def _values(
    figures: Figures,
    rows: Sequence[ServerRow],
    server: ServerPart,
    findings: Findings,
    isolation: Mapping[str, Any],
    options: Options,
) -> dict[str, float | None]:
    """Everything a threshold that is no percentile can look at."""
    slope = server.leaks.get("memory_bytes_per_turn")
    stuck = [row.threads_abandoned for row in rows if row.threads_abandoned is not None]
    values: dict[str, float | None] = dict(figures.rates)
    values |= {
        "memory_peak": server.peaks.get("memory_bytes"),
        # The sure part of the growth: neither noise around zero nor the end of a warm-up is a leak.
        "memory_slope": None if slope is None else slope["beyond_warm_up"],
        "fds_leaked": server.leaks.get("fds", {}).get("leaked"),
        "processes_leaked": server.leaks.get("children", {}).get("leaked"),
        "threads_leaked": server.leaks.get("threads", {}).get("leaked"),
        "back_to_idle": _ms(server.leaks.get("idle", {}).get("after_s")),
        "orphans": findings.orphans,
        "threads_abandoned": max(stuck, default=None),
        "budget_overshoot": findings.budget_overshoot,
        "isolation_p95": isolation.get("ratio_p95"),
        "cost": cost_of(figures, options),
    }
    return values


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else seconds * 1000


def _isolation(options: Options, execution: Execution | None) -> dict[str, Any]:
    """The victim's latency beside the load against alone."""
    if execution is None or options.victim is None or len(execution.played) < 2:
        return {}
    alone, noisy = (
        measure([s for s in played.samples if s.tenant == options.victim], played.phase.duration_s)
        for played in execution.played[:2]
    )
    before, after = (
        # A ratio of two percentiles that nobody can certify certifies nothing.
        figures.distributions["turn"].percentile(95)
        if len(figures.distributions["turn"].values_ms) >= samples_needed(95)
        else None
        for figures in (alone, noisy)
    )
    return {
        "victim": options.victim,
        "rate_per_s": options.victim_rate,
        "alone": {"turns": turns_part(alone).model_dump(), "turn_ms": alone.histograms["turn"].summary_ms()},
        "beside_load": {"turns": turns_part(noisy).model_dump(), "turn_ms": noisy.histograms["turn"].summary_ms()},
        "ratio_p95": round(after / before, 3) if before and after else None,
    }


def _with_certainty(
    result: ThresholdResult, samples: Sequence[TurnSample], generator: GeneratorFigures | None
) -> ThresholdResult:
    """Marks a latency failure that a late generator cannot explain."""
    if result.status != "fail" or result.threshold.unit != "ms" or generator is None or generator.bound is None:
        return result
    figures = measure(relieved(samples, generator), 1.0)
    again = evaluate(result.threshold, Observation(figures.distributions, {}))
    return replace(result, sure=again.status == "fail")


def _generator(
    execution: Execution | None, main: Played | None, findings: Findings
) -> tuple[dict[str, Any], GeneratorFigures | None]:
    if execution is None or main is None:
        return {}, None
    bounds = sorted({str(remark.get("kind")) for remark in execution.driver.file.remarks_of("bound")})
    complete = findings.signal is None and findings.service_died is None and not bounds
    figures = generator_figures(main.samples, main.record.beats, planned=main.planned, complete=complete)
    return {**figures.to_dict(), "upper_bounds_reached": bounds, "workers": execution.plan.workers}, figures


def _own_bounds(options: Options, plan: LoadPlan | None, reached: Sequence[str]) -> list[str]:
    """Bounds that ended the load and that nobody had asked for: the rest of the load was never seen."""
    if plan is None:
        return []
    own = {"turns": (options.max_turns, plan.max_turns), "tokens": (options.max_tokens, plan.max_tokens)}
    return [
        f"the upper bound of {own[kind][1]:,} {kind} that this run set itself (--max-{kind} N states yours)"
        for kind in reached
        if kind in own and own[kind][0] is None
    ]


def _cross_check(execution: Execution | None) -> dict[str, Any]:
    """Locust's own count over the whole run; its percentiles only where one process has them all."""
    if execution is None:
        return {}
    last = {int(remark["worker"]): remark for remark in execution.driver.file.remarks_of("locust")}
    if not last:
        return {}
    count = {name: sum(int(remark[name]) for remark in last.values()) for name in ("requests", "failures")}
    alone = next(iter(last.values()))
    return count if len(last) > 1 else {**count, "p50_ms": alone["p50"], "p95_ms": alone["p95"]}


def _threshold(result: ThresholdResult) -> ThresholdPart:
    return ThresholdPart(
        expression=result.threshold.expression,
        observed=rounded(result.observed, 6),
        status=result.status,
        unit=result.threshold.unit,
        limit=result.threshold.limit,
        samples=result.samples,
        reason=result.reason,
    )
