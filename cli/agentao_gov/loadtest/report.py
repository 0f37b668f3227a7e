"""Puts the report together: from what was played to the document, its thresholds and its verdict."""

from __future__ import annotations

import importlib.metadata
import math
import os
import platform
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

from agentao_gov.loadtest.capacity import CapacityResult
from agentao_gov.loadtest.compare import Comparison
from agentao_gov.loadtest.document import (
    CapacityPart,
    GroupPart,
    LoadTestReport,
    Percentiles,
    ServerPart,
    ThresholdPart,
    TurnsPart,
)
from agentao_gov.loadtest.execution import Execution, Played
from agentao_gov.loadtest.faults import load_faults
from agentao_gov.loadtest.leaks import Rest, ServiceSample, leak_findings
from agentao_gov.loadtest.measure import (
    Figures,
    GeneratorFigures,
    generator_figures,
    grouped,
    measure,
    relieved,
    timeline,
)
from agentao_gov.loadtest.options import LoadOptions
from agentao_gov.loadtest.plan import LoadPlan
from agentao_gov.loadtest.record import PhaseRecord, TurnSample
from agentao_gov.loadtest.schedule import Segment, span_s
from agentao_gov.loadtest.server_series import ServerRow, peaks_of
from agentao_gov.loadtest.thresholds import Observation, Threshold, ThresholdResult, evaluate, samples_needed
from agentao_gov.loadtest.verdict import RunEnding, judge

_SHOWN = ("turn", "service", "first_token", "queue", "gap", "session")
_ROWS_MAX = 600


def _turns_part(figures: Figures) -> TurnsPart:
    """The report's `turns`: how many ended in which way, and the rates."""
    rates = {name: _rounded(value, 6) for name, value in figures.rates.items()}
    return TurnsPart(
        **figures.tally.to_dict(),
        rate_per_s=rates["turns_per_s"],
        goodput_per_s=rates["goodput_per_s"],
        error_rate=rates["error_rate"],
        rejection_rate=rates["rejection_rate"],
    )


def _latency_part(figures: Figures) -> dict[str, Percentiles]:
    """The report's `latency_ms`, by series."""
    return {name: Percentiles.model_validate(figures.histograms[name].summary_ms()) for name in _SHOWN}


def _tokens_part(figures: Figures, options: LoadOptions) -> dict[str, float | int | None]:
    """The report's `tokens`, with the cost where `options` state a price."""
    return {
        "prompt": figures.prompt_tokens,
        "completion": figures.completion_tokens,
        "total": figures.tokens,
        "per_s": _rounded(figures.rates["tokens_per_s"]),
        "llm_calls": figures.llm_calls,
        "cost": _rounded(cost_of(figures, options), 6),
    }


def cost_of(figures: Figures, options: LoadOptions) -> float | None:
    """The bill for these figures at the options' prices per million tokens; None where nobody stated one."""
    if options.price is None:
        return None
    return (figures.prompt_tokens * options.price[0] + figures.completion_tokens * options.price[1]) / 1e6


def _groups_part(
    samples: Sequence[TurnSample], duration_s: float, thresholds: Sequence[Threshold], options: LoadOptions, key: str
) -> dict[str, GroupPart]:
    groups = {}
    for name, inside in grouped(samples, lambda sample: str(getattr(sample, key))).items():
        figures = measure(inside, duration_s, thresholds)
        groups[name] = GroupPart(
            turns=_turns_part(figures), latency_ms=_latency_part(figures), tokens=_tokens_part(figures, options)
        )
    return groups


def _rounded(value: float | None, digits: int = 3) -> float | None:
    """The value with so many digits after the point; None stays None."""
    return None if value is None else round(value, digits)


def _capacity_end(execution: Execution | None) -> dict[str, str | None]:
    """Why a search found no capacity, as fields of `Ending`; empty where it found one, or none was searched."""
    result = execution.capacity if execution is not None else None
    if result is None:
        return {}
    if result.outcome == "unattainable":
        return {"capacity_failed": f"not even {result.probes[0].load} session meets the objectives: {result.evidence}"}
    if result.outcome == "unclear":
        bound = "" if result.bottleneck == "none" else f"bound by {result.bottleneck}: "
        return {"capacity_unclear": f"no capacity is certain: {bound}{result.evidence}"}
    return {}


def _capacity_part(execution: Execution | None, figures: Figures, rows: Sequence[ServerRow]) -> CapacityPart:
    """The report's `capacity`: what a search found, or what a plain run happened to reach by its figures and rows."""
    result: CapacityResult | None = execution.capacity if execution is not None else None
    if result is None:
        seen = [row.resident for row in rows if row.resident is not None]
        return CapacityPart(
            sessions=max(seen, default=None),
            turns_per_s=_rounded(figures.rates["turns_per_s"]),
            bottleneck=None,
            knee={"outcome": "not searched: this is what the run reached, not what the pool holds"},
        )
    return CapacityPart(
        sessions=result.sessions,
        turns_per_s=result.turns_per_s,
        bottleneck=result.bottleneck,
        knee=result.knee(),
        probes=[asdict(probe) for probe in result.probes],
        plan=capacity_plan(result),
    )


