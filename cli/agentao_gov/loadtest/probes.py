"""One probe of a capacity search: a constant load, what came of it, and what was at hand meanwhile. Values only."""

from __future__ import annotations

from dataclasses import dataclass, field

from agentao_gov.loadtest.samples import CAPACITY_OUTCOMES

__all__ = ["ProbeResult", "Resources"]

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
