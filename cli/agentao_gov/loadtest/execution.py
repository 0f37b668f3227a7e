"""Plays the phases of a run: one load, a victim beside it, or the probes of a capacity search."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from agentao_gov.loadtest.arrivals import level_at, segments
from agentao_gov.loadtest.capacity import CapacityResult, CapacitySearch, ProbeResult, Resources
from agentao_gov.loadtest.driver import GeneratorDied, LoadDriver
from agentao_gov.loadtest.measure import generator_figures, measure, steady_rate
from agentao_gov.loadtest.options import (
    CEILING,
    PROBE_RAMP_SHARE,
    Options,
    build_phase,
    drain_s,
    probe_label,
    probe_phase,
    probe_s,
)
from agentao_gov.loadtest.plan import LoadPlan, Phase, Stream, estimate
from agentao_gov.loadtest.recording import PhaseRecord
from agentao_gov.loadtest.samples import Status, TurnSample
from agentao_gov.loadtest.series import ServerRow, ServerSeries
from agentao_gov.loadtest.target import Target
from agentao_gov.loadtest.thresholds import Distribution, Observation, Threshold, evaluate
from agentao_gov.loadtest.view import Live, Stop, View

__all__ = ["Execution", "Played"]


@dataclass(slots=True)
class Played:
    """A phase that was played, with wall times that align it with the server's rows."""

    phase: Phase
    record: PhaseRecord
    start_epoch: float
    end_epoch: float
    planned: int | None

    @property
    def samples(self) -> list[TurnSample]:
        """Its turns."""
        return self.record.samples


