"""Plays the phases of a run: one load, a victim beside it, or the probes of a capacity search."""

from __future__ import annotations

import signal
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from agentao_gov.loadtest.capacity import PROBES_MAX, CapacityResult, CapacitySearch, ProbeResult, Resources
from agentao_gov.loadtest.driver import GeneratorDied, LoadDriver
from agentao_gov.loadtest.measure import generator_figures, measure, steady_rate, sustained_cpu
from agentao_gov.loadtest.options import (
    CEILING,
    PROBE_RAMP_SHARE,
    LoadOptions,
    build_phase,
    drain_s,
    probe_label,
    probe_phase,
    probe_s,
)
from agentao_gov.loadtest.plan import LoadPlan, LoadStream, Phase, estimate
from agentao_gov.loadtest.record import PhaseRecord, Status, TurnSample
from agentao_gov.loadtest.schedule import segments
from agentao_gov.loadtest.server_series import ServerRow, ServerSeries
from agentao_gov.loadtest.target import ServiceLimits, Target, oom_kills
from agentao_gov.loadtest.thresholds import Observation, Threshold, evaluate, samples_needed
from agentao_gov.loadtest.view import Stop, View, live_figures

#: The start of a probe is left out of what was at hand: its sessions are still coming.
_STEADY_SHARE = 0.3
#: A certifying probe plans for this many times the turns it needs, and leaves room for its drain and its deletions.
_CERTIFY_ROOM = 1.3
_CERTIFY_MARGIN_S = 3.0


@dataclass(frozen=True, slots=True)
class Probing:
    """What is the same for every probe of a search."""

    mix: Mapping[str, float]
    api: str
    thresholds: Sequence[Threshold]
    limits: ServiceLimits

    def result(
        self,
        load: int,
        record: PhaseRecord,
        rows: Sequence[ServerRow],
        *,
        start_epoch: float,
        duration_s: float,
        oom_kills: int | None = None,
        died: str | None = None,
        cut_short: str | None = None,
    ) -> ProbeResult:
        """The probe's result.

        Args:
            rows: the service's, from `start_epoch` to the probe's end.
            oom_kills: processes killed for memory meanwhile.
            died: why the service is gone. cut_short: which bound ended the probe.
        """
        samples = record.samples
        figures = measure(samples, duration_s, self.thresholds)
        seen = Observation(figures.distributions, figures.rates)
        # Totals over the run (memory, leaks) are no objective of a probe.
        objectives = [t for t in self.thresholds if t.series is not None or t.unit == "ratio"]
        generator = generator_figures(samples, record.beats, planned=None, complete=False)
        steady_from_s = _STEADY_SHARE * duration_s
        return ProbeResult(
            load=load,
            good=figures.tally.by_status.get("answered", 0),
            total=figures.tally.started,
            turns_per_s=steady_rate(samples, 2 * PROBE_RAMP_SHARE * duration_s, duration_s),
            mean_s=self._standard_mean_s(samples),
            missed=tuple(t.expression for t in objectives if evaluate(t, seen).status == "fail"),
            refusals={name: count for name, count in figures.tally.by_outcome.items() if name != "answered"},
            error=_most_frequent(s.error for s in samples if s.status is Status.FAILED),
            resources=self._resources(
                [row for row in rows if row.at >= start_epoch + steady_from_s],
                samples,
                sustained_cpu(record.beats, steady_from_s, duration_s),
                oom_kills,
            ),
            died=died,
            # What came in while the service was going says nothing about the generator.
            generator_bound=None if died else generator.bound,
            cut_short=cut_short,
        )

    def _standard_mean_s(self, samples: Sequence[TurnSample]) -> float | None:
        """Mean seconds of an answered turn at the plan's own mix, so that probes with few turns compare."""
        total = weight = 0.0
        for profile, share in self.mix.items():
            took = [s.service_us / 1e6 for s in samples if s.profile == profile and s.status is Status.ANSWERED]
            if took:
                total += share * sum(took) / len(took)
                weight += share
        return total / weight if weight else None

    def _resources(
        self,
        rows: Sequence[ServerRow],
        samples: Sequence[TurnSample],
        generator: tuple[float, float] | None,
        oom_kills: int | None,
    ) -> Resources:
        model = [s.model_us / 1000 for s in samples if s.model_us is not None]
        if self.api == "openai" and not model:
            # No TurnReport: what is loaded is a bare model, and all of the time is its own.
            model = [s.service_us / 1000 for s in samples if s.status is Status.ANSWERED]
        limits = self.limits
        return Resources(
            busy=_most(row.sessions.get("busy") for row in rows),
            busy_max=limits.max_busy,
            sessions=_most(row.resident for row in rows),
            sessions_held=_most(
                sum(row.sessions.get(state, 0) for state in ("busy", "opening", "stuck"))
                for row in rows
                if row.sessions
            ),
            sessions_max=limits.max_sessions,
            queue=_most(row.queue for row in rows),
            mcp_processes=_most(row.children_by_kind.get("mcp", 0) for row in rows if row.children_by_kind),
            memory_bytes=_most(row.memory_bytes for row in rows),
            memory_max_bytes=limits.memory_bytes,
            memory_max_by=limits.memory_by,
            oom_kills=oom_kills,
            fds=_most(row.fds for row in rows),
            fds_max=limits.fds,
            service_cpu=_median(row.cpu for row in rows),
            service_cores=_median(row.tree_cpu for row in rows),
            cores=len(limits.cores) or None,
            machine_cpu=_median(row.machine_cpu for row in rows),
            generator_cpu=generator[0] if generator else None,
            generator_wait=generator[1] if generator else None,
            model_cpu=_median(row.model_cpu for row in rows),
            model_ms=sum(model) / len(model) if model else None,
        )