def capacity_plan(result: CapacityResult) -> dict[str, Any]:
    """What `--write` puts under `[capacity]`: what held, with the memory and the processes it took."""
    held = next((probe for probe in result.probes if probe.load == result.low), None)
    if held is None or result.sessions is None:
        return {}
    used = held.resources
    plan: dict[str, Any] = {"sessions": max(result.sessions, used.sessions or 0)}
    if used.mcp_processes:
        plan["mcp_processes"] = used.mcp_processes
    if used.memory_bytes:
        # A fifth on top: the plan is for alerts, and the measured peak must not raise one. But never beyond what binds.
        room = min(int(used.memory_bytes * 1.2), used.memory_max_bytes or math.inf)
        plan["memory"] = f"{-(-int(room) // 1024**2)}MiB"
    return plan


def imbalances(record: PhaseRecord) -> list[str]:
    """What does not add up in a phase's record, a sentence each; empty where all of it does.

    Starts and ends are two lines, written at different times and counted apart per profile and tenant. Where they do
    not agree something was lost or counted twice, and no figure of the run can be trusted.
    """
    ends = Counter((sample.profile, sample.tenant) for sample in record.samples)
    found = [
        f"{_whose(profile, tenant)}: {record.begun[profile, tenant]} turns started, {ends[profile, tenant]} ended"
        for profile, tenant in sorted(record.begun.keys() | ends.keys())
        if record.begun[profile, tenant] != ends[profile, tenant]
    ]
    if record.unmatched_ends:
        found.append(f"{record.unmatched_ends} turns ended without a start, or twice")
    if record.lost:
        found.append(f"{record.lost} turns were lost: the generator finished and never said how they ended")
    return found


def _whose(profile: str, tenant: str) -> str:
    return f"profile {profile} of tenant {tenant}"


@dataclass(slots=True)
class Findings:
    """What the run found besides its turns."""

    started_at: float
    checklist: dict[str, Any] = field(default_factory=dict)
    checklist_failed: bool = False
    comparisons: Sequence[Comparison] = ()
    baseline: dict[str, Any] = field(default_factory=dict)
    faults: Sequence[dict[str, Any]] = ()
    budget_overshoot: int | None = None
    #: Processes of the service that outlived its end; None where it was not ended here.
    orphans: int | None = None
    differences: Sequence[str] = ()
    #: The sessions' time to live, where it is short enough for the run to have waited for it.
    ttl_s: float | None = None
    service_died: str | None = None
    generator_died: str | None = None
    signal: int | None = None
    #: Who ended the run, where it was no signal.
    stopped_by: str = ""
    #: Why the run was refused before it began, with its exit code.
    refused: tuple[str, int] | None = None


def environment() -> dict[str, Any]:
    """The machine and the versions: what makes two runs comparable."""
    versions = {}
    for name in ("agentao-gov", "agentao", "locust"):
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = "unknown"
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "python": platform.python_version(),
        "system": platform.system(),
        "machine": platform.machine(),
        "cpus": os.cpu_count(),
        "memory_bytes": memory,
        "versions": versions,
    }


def plan_part(options: LoadOptions, plan: LoadPlan | None, main: Played | None, findings: Findings) -> dict[str, Any]:
    """The report's `plan`: what was asked for, and what makes two runs comparable."""
    recording = plan.recording if plan is not None else None
    return {
        "shape": options.shape,
        "loop": "open" if options.open_loop else "closed",
        "rate": options.level if options.open_loop and not recording else None,
        "users": options.users,
        "duration_s": round(span_s(recording, options.replay_speed), 2) if recording else options.duration_s,
        "replay": {"turns": len(recording), "speed": options.replay_speed} if recording else None,
        "faults": [f"{f.kind} at {f.at_s:g} s" for f in load_faults(options.faults)]
        if options.faults and plan
        else None,
        "victim": options.victim,
        "arrivals": options.process,
        "seed": options.seed,
        "mix": dict(options.mix),
        "workers": options.workers,
        "api": options.api,
        "tenants": list(main.phase.streams[0].tenants) if main else [],
        "turns_per_session": options.turns_per_session,
        "think_scale": plan.think_scale if plan else options.think_scale,
        "simulated": bool(plan and plan.directives),
        "model_pace_s": {"first_token": options.first_token_s, "per_token": options.per_token_s},
        "timeouts_s": plan.timeouts_s if plan else {},
        "max_turns": plan.max_turns if plan else None,
        "max_tokens": plan.max_tokens if plan else None,
        "target": "own" if options.target is None else options.target,
        #: Wall time of the samples' second 0: what aligns them with other records.
        "start_epoch": main.start_epoch if main else None,
        "segments": [asdict(part) for part in main.phase.streams[0].segments] if main else [],
        "differences": list(findings.differences),
    }


