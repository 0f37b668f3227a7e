"""Turns a probe of a capacity search that was played into what the search looks at."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from agentao_gov.loadtest.limits import Limits
from agentao_gov.loadtest.measure import generator_figures, measure, steady_rate, sustained_cpu
from agentao_gov.loadtest.options import PROBE_RAMP_SHARE
from agentao_gov.loadtest.probes import ProbeResult, Resources
from agentao_gov.loadtest.recording import PhaseRecord
from agentao_gov.loadtest.samples import Status, TurnSample
from agentao_gov.loadtest.series import ServerRow
from agentao_gov.loadtest.thresholds import Observation, Threshold, evaluate

__all__ = ["Probing"]

#: The start of a probe is left out of what was at hand: its sessions are still coming.
_STEADY_SHARE = 0.3


@dataclass(frozen=True, slots=True)
class Probing:
    """What is the same for every probe of a search."""

    mix: Mapping[str, float]
    api: str
    thresholds: Sequence[Threshold]
    limits: Limits

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
