"""The capacity search: the largest number of busy sessions that meets the objectives, in few probes.

Operational analysis tells where to look: N sessions that never pause, each taking R seconds a turn where nothing waits,
give N/R turns a second until something saturates at X; so saturation begins at N* = X·R (Little 1961). A low probe
measures R, a saturated one X, and bisection around N* settles it. Pure: the caller runs the probes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from agentao_gov.loadtest.binding import NOT_THE_SERVICE, binding_constraint, generator_name
from agentao_gov.loadtest.probes import ProbeResult

__all__ = ["GROWTH", "PROBES_MAX", "CapacityResult", "CapacitySearch", "wilson"]

PROBES_MAX = 10
#: Throughput has a ceiling below a load where each session gets less than this share of the turns it gets alone.
_SATURATED = 0.9
#: A load that gets less than this share of the turns per second of a smaller one has brought the service down.
_COLLAPSED = 0.7
#: How finely the knee is fitted.
_KNEE_STEP = 1.01
#: Two loads that give each session the same turns, but for noise.
_AGREE = 0.04
#: The interval is narrow enough at one session or this share.
_TOLERANCE = 0.05
#: How far beyond the estimated knee a load may be and still count as at it.
_KNEE_NOISE = 0.03
#: Loads grow by this factor until one does not hold.
GROWTH = 4
_Z = 1.96
#: Share of good turns a load must keep, with the interval's upper end: fewer is surely too much.
_GOOD_SHARE = 0.99


def wilson(good: int, total: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share (1927); (0, 1) without samples."""
    if total == 0:
        return 0.0, 1.0
    share, z2 = good / total, _Z**2
    centre = (share + z2 / (2 * total)) / (1 + z2 / total)
    half = _Z * math.sqrt(share * (1 - share) / total + z2 / (4 * total**2)) / (1 + z2 / total)
    return max(0.0, centre - half), min(1.0, centre + half)


@dataclass(frozen=True, slots=True)
class CapacityResult:
    """What the search found. `sessions` None: even one session is too much."""

    sessions: int | None
    turns_per_s: float | None
    #: The knee lies in [low, high); high None: no limit was met up to the ceiling.
    low: int
    high: int | None
    bottleneck: str
    evidence: str
    probes: tuple[ProbeResult, ...]
    #: `found`, `unlimited` (up to the ceiling), `unattainable`, `unclear` (the generator gave in, or time ran out).
    outcome: str

    def knee(self) -> dict[str, object]:
        """For the report."""
        return {
            "sessions": self.sessions,
            "turns_per_s": self.turns_per_s,
            "interval": [self.low, self.high],
            "outcome": self.outcome,
            "evidence": self.evidence,
        }


