"""The capacity search: the largest number of busy sessions that meets the objectives, in few probes.

Operational analysis tells where to look: N sessions that never pause, each taking R seconds a turn where nothing waits,
give N/R turns a second until something saturates at X; so saturation begins at N* = X·R (Little 1961). A low probe
measures R, a saturated one X, and bisection around N* settles it. What gives way first beyond it is named with the
evidence. Pure: the caller runs the probes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from agentao_gov.config.units import format_bytes
from agentao_gov.loadtest.record import CAPACITY_OUTCOMES

#: Refusals, the model's too, and turns that took too long: slowness has a cause of its own.
_NO_ERRORS = CAPACITY_OUTCOMES | {
    "model_error",
    "turn_timeout",
    "client_timeout",
    "stuck",
    "unfinished",
    "cancelled",
}
#: One error in thousands is an accident.
_FAILING_SHARE = 0.01
_GENERATOR, GENERATOR_CPU = "the load generator", "CPU of the load generator"
_OTHERS = "other programs on this machine"
#: With these the service may well hold more: nobody asked it to, or nobody let it.
NOT_THE_SERVICE = frozenset({_GENERATOR, GENERATOR_CPU, _OTHERS})
#: A core in use by so much has nothing left to give: what shares it takes turns.
_CPU_FULL = 0.85
_MACHINE_FULL = 0.95
#: Other programs that use less of the machine are its noise.
_OTHERS_SHARE = 0.2
#: Two CPU figures that differ by less say nothing about which of the two was full first.
_CPU_NOISE = 0.05
_NEAR_LIMIT = 0.95
#: The model is slower under load when a turn's share of it takes longer by this factor's inverse.
_EFFICIENCY = 0.93
#: Places give at least this share of the turns per second that they would if each turn took as long as one alone.
_PLACES_USED = 0.8
#: A single late refusal, or one error in thousands, is not what binds.
_SHARE_MIN = 0.01
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


@dataclass(frozen=True, slots=True)
class Resources:
    """What the service and the generator had at hand during a probe; None where it was not seen."""

    busy: int | None = None
    busy_max: int | None = None
    sessions: int | None = None
    #: Of them at work: an idle one makes room for another session, so it cannot be what is short.
    sessions_held: int | None = None
    sessions_max: int | None = None
    queue: int | None = None
    mcp_processes: int | None = None
    memory_bytes: int | None = None
    memory_max_bytes: int | None = None
    #: Who set that limit: the capacity plan, a control group, the machine.
    memory_max_by: str | None = None
    #: Processes that the kernel killed for want of memory meanwhile.
    oom_kills: int | None = None
    fds: int | None = None
    fds_max: int | None = None
    #: Of one core, the process that serves: its Python runs on one at a time.
    service_cpu: float | None = None
    #: Cores' worth, the service with everything below it; and the cores that it may run on.
    service_cores: float | None = None
    cores: int | None = None
    #: Of these cores, by whomever: 1.0 is all of them.
    machine_cpu: float | None = None
    #: Of one core: used by the generator, and waited for while other programs had it.
    generator_cpu: float | None = None
    generator_wait: float | None = None
    #: Of one core, the simulated model where this run started one.
    model_cpu: float | None = None
    #: Mean milliseconds the model took per turn, in the service's own words.
    model_ms: float | None = None

    @property
    def others_cores(self) -> float:
        """Cores' worth that neither service, generator nor simulated model used of the service's cores; at least."""
        known = (self.service_cores or 0.0) + (self.generator_cpu or 0.0) + (self.model_cpu or 0.0)
        return max(0.0, (self.machine_cpu or 0.0) * (self.cores or 0) - known)

    @property
    def over_memory(self) -> bool:
        """More than there is, or than the service is meant to use."""
        return bool(self.memory_bytes and self.memory_max_bytes and self.memory_bytes > self.memory_max_bytes)


@dataclass(frozen=True, slots=True)
class ProbeResult:
    """One constant load of `load` busy sessions, measured."""

    load: int
    #: Turns that were answered, and all that ended.
    good: int
    total: int
    #: Answered turns per second.
    turns_per_s: float
    #: Mean seconds of an answered turn; None without one.
    mean_s: float | None
    #: Objectives that were missed, as expressions.
    missed: tuple[str, ...] = ()
    #: Refusals and errors by outcome.
    refusals: dict[str, int] = field(default_factory=dict)
    #: What the most frequent error said.
    error: str = ""
    resources: Resources = Resources()
    #: Why the service is gone; None: it outlived the probe.
    died: str | None = None
    #: Why the probe says nothing about the service: the generator gave in.
    generator_bound: str | None = None
    #: The same, because an upper bound ended it early.
    cut_short: str | None = None

    @property
    def errors(self) -> dict[str, int]:
        """Turns that failed, neither refused for want of room nor ended by a limit of time."""
        return {name: count for name, count in self.refusals.items() if name not in _NO_ERRORS}

    @property
    def failing(self) -> bool:
        """Whether so many failed that the answered ones say little of what the service could do."""
        return sum(self.errors.values()) >= max(1.0, _FAILING_SHARE * self.total)

    @property
    def spoilt(self) -> bool:
        """Whether it says nothing about the service."""
        return self.generator_bound is not None or self.cut_short is not None


_Rule = Callable[[ProbeResult, ProbeResult], str | None]


def binding_constraint(beyond: Sequence[ProbeResult], alone: ProbeResult) -> tuple[str, str]:
    """What gave way first, and the evidence for it.

    The order is from what names itself (a refusal's code, a limit that was reached) over what is used up (processors)
    to what has to be inferred (who was slow). The first is looked for from the knee upwards; slowness only where no
    load beyond it shows any of that: a service that is short of CPU reads its model's answers late, so the model seems
    slow long before a core is full. Places for turns or sessions are full at any overload, whatever its cause: they
    bind only where the turns that hold them are as quick as a turn alone.

    Args:
        beyond: the probes that did not hold, by their load; not empty. alone: the lowest load's probe.
    """
    for rules in (_SEEN, _INFERRED):
        for probe in beyond:
            for name, rule in rules:
                evidence = rule(probe, alone)
                if evidence is not None:
                    return name, evidence
    first = beyond[0]
    if first.missed:
        return f"objective {first.missed[0]}", f"missed at {first.load} sessions; no resource was at its limit"
    return "unknown", f"turns take longer at {first.load} sessions, and no resource was seen at its limit"


def generator_name(probe: ProbeResult) -> str:
    """What a generator that gave in was short of."""
    return _GENERATOR if _generator_cpu(probe, probe) is None else GENERATOR_CPU


def _refused(*codes: str) -> _Rule:
    def rule(beyond: ProbeResult, _alone: ProbeResult) -> str | None:
        count = sum(beyond.refusals.get(code, 0) for code in codes)
        if count == 0 or count < _SHARE_MIN * beyond.total:
            return None
        names = ", ".join(code for code in codes if beyond.refusals.get(code))
        return f"{count} of {beyond.total} turns ended with {names} at {beyond.load} sessions"

    return rule


def _places(what: str, used: str, limit: str, *, at_full_speed: bool) -> _Rule:
    """All places taken; `at_full_speed`: by turns that nothing else holds up (N = X·R, Little 1961)."""

    def rule(beyond: ProbeResult, alone: ProbeResult) -> str | None:
        value, most = getattr(beyond.resources, used), getattr(beyond.resources, limit)
        if value is None or not most or value < most:
            return None
        if at_full_speed and beyond.turns_per_s * (alone.mean_s or 0.0) < _PLACES_USED * most:
            return None
        return f"{what} at {value} of {most} with {beyond.load} sessions"

    return rule


def _memory(beyond: ProbeResult, _alone: ProbeResult) -> str | None:
    seen = beyond.resources
    if seen.oom_kills:
        return f"the kernel killed {seen.oom_kills} processes for memory at {beyond.load} sessions"
    if not seen.memory_bytes or not seen.memory_max_bytes or seen.memory_bytes < _NEAR_LIMIT * seen.memory_max_bytes:
        return None
    limit = f"{_size(seen.memory_max_bytes)}{f' ({seen.memory_max_by})' if seen.memory_max_by else ''}"
    return f"memory at {_size(seen.memory_bytes)} of {limit} with {beyond.load} sessions"


def _size(size: int) -> str:
    """Whole mebibytes, where there are any."""
    return format_bytes(size // 1024**2 * 1024**2 or size)


def _descriptors(beyond: ProbeResult, _alone: ProbeResult) -> str | None:
    used, most = beyond.resources.fds, beyond.resources.fds_max
    if used is None or not most or used < _NEAR_LIMIT * most:
        return None
    return f"descriptors at {used} of {most} with {beyond.load} sessions"


def _generator_cpu(beyond: ProbeResult, _alone: ProbeResult) -> str | None:
    """It had no time left, whether it used all of it or others did; unless the service had even less."""
    seen = beyond.resources
    used, waited = seen.generator_cpu or 0.0, seen.generator_wait or 0.0
    if used + waited < _CPU_FULL or used + waited < (seen.service_cpu or 0.0) - _CPU_NOISE:
        return None
    lacked = f" and {waited:.0%} waited for" if waited >= _CPU_NOISE else ""
    return f"{used:.0%} of a core{lacked} at {beyond.load} sessions"


def _service_cpu(beyond: ProbeResult, _alone: ProbeResult) -> str | None:
    seen = beyond.resources
    if seen.service_cpu is not None and seen.service_cpu >= _CPU_FULL:
        return f"{seen.service_cpu:.0%} of a core at {beyond.load} sessions"
    if seen.service_cores is not None and seen.cores and seen.service_cores >= _CPU_FULL * seen.cores:
        return f"{seen.service_cores:.1f} of {seen.cores} cores at {beyond.load} sessions"
    return None


def _model_cpu(beyond: ProbeResult, _alone: ProbeResult) -> str | None:
    used = beyond.resources.model_cpu
    if used is None or used < _CPU_FULL:
        return None
    return f"the simulated model itself used {used:.0%} of a core at {beyond.load} sessions"


def _others(beyond: ProbeResult, _alone: ProbeResult) -> str | None:
    seen = beyond.resources
    if (seen.machine_cpu or 0.0) < _MACHINE_FULL or seen.others_cores < _OTHERS_SHARE * (seen.cores or 1):
        return None
    return f"they used {seen.others_cores:.1f} of {seen.cores} cores at {beyond.load} sessions, and none was idle"


def _of_machine(who: str) -> _Rule:
    """No core idle, none full of one program alone: the largest of the run's own is what the others wait for."""

    def rule(beyond: ProbeResult, _alone: ProbeResult) -> str | None:
        seen = beyond.resources
        shares = {name: getattr(seen, name) or 0.0 for name in ("service_cores", "generator_cpu", "model_cpu")}
        if (seen.machine_cpu or 0.0) < _MACHINE_FULL or max(shares, key=lambda name: shares[name]) != who:
            return None
        return f"{shares[who]:.1f} of {seen.cores} cores at {beyond.load} sessions, and none was idle"

    return rule


def _model_slowed(beyond: ProbeResult, alone: ProbeResult) -> str | None:
    before, after = alone.resources.model_ms, beyond.resources.model_ms
    if not before or not after or after * _EFFICIENCY < before:
        return None
    return f"the model took {after:.0f} ms a turn at {beyond.load} sessions and {before:.0f} ms at {alone.load}"


def _died(beyond: ProbeResult, _alone: ProbeResult) -> str | None:
    return None if beyond.died is None else f"at {beyond.load} sessions {beyond.died}"


def _failing(beyond: ProbeResult, _alone: ProbeResult) -> str | None:
    errors = beyond.errors
    if not beyond.failing:
        return None
    most = max(errors, key=lambda name: errors[name])
    said = f": {beyond.error}" if beyond.error else ""
    return f"{sum(errors.values())} of {beyond.total} turns failed at {beyond.load} sessions, mostly with {most}{said}"


_SEEN: Sequence[tuple[str, _Rule]] = (
    ("tenant session cap", _refused("tenant_session_limit")),
    ("user session cap", _refused("user_session_limit")),
    ("token budget", _refused("budget_exhausted", "budget_impossible")),
    ("memory", _memory),
    ("descriptors", _descriptors),
    ("the service's death", _died),
    ("model", _refused("model_error", "rate_limited")),
    ("max_sessions", _places("sessions at work", "sessions_held", "sessions_max", at_full_speed=True)),
    ("max_busy", _places("busy turns", "busy", "busy_max", at_full_speed=True)),
    (GENERATOR_CPU, _generator_cpu),
    ("CPU of the service", _service_cpu),
    ("model", _model_cpu),
    (_OTHERS, _others),
    ("CPU of the service", _of_machine("service_cores")),
    (GENERATOR_CPU, _of_machine("generator_cpu")),
    ("model", _of_machine("model_cpu")),
)
_INFERRED: Sequence[tuple[str, _Rule]] = (
    ("model", _model_slowed),
    ("max_sessions", _places("sessions at work", "sessions_held", "sessions_max", at_full_speed=False)),
    ("max_busy", _places("busy turns", "busy", "busy_max", at_full_speed=False)),
    ("queue", _refused("queue_full", "queue_timeout", "refused")),
    ("failing turns", _failing),
)


def wilson(good: int, total: int) -> tuple[float, float]:
    """Wilson's 95 % interval of the share `good` of `total` (1927); (0, 1) without samples."""
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
        """The report's `capacity.knee`."""
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
        """Searches up to `ceiling` busy sessions, in at most `probes_max` probes."""
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
        """Says what the probes so far have shown."""
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