def _server_rows(execution: Execution | None, main: Played | None) -> list[ServerRow]:
    """The looks that belong to the run, from just before its first turn."""
    if execution is None or main is None:
        return []
    # A search's other probes belong to its story; a plain run has one phase and its settling.
    return [row for row in execution.series.rows if row.at >= execution.played[0].start_epoch - 2.0]


def _server_part(
    rows: Sequence[ServerRow], main: Played | None, samples: Sequence[TurnSample], ttl_s: float | None
) -> ServerPart:
    """Rows thinned, peaks, and what was left. `ttl_s`: the sessions' time to live where the run waited for it."""
    if main is None or not rows:
        return ServerPart()
    step = max(1, len(rows) // _ROWS_MAX)
    load_end_s = max((sample.ended_s for sample in samples), default=main.end_epoch - main.start_epoch)
    return ServerPart(
        samples=[row.to_dict(main.start_epoch) for row in rows[::step]],
        peaks=peaks_of(rows),
        leaks=leak_findings(
            list(_service_samples(rows, main, samples)),
            _rests(main),
            sessions=len({sample.session for sample in samples}),
            load_end_s=load_end_s,
            ttl_s=ttl_s,
        ),
    )


def _service_samples(rows: Sequence[ServerRow], main: Played, samples: Sequence[TurnSample]) -> Iterator[ServiceSample]:
    ends = sorted(sample.ended_s for sample in samples)
    done = 0
    for row in rows:
        at_s = row.at - main.start_epoch
        while done < len(ends) and ends[done] <= at_s:
            done += 1
        yield ServiceSample(
            at_s=at_s,
            turns=done,
            # The service's own process: what its children hold goes with them, and their number is looked at itself.
            rss_bytes=row.rss_bytes,
            fds=row.fds,
            children=row.children,
            threads=row.threads,
            busy=row.sessions.get("busy", 0) if row.sessions else None,
            queue=row.queue,
            resident=row.resident,
        )


def _rests(main: Played) -> list[Rest]:
    """Stretches without load: before it, within a soak's waves, and after it."""
    quiet = [(part.start_s, part.end_s) for part in _load_segments(main) if part.level_start == part.level_end == 0]
    end_s = main.end_epoch - main.start_epoch
    last = quiet.pop() if quiet and quiet[-1][1] >= main.phase.duration_s - 0.01 else (main.phase.duration_s, 0.0)
    # The service gets half a rest to put away what the wave left.
    inner = [((start + end) / 2, end) for start, end in quiet]
    return [(-2.0, 0.05), *inner, ((last[0] + end_s) / 2, end_s + 30.0)]


def _load_segments(main: Played) -> tuple[Segment, ...]:
    return main.phase.streams[0].segments


def assemble(
    options: LoadOptions,
    plan: LoadPlan | None,
    thresholds: Sequence[Threshold],
    execution: Execution | None,
    findings: Findings,
) -> LoadTestReport:
    """The whole report. Works with whatever there is: a run that was ended before it began has a report too.

    Args:
        options: what was asked for.
        plan: what was to be sent; None: it was never made.
        thresholds: what decides.
        execution: what was played.
        findings: what the run found besides its turns.
    """
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
        turns=_turns_part(figures),
        imbalances=seen.imbalances,
        latency_ms=_latency_part(figures),
        tokens=_tokens_part(figures, options),
        by_profile=_groups_part(samples, seen.duration_s, thresholds, options, "profile"),
        by_tenant=_groups_part(samples, seen.duration_s, thresholds, options, "tenant"),
        server=seen.server,
        capacity=_capacity_part(execution, figures, seen.rows),
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


def _look(
    options: LoadOptions, thresholds: Sequence[Threshold], execution: Execution | None, findings: Findings
) -> _Seen:
    main = execution.main if execution is not None else None
    samples = main.samples if main is not None else []
    duration_s = _played_s(main) if main is not None else 0.0
    figures = measure(samples, duration_s, thresholds)
    rows = _server_rows(execution, main)
    server = _server_part(rows, main, samples, findings.ttl_s)
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
    options: LoadOptions, plan: LoadPlan | None, execution: Execution | None, findings: Findings, seen: _Seen
) -> RunEnding:
    return RunEnding(
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
        stopped_by=findings.stopped_by,
        checklist_failed=findings.checklist_failed,
        **_capacity_end(execution),
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
    options: LoadOptions,
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


def _isolation(options: LoadOptions, execution: Execution | None) -> dict[str, Any]:
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
        "alone": {"turns": _turns_part(alone).model_dump(), "turn_ms": alone.histograms["turn"].summary_ms()},
        "beside_load": {"turns": _turns_part(noisy).model_dump(), "turn_ms": noisy.histograms["turn"].summary_ms()},
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


def _own_bounds(options: LoadOptions, plan: LoadPlan | None, reached: Sequence[str]) -> list[str]:
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
        observed=_rounded(result.observed, 6),
        status=result.status,
        unit=result.threshold.unit,
        limit=result.threshold.limit,
        samples=result.samples,
        reason=result.reason,
    )