class CapacitySearch:
    """Says which load to probe next. Use: while (load := next_load()) is not None: record(probe(load))."""

    def __init__(self, *, ceiling: int, probes_max: int = PROBES_MAX) -> None:
        self._ceiling = ceiling
        self._probes_max = probes_max
        self.probes: list[ProbeResult] = []
        #: Probes in which the generator gave in, or an upper bound was reached: they say nothing about the service.
        self.spoilt: list[ProbeResult] = []
        #: The knee that was fitted last, and to how many probes.
        self._knee: tuple[int, float] | None = None

    def record(self, probe: ProbeResult) -> None:
        """Takes a probe's result. Where it was spoilt, the search stays below that load."""
        if probe.spoilt:
            self.spoilt.append(probe)
            self._ceiling = min(self._ceiling, probe.load - 1)
        else:
            self.probes.append(probe)

    @property
    def low(self) -> int:
        """The largest load known to hold, below any that does not; 0: none yet."""
        high = self.high
        return max(
            (probe.load for probe in self.probes if self.holds(probe) and (high is None or probe.load < high)),
            default=0,
        )

    @property
    def high(self) -> int | None:
        """The smallest load known not to hold."""
        return min((probe.load for probe in self.probes if not self.holds(probe)), default=None)

    def holds(self, probe: ProbeResult) -> bool:
        """Whether the load met the objectives and more of it would still pay in turns per second."""
        knee = self.knee_load()
        return self._objectives_met(probe) and (knee is None or probe.load <= knee * (1 + _KNEE_NOISE))

    @staticmethod
    def _objectives_met(probe: ProbeResult) -> bool:
        if probe.missed or probe.total == 0 or probe.died is not None or probe.resources.over_memory:
            return False
        return wilson(probe.good, probe.total)[1] >= _GOOD_SHARE

    def knee_load(self) -> float | None:
        """N* = X·R, where the line of no waiting meets the ceiling of turns per second; None: no ceiling seen."""
        alone_s = self._alone_s()
        if alone_s is None or not any(self._efficiency(probe) < _SATURATED for probe in self._telling()):
            return None
        if self._knee is None or self._knee[0] != len(self.probes):
            self._knee = (len(self.probes), self._fit(alone_s))
        return self._knee[1]

    def _fit(self, alone_s: float) -> float:
        """The knee K for which min(load, K) sessions at work, alone_s a turn, come closest to all rates that were seen.

        Least squares of logarithms, over every probe: the mean of the saturated ones would hang on the overhead of a
        long queue, and the best of them collects the luck of each.
        """
        seen = [(probe.load, probe.turns_per_s * alone_s) for probe in self._telling() if probe.turns_per_s > 0]
        if not seen:
            return 1.0
        steps = math.ceil(math.log(max(load for load, _ in seen)) / math.log(_KNEE_STEP))
        return min(
            (_KNEE_STEP**step for step in range(steps + 1)),
            key=lambda knee: sum(math.log(busy / min(load, knee)) ** 2 for load, busy in seen),
        )

    def _telling(self) -> list[ProbeResult]:
        """The probes that tell where the ceiling is: not those under which the service broke down.

        One that is out of descriptors answers no more turns than it did with half the load; its rate is no ceiling.
        """
        return [
            probe
            for probe in self.probes
            if not probe.failing
            and all(
                probe.turns_per_s >= _COLLAPSED * less.turns_per_s for less in self.probes if less.load < probe.load
            )
        ]

    def _efficiency(self, probe: ProbeResult) -> float:
        """Turns per second against what as many sessions would get if none waited for another."""
        alone_s = self._alone_s()
        return 1.0 if alone_s is None else probe.turns_per_s * alone_s / probe.load

    def _alone_s(self) -> float | None:
        """Mean seconds of a turn at the lowest load that was answered."""
        answered = sorted((p.load, p.mean_s, p.total) for p in self.probes if p.mean_s is not None)
        if not answered:
            return None
        first = answered[0][1]
        # The lowest load ends the fewest turns; those above that agree with it make the estimate steadier.
        agreeing = [(mean, total) for _, mean, total in answered if abs(mean / first - 1) <= _AGREE]
        return sum(mean * total for mean, total in agreeing) / sum(total for _, total in agreeing)

    def next_load(self) -> int | None:
        """The next load to probe; None: done."""
        low, high = self.low, self.high
        if len(self.probes) + len(self.spoilt) >= self._probes_max:
            return None
        if high is None:
            return self._higher(low)
        if (wider := self._to_see_the_ceiling()) is not None:
            return wider
        if high - low <= max(1, math.floor(_TOLERANCE * low)):
            return None
        tried = {probe.load for probe in self.probes}
        knee = self.knee_load()
        if knee is not None:
            step = max(1, math.floor(_TOLERANCE * knee))
            for load in (round(knee), round(knee) + step):
                if low < load < high and load not in tried:
                    return load
        return (low + high) // 2

    def _higher(self, low: int) -> int | None:
        """Four times the load, or half-way (by factors) to where the generator gave in."""
        if low >= self._ceiling or (self.spoilt and low > 0.8 * self._ceiling):
            return None
        if self.spoilt and low:
            return min(self._ceiling, max(low + 1, round(math.sqrt(low * self._ceiling))))
        return min(self._ceiling, max(1, low * GROWTH))

    def _to_see_the_ceiling(self) -> int | None:
        """Twice the largest load, while throughput may still rise there: the knee needs the ceiling itself."""
        largest = max(self.probes, key=lambda probe: probe.load)
        rising = self._efficiency(largest) > 0.5 and self._objectives_met(largest)
        return min(self._ceiling, largest.load * 2) if rising and largest.load < self._ceiling else None

    def result(self) -> CapacityResult:
        """What is known now."""
        low, high = self.low, self.high
        at_knee = next((probe for probe in self.probes if probe.load == low), None)
        name, evidence = self._constraint()
        if high is None and self.spoilt:
            outcome, (name, evidence) = "unclear", _spoilt_by(self.spoilt[-1])
        elif name in NOT_THE_SERVICE:
            outcome = "unclear"
        elif low == 0:
            outcome = "unattainable" if self.probes else "unclear"
        elif high is None:
            outcome = "unlimited" if low >= self._ceiling else "unclear"
        else:
            outcome = "found"
        return CapacityResult(
            sessions=self._sessions(low),
            turns_per_s=round(at_knee.turns_per_s, 3) if at_knee else None,
            low=low,
            high=high,
            bottleneck=name,
            evidence=evidence,
            probes=(*self.probes, *self.spoilt),
            outcome=outcome,
        )

    def _sessions(self, low: int) -> int | None:
        """The largest load that holds, or the knee itself where the probes agree that it lies just below."""
        knee = self.knee_load()
        near = knee is not None and low > 1 and abs(low - knee) <= max(1, _TOLERANCE * knee)
        return max(1, min(low, round(knee))) if near and knee is not None else low or None

    def _constraint(self) -> tuple[str, str]:
        high = self.high
        if high is None:
            return "none", f"nothing gave way up to {self.low} sessions"
        first = min(self.probes, key=lambda probe: probe.load)
        beyond = [probe for probe in self.probes if probe.load >= high and not self.holds(probe)]
        return binding_constraint(sorted(beyond, key=lambda probe: probe.load), first)


def _spoilt_by(probe: ProbeResult) -> tuple[str, str]:
    """What ended a search that never saw the service give way."""
    if probe.generator_bound is None:
        return "an upper bound of this run", str(probe.cut_short)
    return generator_name(probe), probe.generator_bound