def _most(values: Iterable[int | None]) -> int | None:
    return max((value for value in values if value is not None), default=None)


def _median(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None


def _most_frequent(texts: Iterable[str]) -> str:
    return next((text for text, _ in Counter(filter(None, texts)).most_common(1)), "")


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

    options: LoadOptions
    plan: LoadPlan
    thresholds: Sequence[Threshold]
    target: Target
    driver: LoadDriver
    series: ServerSeries
    view: View
    stop: Stop
    limits: ServiceLimits = field(default_factory=ServiceLimits)
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
            if self.options.web_port is not None:
                self.view.note(f"Locust's web UI: http://127.0.0.1:{self.options.web_port}")
            if self.target.service is not None:
                self.view.note(f"the service's own page: {self.target.url}/")
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
            label = probe_label(self.capacity.low)
            held = [p for p in self.played if p.phase.label in (label, f"{label}, longer")]
            if held:
                return max(held, key=lambda played: len(played.samples))
        return self.played[-1]

    def _play(self, phase: Phase) -> Played:
        phase = phase.model_copy(update={"index": len(self.played)})
        open_loop = all(stream.loop == "open" for stream in phase.streams)
        planned = estimate(self.plan, [phase]).turns if open_loop else None
        self.view.note(_describe(phase, planned))
        placed = Played(phase, self.driver.file.phase(phase.index), 0.0, 0.0, planned)
        self.played.append(placed)

        def tick(record: PhaseRecord, at_s: float) -> None:
            self.view.live(live_figures(phase, record, at_s, self.thresholds, self.series.rows))

        try:
            self.driver.run_phase(phase, on_tick=tick, should_stop=self._should_stop)
        finally:
            # Also when the generator died: what it wrote is evidence.
            placed.start_epoch, placed.end_epoch = self.driver.span(phase.index)
        return placed

    def _should_stop(self) -> bool:
        if self.driver.file.remarks_of("stopped") and not self.stop():
            self.stop.set(signal.SIGINT, by="STOP on Locust's page")
        if self.stop():
            return True
        # A foreign service is asked once, at the end: asking ten times a second would be load of its own.
        if self.service_died is None and self.target.service is not None:
            self.service_died = self.target.death()
        return self.service_died is not None

    # -- a victim beside the load ----------------------------------------------------------------------------------

    def _beside_victim(self, victim: str) -> None:
        options = self.options
        others = tuple(name for name in self.target.tenants if name != victim)
        alone_s = max(15.0, options.duration_s / 3)
        calm = LoadStream(
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
        ceiling = self.options.users or max(CEILING, 2 * (self.limits.max_sessions or 0))
        search = CapacitySearch(ceiling=ceiling)
        try:
            while (load := search.next_load()) is not None and self._time_for(probe_s(self.options)):
                self._record(search, load, probe_phase(self.options, load, self.target.tenants))
            if (phase := self._certifying(search)) is not None:
                self._record(search, search.low, phase)
        finally:
            self.capacity = search.result()

    def _time_for(self, seconds: float) -> bool:
        """Whether another probe of this length may begin. A reached bound starts no turns: a probe would be empty."""
        if self._should_stop() or self._bound_reached() is not None:
            return False
        if self._spent_s() + seconds > self.options.duration_s:
            self.view.note("the time for the search is used up")
            return False
        return True

    def _spent_s(self) -> float:
        return sum(played.end_epoch - played.start_epoch for played in self.played)

    def _record(self, search: CapacitySearch, load: int, phase: Phase) -> None:
        killed_before = oom_kills(self.target.pid)
        played = self._play(phase)
        if self.stop():
            return
        # A service that died of the load has told where its limit is; also a foreign one, which is asked here alone.
        self.service_died = self.service_died or self.target.death()
        killed = oom_kills(self.target.pid)
        probing = Probing(self.options.mix, self.plan.api, self.thresholds, self.limits)
        probe = probing.result(
            load,
            played.record,
            self.series.between(played.start_epoch, played.end_epoch),
            start_epoch=played.start_epoch,
            duration_s=phase.duration_s,
            oom_kills=killed - killed_before if killed is not None and killed_before is not None else None,
            died=self.service_died,
            cut_short=self._bound_reached(),
        )
        search.record(probe)
        word = "holds" if search.holds(probe) else "too much"
        if probe.generator_bound is not None:
            word = f"the load generator gave in: {probe.generator_bound}"
        self.view.note(f"{load} busy sessions: {probe.turns_per_s:.1f} turns/s, {probe.cut_short or word}")

    def _certifying(self, search: CapacitySearch) -> Phase | None:
        """A longer probe of the load that was found, with turns enough for every percentile; None: none is needed.

        Few turns end in a short probe of few sessions: without it a low capacity would always be inconclusive.
        """
        held = next((probe for probe in search.probes if probe.load == search.low), None)
        left_s = self.options.duration_s - self._spent_s() - _CERTIFY_MARGIN_S
        if held is None or held.turns_per_s <= 0 or len(search.probes) + len(search.spoilt) >= PROBES_MAX:
            return None
        needed = max((samples_needed(t.percentile) for t in self.thresholds if t.percentile is not None), default=0)
        duration_s = min(left_s, _CERTIFY_ROOM * needed / held.turns_per_s)
        if held.good >= needed or duration_s < probe_s(self.options) or self._should_stop():
            return None
        phase = probe_phase(self.options, search.low, self.target.tenants, duration_s=duration_s)
        return phase.model_copy(update={"label": f"{phase.label}, longer"})

    def _bound_reached(self) -> str | None:
        """A probe that an upper bound cut short says nothing about the service."""
        bounds = self.driver.file.remarks_of("bound")
        return f"the upper bound of {bounds[-1].get('kind')} was reached" if bounds else None


def _describe(phase: Phase, planned: int | None) -> str:
    what = f"{planned} turns planned" if planned is not None else "sessions at their own pace"
    return f"{phase.label}: {round(phase.duration_s, 1):g} s, {what}"