@dataclass(slots=True)
class Execution:
    """What was played and how it ended. One thread."""

    options: Options
    plan: LoadPlan
    thresholds: Sequence[Threshold]
    target: Target
    driver: LoadDriver
    series: ServerSeries
    view: View
    stop: Stop
    limits: dict[str, int | None] = field(default_factory=dict)
    played: list[Played] = field(default_factory=list)
    capacity: CapacityResult | None = None
    generator_died: str | None = None
    service_died: str | None = None

    def run(self) -> None:
        """Plays everything the options ask for. Deaths and signals are recorded, not raised."""
        try:
            if self.options.bind is not None:
                there = f"agentao-gov loadtest --worker-of {self.options.bind}"
                self.view.note(f"waiting for {self.plan.workers} of: {there}")
            self.driver.start(self.stop)
            if self.stop():
                return
            if self.options.shape == "capacity":
                self._search()
            elif self.options.victim is not None:
                self._beside_victim(self.options.victim)
            else:
                self._play(build_phase(self.options, self.plan, self.target.tenants))
            self.driver.finish()
        except GeneratorDied as error:
            self.generator_died = error.message

    @property
    def main(self) -> Played | None:
        """The phase the figures are about: the last one, or a search's best probe."""
        if not self.played:
            return None
        if self.capacity is not None and self.capacity.low:
            held = next((p for p in self.played if p.phase.label == probe_label(self.capacity.low)), None)
            if held is not None:
                return held
        return self.played[-1]

    def _play(self, phase: Phase) -> Played:
        phase = phase.model_copy(update={"index": len(self.played)})
        open_loop = all(stream.loop == "open" for stream in phase.streams)
        planned = estimate(self.plan, [phase]).turns if open_loop else None
        self.view.note(_describe(phase, planned))
        placed = Played(phase, self.driver.file.phase(phase.index), 0.0, 0.0, planned)
        self.played.append(placed)

        def tick(record: PhaseRecord, at_s: float) -> None:
            self.view.live(self._look(phase, record, at_s))

        try:
            self.driver.run_phase(phase, on_tick=tick, should_stop=self._should_stop)
        finally:
            # Also when the generator died: what it wrote is evidence.
            placed.start_epoch, placed.end_epoch = self.driver.span(phase.index)
        return placed

    def _should_stop(self) -> bool:
        if self.stop():
            return True
        # A foreign service is asked once, at the end: asking ten times a second would be load of its own.
        if self.service_died is None and self.target.process is not None:
            self.service_died = self.target.death()
        return self.service_died is not None

    # -- a victim beside the load ----------------------------------------------------------------------------------

    def _beside_victim(self, victim: str) -> None:
        options = self.options
        others = tuple(name for name in self.target.tenants if name != victim)
        alone_s = max(15.0, options.duration_s / 3)
        calm = Stream(
            name="victim",
            loop="open",
            segments=segments("constant", options.victim_rate, alone_s),
            tenants=(victim,),
            mix=dict(options.mix),
        )
        drain = drain_s(options, self.plan)
        self._play(Phase(label="victim alone", duration_s=alone_s, drain_s=drain, streams=(calm,)))
        if self._should_stop():
            return
        noisy = build_phase(options, self.plan, others)
        beside = calm.model_copy(update={"segments": segments("constant", options.victim_rate, options.duration_s)})
        self._play(noisy.model_copy(update={"label": "victim beside load", "streams": (*noisy.streams, beside)}))

    # -- capacity search -------------------------------------------------------------------------------------------

    def _search(self) -> None:
        # Beyond max_sessions too: that it is what gives way is seen only where it does.
        ceiling = self.options.users or max(CEILING, 2 * (self.limits.get("max_sessions") or 0))
        search = CapacitySearch(ceiling=ceiling)
        spent_s = 0.0
        try:
            while (load := search.next_load()) is not None and not self._should_stop():
                if spent_s + probe_s(self.options) > self.options.duration_s:
                    self.view.note("the time for the search is used up")
                    break
                played = self._play(probe_phase(self.options, load, self.target.tenants))
                spent_s += played.end_epoch - played.start_epoch
                if self._should_stop():
                    break
                probe = self._probe(load, played)
                search.record(probe)
                if self._bound_reached() is not None:
                    # Nothing more is started: further probes would be empty.
                    break
                word = "holds" if search.holds(probe) else "too much"
                self.view.note(f"{load} busy sessions: {probe.turns_per_s:.1f} turns/s, {word}")
        finally:
            self.capacity = search.result()

    def _probe(self, load: int, played: Played) -> ProbeResult:
        duration_s = played.phase.duration_s
        samples = played.samples
        figures = measure(samples, duration_s, self.thresholds)
        seen = Observation(figures.distributions, figures.rates)
        # Totals over the run (memory, leaks) are no objective of a probe.
        objectives = [t for t in self.thresholds if t.series is not None or t.unit == "ratio"]
        missed = tuple(t.expression for t in objectives if evaluate(t, seen).status == "fail")
        answered = figures.tally.by_status.get("answered", 0)
        generator = generator_figures(samples, played.record.beats, planned=None, complete=False)
        return ProbeResult(
            load=load,
            good=answered,
            total=figures.tally.started,
            turns_per_s=steady_rate(samples, 2 * PROBE_RAMP_SHARE * duration_s, duration_s),
            mean_s=self._standard_mean_s(samples),
            missed=missed,
            refusals={name: count for name, count in figures.tally.by_outcome.items() if name != "answered"},
            resources=self._resources(played, samples, generator.cpu_max),
            generator_bound=generator.bound or self._bound_reached(),
        )

    def _bound_reached(self) -> str | None:
        """A probe that an upper bound cut short says nothing about the service."""
        bounds = self.driver.file.remarks_of("bound")
        return f"the upper bound of {bounds[-1].get('kind')} was reached" if bounds else None

    def _standard_mean_s(self, samples: Sequence[TurnSample]) -> float | None:
        """Mean seconds of an answered turn at the plan's own mix, so that probes with few turns compare."""
        total = weight = 0.0
        for profile, share in self.options.mix.items():
            took = [s.service_us / 1e6 for s in samples if s.profile == profile and s.status is Status.ANSWERED]
            if took:
                total += share * sum(took) / len(took)
                weight += share
        return total / weight if weight else None

    def _resources(self, played: Played, samples: Sequence[TurnSample], generator_cpu: float) -> Resources:
        rows = self.series.between(played.start_epoch + played.phase.duration_s * 0.3, played.end_epoch)
        model = [s.model_us / 1000 for s in samples if s.model_us is not None]
        if self.plan.api == "openai" and not model:
            # No TurnReport: what is loaded is a bare model, and all of the time is its own.
            model = [s.service_us / 1000 for s in samples if s.status is Status.ANSWERED]
        cpu = sorted(row.cpu for row in rows if row.cpu is not None)
        return Resources(
            busy=_most(row.sessions.get("busy") for row in rows),
            busy_max=self.limits.get("max_busy"),
            sessions=_most(row.resident for row in rows),
            sessions_max=self.limits.get("max_sessions"),
            queue=_most(row.queue for row in rows),
            memory_bytes=_most(row.memory_bytes for row in rows),
            memory_max_bytes=self.limits.get("memory_bytes"),
            fds=_most(row.fds for row in rows),
            fds_max=self.limits.get("fds"),
            service_cpu=cpu[len(cpu) // 2] if cpu else None,
            generator_cpu=generator_cpu,
            model_ms=sum(model) / len(model) if model else None,
        )

    # -- the live look ---------------------------------------------------------------------------------------------

    def _look(self, phase: Phase, record: PhaseRecord, at_s: float) -> Live:
        recent = record.samples[-2000:]
        answered = sum(s.status is Status.ANSWERED for s in recent)
        scale = len(record.samples) / len(recent) if recent else 0.0
        slow = sorted(s.latency_us / 1000 for s in recent if s.status in (Status.ANSWERED, Status.TIMED_OUT))
        first = sorted(s.first_token_us / 1000 for s in recent if s.first_token_us is not None)
        seen = Observation({"turn": Distribution(tuple(slow)), "first_token": Distribution(tuple(first))}, {})
        lines = []
        for threshold in self.thresholds:
            if threshold.series in ("turn", "first_token"):
                result = evaluate(threshold, seen)
                text = "-" if result.observed is None else f"{result.observed:.0f} ms"
                lines.append((threshold.expression, text, result.status))
        late = sorted(s.late_us for s in recent)
        row: ServerRow | None = self.series.rows[-1] if self.series.rows else None
        return Live(
            label=phase.label,
            at_s=max(0.0, at_s),
            duration_s=phase.duration_s,
            started=record.started,
            answered=round(answered * scale),
            failed=len(record.samples) - round(answered * scale),
            refused=sum(s.retry_after_s is not None for s in recent),
            in_flight=len(record.open),
            level=sum(level_at(stream.segments, at_s) for stream in phase.streams),
            answered_per_s=sum(s.ended_s > at_s - 5 and s.status is Status.ANSWERED for s in recent)
            / max(1, min(5, at_s)),
            thresholds=tuple(lines),
            memory_bytes=row.memory_bytes if row else None,
            sessions=row.resident if row else None,
            lateness_p99_ms=late[int(0.99 * (len(late) - 1))] / 1000 if late else None,
        )


def _most(values: Iterable[int | None]) -> int | None:
    return max((value for value in values if value is not None), default=None)


def _describe(phase: Phase, planned: int | None) -> str:
    what = f"{planned} turns planned" if planned is not None else "sessions at their own pace"
    return f"{phase.label}: {phase.duration_s:g} s, {what}"
