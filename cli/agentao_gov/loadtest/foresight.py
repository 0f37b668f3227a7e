"""What is known before a turn is sent: who may be loaded with what, how much at most, and which thresholds cannot tell.

Pure. Each answer saves a run that could only have ended in a refusal, a bill or a shrug.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from agentao_gov.config import ResolvedDeployment
from agentao_gov.errors import ConfigError
from agentao_gov.loadtest.options import Options
from agentao_gov.loadtest.plan import Estimate, LoadPlan
from agentao_gov.loadtest.replay import RecordedTurn, mix_of
from agentao_gov.loadtest.thresholds import Threshold, samples_needed

__all__ = ["bounded", "loaded_tenants", "settle_mix", "undecidable"]

#: An upper bound where the user set none: so many times what the plan comes to. A schedule can never exceed its plan; a
#: closed loop does where the service is quicker than the nominal turn.
_BOUND_FACTOR, _BOUND_FACTOR_CLOSED = 2, 10
_TURNS_LEAST, _TOKENS_LEAST = 100, 1_000_000
#: Prompts and answers of a real model differ more from the estimate than the number of turns does.
_TOKENS_FACTOR = 5

_OF_PROCESSES = ("memory_peak", "memory_slope", "fds_leaked", "processes_leaked", "threads_leaked")


def loaded_tenants(options: Options, deployment: ResolvedDeployment) -> tuple[str, ...]:
    """The deployment's tenants that this run will load. Raises ConfigError for one that is not there."""
    named = tuple(name for name in deployment.deployment.tenants if name != "default")
    there = f"There are: {', '.join(named)}." if named else "It names none; leave --tenant and --victim out."
    for flag, name in (("--tenant", options.tenant), ("--victim", options.victim)):
        known = named or ("default",)
        if name is not None and name not in known:
            raise ConfigError(f"{flag} {name}: the deployment has no tenant {name!r}.", hint=there)
    if options.victim is not None and (len(named) < 2 or options.tenant is not None):
        raise ConfigError(
            "--victim is measured beside the load of other tenants, and there are none.",
            hint="`agentao-gov tenant new NAME` adds one; --tenant leaves all others out.",
        )
    return (options.tenant,) if options.tenant is not None else named or ("default",)


def settle_mix(
    options: Options, deployment: ResolvedDeployment | None, recording: Sequence[RecordedTurn] | None
) -> tuple[Options, list[str]]:
    """The options with the mix that will be played, and what to say about it.

    A mix that nobody chose follows the recording, and leaves out what a tenant may not use. Raises ConfigError for a
    chosen one that a tenant may not use.
    """
    notes: list[str] = []
    recorded = mix_of(recording or ())
    if recorded and not options.mix_given:
        options = replace(options, mix=recorded)
    elif others := sorted(set(recorded) - set(options.mix)):
        notes.append(f"recorded turns of {', '.join(others)} are played as {next(iter(options.mix))}")
    if deployment is None or options.target is not None:
        return options, notes
    barred = _barred(options, deployment)
    if not barred:
        return options, notes
    name, tenant = barred[0]
    kept = {profile: weight for profile, weight in options.mix.items() if profile not in {p for p, _ in barred}}
    if options.mix_given or not kept:
        allowed = deployment.deployment.tenants[tenant].profiles or []
        raise ConfigError(
            f"Tenant {tenant} may not use profile {name}.",
            hint=f"It may use {', '.join(allowed) or 'none'}: --mix {','.join(f'{p}=1' for p in allowed) or '…'}",
        )
    left_out = ", ".join(sorted({profile for profile, _ in barred}))
    notes.append(f"mix: without {left_out}, which not every tenant may use")
    return replace(options, mix=kept), notes


def _barred(options: Options, deployment: ResolvedDeployment) -> list[tuple[str, str]]:
    """Profile and tenant, where the tenant may not use the profile."""
    settings = deployment.deployment.tenants
    return [
        (profile, tenant)
        for tenant in loaded_tenants(options, deployment)
        if tenant in settings and (allowed := settings[tenant].profiles) is not None
        for profile in options.mix
        if profile not in allowed
    ]


def bounded(plan: LoadPlan, options: Options, expected: Estimate) -> LoadPlan:
    """The plan with its upper bounds: the user's, else a multiple of what it should come to. Every run has them."""
    factor = _BOUND_FACTOR if options.open_loop else _BOUND_FACTOR_CLOSED
    return plan.model_copy(
        update={
            "max_turns": options.max_turns or max(_TURNS_LEAST, factor * expected.turns),
            "max_tokens": options.max_tokens or max(_TOKENS_LEAST, _TOKENS_FACTOR * factor * expected.tokens),
        }
    )


def undecidable(
    thresholds: Iterable[Threshold], options: Options, *, planned: int | None, processes: bool
) -> list[str]:
    """Thresholds that this run cannot decide, whatever happens, each with the reason and what would help.

    Args:
        planned: turns of the schedule; None where nobody knows yet (a closed loop, a search).
        processes: whether the service's processes are on this machine.
    """
    known = [value for value in (planned, options.max_turns) if value is not None]
    most = min(known, default=None)
    found = []
    for threshold in thresholds:
        reason = _without_measure(threshold, options, processes=processes)
        if reason is None and threshold.percentile is not None and most is not None:
            needed = samples_needed(threshold.percentile)
            if most < needed:
                reason = (
                    f"p{threshold.percentile:g} needs {needed:,} turns and {most:,} are planned: a longer --duration"
                )
        if reason is not None:
            found.append(f"{threshold.expression} cannot be decided: {reason}")
    return found


def _without_measure(threshold: Threshold, options: Options, *, processes: bool) -> str | None:
    name = threshold.name
    if name == "isolation_p95" and options.victim is None:
        return "it compares a tenant alone and beside the load: --victim TENANT"
    if name == "cost" and options.price is None:
        return "nobody said what tokens cost: --price IN,OUT"
    if name in _OF_PROCESSES and not processes:
        return "the service's processes are not on this machine"
    if name == "orphans" and options.target is not None:
        return "a service that is not started here is not ended here"
    if name == "budget_overshoot" and (options.target is not None or options.model_flags):
        return "only the simulated model counts what was really used"
    return None
