"""Names what gives way first at a load that does not hold: the binding constraint, with the evidence. Pure.

The order is from what names itself (a refusal's code, a limit that was reached) over what is used up (processors) to
what has to be inferred (who was slow). The first is looked for from the knee upwards; only where no load beyond it
shows any of that, slowness is looked at: a service that is short of CPU reads its model's answers late, so the model
seems slow long before a core is full. Places for turns or sessions are full at any overload, whatever its cause: they
bind only where the turns that hold them are as quick as a turn alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from agentao_gov.config.units import format_bytes
from agentao_gov.loadtest.probes import ProbeResult

__all__ = ["GENERATOR_CPU", "NOT_THE_SERVICE", "binding_constraint", "generator_name"]

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

_Rule = Callable[[ProbeResult, ProbeResult], str | None]


def binding_constraint(beyond: Sequence[ProbeResult], alone: ProbeResult) -> tuple[str, str]:
    """What gave way first, and the evidence for it.

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
