"""What a user asked of a load test, checked, and the plan that follows from it. Pure but for reading profiles.

What is known before a turn is sent is said here: who may be loaded with what, how much at most, and which thresholds
this run cannot decide.
"""

from __future__ import annotations

import math
import os
import secrets
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from agentao_gov.config import ResolvedDeployment, ResolvedProfile, load_profile
from agentao_gov.errors import ConfigError, UsageError
from agentao_gov.loadtest.capacity import GROWTH, PROBES_MAX
from agentao_gov.loadtest.plan import Estimate, LoadPlan, LoadStream, Phase
from agentao_gov.loadtest.schedule import Process, RecordedTurn, Shape, expected_count, mix_of, segments, span_s
from agentao_gov.loadtest.thresholds import DEFAULTS, Threshold, parse_threshold, samples_needed

DEFAULT_MIX = {"qa": 8.0, "code": 1.0, "research": 1.0}
_RATE_DEFAULT = 5.0
_TIERS = ("interactive", "background", "batch")
#: What a client adds to the service's own limits before it gives up: the answer must have had its chance.
_PATIENCE_S = 5.0
#: Every turn's raw record is kept, about a kilobyte each; and a mistyped rate is found before it is played.
_TURNS_MAX = 2_000_000
#: What one generator holds connections for.
_USERS_MAX = 20_000
_REPLAY_S_MAX = 86_400.0
#: Where a search ends when nothing gives way and nobody set --users.
CEILING = 1024
#: Each probe pays for its own start, drain and the deletion of its sessions.
_PROBE_SHARE = 0.8
_PROBE_S_MIN = 2.0
_PROBE_DRAIN_S = 10.0
#: Share of a probe in which its sessions start.
PROBE_RAMP_SHARE = 0.15
#: An upper bound where the user set none: so many times what the plan comes to. A schedule can never exceed its plan; a
#: closed loop does where the service is quicker than the nominal turn.
_BOUND_FACTOR, _BOUND_FACTOR_CLOSED = 2, 10
_TURNS_LEAST, _TOKENS_LEAST = 100, 1_000_000
#: Prompts and answers of a real model differ more from the estimate than the number of turns does.
_TOKENS_FACTOR = 5
_OF_PROCESSES = ("memory_peak", "memory_slope", "fds_leaked", "processes_leaked", "threads_leaked")


@dataclass(frozen=True, slots=True)
class LoadOptions:
    """The command's flags. `None` where the user said nothing."""

    config: Path | None = None
    target: str | None = None
    api: Literal["native", "openai"] = "native"
    api_key_env: str | None = None
    #: Whose key `--target` takes, or the one tenant of the deployment to load; None: `default`, or all of them.
    tenant: str | None = None
    model_flags: Mapping[str, str] = field(default_factory=dict)
    mix: Mapping[str, float] = field(default_factory=lambda: dict(DEFAULT_MIX))
    #: Whether the user chose the mix; else it bends to what a recording has, or tenants may use.
    mix_given: bool = False
    shape: Shape = "constant"
    users: int | None = None
    rate: float | None = None
    spawn_rate: float | None = None
    duration_s: float = 60.0
    drain_s: float | None = None
    process: Process = "poisson"
    thresholds: Sequence[str] = ()
    workers: int = 1
    #: Address to bind for workers on other machines; None: workers are local.
    bind: str | None = None
    seed: int = 0
    checklist: bool = True
    web_port: int | None = None
    report_dir: Path | None = None
    baseline: Path | None = None
    max_regression: float = 0.05
    force: bool = False
    owned: bool = False
    keep_budgets: bool = False
    turns_per_session: int | None = None
    think_scale: float = 1.0
    first_token_s: float = 0.2
    per_token_s: float = 0.005
    max_turns: int | None = None
    max_tokens: int | None = None
    price: tuple[float, float] | None = None
    victim: str | None = None
    victim_rate: float = 1.0
    faults: Path | None = None
    replay: Path | None = None
    replay_speed: float = 1.0
    #: Recorded turns that would start later are left out; None: all are played.
    replay_until_s: float | None = None
    write: bool = False

    @property
    def open_loop(self) -> bool:
        """Whether turns follow a schedule; with `--users` alone they follow the sessions' own pace."""
        return self.replay is not None or (self.shape != "capacity" and (self.rate is not None or self.users is None))

    @property
    def level(self) -> float:
        """Turns per second, or sessions."""
        if self.open_loop:
            return self.rate if self.rate is not None else _RATE_DEFAULT
        return float(self.users or 1)

    def check(self) -> None:
        """Raises UsageError for flags that make no sense together, and for loads that nobody can mean."""
        if self.victim is not None and self.target is not None:
            raise UsageError("--victim needs the tenants' keys, which only a service started here gives.")
        if self.faults is not None and self.target is not None:
            raise UsageError("--faults plays at the simulator and the service started here, not at --target.")
        if self.target is not None and self.model_flags:
            raise UsageError(
                f"{next(iter(self.model_flags))} is for a service started here; --target has its own model."
            )
        if self.shape == "capacity":
            self._check_search()
        if self.replay is not None and (self.shape != "constant" or self.rate or self.users or self.victim):
            raise UsageError("--replay brings its own arrivals: --shape, --rate, --users and --victim have no place.")
        if self.spawn_rate is not None and self.open_loop and (self.shape != "constant" or self.replay is not None):
            raise UsageError("--spawn-rate is for --shape constant and for --users; this load has its own rise.")
        if self.workers < 1:
            raise UsageError("--workers is at least 1.")
        if self.write and self.shape != "capacity":
            raise UsageError("--write needs --shape capacity: only a search finds a capacity to write.")
        if self.report_dir is not None and self.report_dir.exists() and not self.report_dir.is_dir():
            raise UsageError(f"--report {self.report_dir} is a file, not a directory.")
        self._check_size()

    def _check_search(self) -> None:
        if self.rate is not None:
            raise UsageError(
                "--shape capacity searches the number of busy sessions; --rate has no place in it.",
                hint="--users N sets the ceiling of the search.",
            )
        for flag, value in (("--victim", self.victim), ("--faults", self.faults)):
            if value is not None:
                raise UsageError(f"{flag} has no place in a search for the capacity.", hint="Run it with --rate.")

    def _check_size(self) -> None:
        if self.users is not None and self.users > _USERS_MAX:
            raise UsageError(f"--users is at most {_USERS_MAX:,}, not {self.users:,}.")
        if not self.open_loop or self.replay is not None:
            return
        turns = expected_count(segments(self.shape, self.level, self.duration_s))
        if turns > _TURNS_MAX:
            raise UsageError(
                f"--rate {self.level:g} for {self.duration_s:g} s is {turns:,.0f} turns; the most is {_TURNS_MAX:,}.",
                hint="Lower --rate, or shorten --duration.",
            )


def parse_mix(text: str) -> dict[str, float]:
    """Reads `qa=8,code=1,research=1`; a bare name weighs 1. Raises UsageError."""
    mix: dict[str, float] = {}
    for part in filter(None, (piece.strip() for piece in text.split(","))):
        name, _, weight = part.partition("=")
        try:
            mix[name.strip()] = float(weight) if weight else 1.0
        except ValueError:
            raise UsageError(f"--mix {text!r}: {weight!r} is not a weight.", hint="Write qa=8,code=1.") from None
    if not mix or not all(0 <= weight < math.inf for weight in mix.values()) or not sum(mix.values()) > 0:
        raise UsageError(f"--mix {text!r} names no profile with a positive weight.")
    return {name: weight for name, weight in mix.items() if weight > 0}


def load_profiles(mix: Mapping[str, float], deployment: ResolvedDeployment | None) -> dict[str, ResolvedProfile]:
    """The profiles of the mix. Raises UnknownProfileError, ConfigError."""
    return {name: load_profile(name, deployment=deployment) for name in mix}


def choose_thresholds(
    flags: Sequence[str], configured: Sequence[str], profiles: Mapping[str, ResolvedProfile]
) -> tuple[Threshold, ...]:
    """The conditions of this run: those of `flags` and `configured` (a flag wins over the same name), else defaults.

    Defaults are those of the strictest tier among `profiles`. Raises ConfigError for what cannot be read.
    """
    chosen: dict[str, Threshold] = {}
    for text in (*configured, *flags):
        threshold = parse_threshold(text)
        # Both ends of one measure may be bounded.
        chosen[f"{threshold.name}{threshold.op[0]}"] = threshold
    if not chosen:
        tiers = {str(profile.profile.tier) for profile in profiles.values()} or {"interactive"}
        strictest = next((tier for tier in _TIERS if tier in tiers), "interactive")
        return tuple(parse_threshold(text) for text in DEFAULTS[strictest])
    return tuple(chosen.values())


def build_plan(
    options: LoadOptions,
    *,
    target: str,
    profiles: Mapping[str, ResolvedProfile],
    queue_timeout_s: float,
    simulated: bool,
    recording: Sequence[RecordedTurn] | None = None,
) -> LoadPlan:
    """The plan. Profiles that are not known here (a foreign service's) get the defaults.

    Args:
        options: what the user asked for.
        target: the service's address.
        profiles: those of the mix that are known.
        queue_timeout_s: how long the service lets a turn wait for a place.
        simulated: whether the model obeys scripts in prompts.
        recording: what `--replay` holds, as far as it is to be played.
    """
    limits = {name: resolved.profile.limits for name, resolved in profiles.items()}
    capacity = options.shape == "capacity"
    return LoadPlan(
        run_id=secrets.token_hex(4),
        target=target,
        api=options.api,
        shape=options.shape,
        seed=options.seed,
        tasks={name: str(resolved.profile.task) for name, resolved in profiles.items()},
        tools={name: _tool_of(resolved) for name, resolved in profiles.items()},
        timeouts_s={
            name: limit.turn_timeout_s + limit.cancel_grace_s + queue_timeout_s + _PATIENCE_S
            for name, limit in limits.items()
        },
        directives=simulated,
        first_token_s=options.first_token_s,
        per_token_s=options.per_token_s,
        turns_per_session=options.turns_per_session,
        think_scale=0.0 if capacity else options.think_scale,
        variation=not capacity,
        backoff_s_max=0.25 if capacity else 2.0,
        delete_finished=options.shape == "soak",
        workers=options.workers,
        max_turns=options.max_turns,
        max_tokens=options.max_tokens,
        recording=None if recording is None else tuple(recording),
        replay_speed=options.replay_speed,
    )


def _tool_of(resolved: ResolvedProfile) -> str | None:
    """A tool that tool loops may call: quick, harmless, allowed by the profile."""
    return next(
        (name for name in ("glob", "list_directory", "read_file") if name in resolved.profile.tools.allow), None
    )


def build_phase(options: LoadOptions, plan: LoadPlan, tenants: tuple[str, ...], **changes: Any) -> Phase:
    """The one phase of a run that is no search."""
    rise_s = options.level / options.spawn_rate if options.spawn_rate and options.open_loop else 0.0
    duration_s, parts = options.duration_s, segments(options.shape, options.level, options.duration_s, rise_s=rise_s)
    if plan.recording is not None:
        # A moment more than the last start, so that it lies within.
        duration_s = span_s(plan.recording, options.replay_speed) + 1.0
        if duration_s > _REPLAY_S_MAX:
            raise UsageError(
                f"--replay spans {duration_s / 3600:,.1f} hours at speed {options.replay_speed:g}; a day is the most.",
                hint="Raise --speed, or give a --duration: what would start later is left out.",
            )
        parts = segments("constant", len(plan.recording) / duration_s, duration_s)
    stream = LoadStream(
        loop="open" if options.open_loop else "closed",
        segments=parts,
        process=options.process,
        tenants=tenants,
        mix=dict(options.mix),
        population=options.users if options.open_loop else None,
        spawn_rate=None if options.open_loop else options.spawn_rate,
    )
    phase = Phase(duration_s=duration_s, drain_s=drain_s(options, plan), streams=(stream,))
    return phase.model_copy(update=changes)


def probe_s(options: LoadOptions) -> float:
    """Seconds of load of one probe of a capacity search."""
    return max(_PROBE_S_MIN, _PROBE_SHARE * options.duration_s / PROBES_MAX)


def probe_phase(options: LoadOptions, load: int, tenants: tuple[str, ...], *, duration_s: float | None = None) -> Phase:
    """One probe of a capacity search: a constant number of busy sessions. Default length: that of its probes."""
    duration_s = duration_s or probe_s(options)
    stream = LoadStream(
        loop="closed",
        segments=segments("constant", load, duration_s),
        tenants=tenants,
        mix=dict(options.mix),
        spawn_rate=load / (PROBE_RAMP_SHARE * duration_s),
    )
    return Phase(label=probe_label(load), duration_s=duration_s, drain_s=_PROBE_DRAIN_S, streams=(stream,))


def probe_label(load: int) -> str:
    """What a probe's phase is called."""
    return f"{load} sessions"


def planned_phases(options: LoadOptions, plan: LoadPlan, tenants: tuple[str, ...]) -> list[Phase]:
    """What will be played; of a search the probes that it makes where nothing gives way."""
    if options.shape != "capacity":
        return [build_phase(options, plan, tenants)]
    ceiling = options.users or CEILING
    loads = [GROWTH**step for step in range(PROBES_MAX) if GROWTH**step < ceiling]
    return [probe_phase(options, load, tenants) for load in (*loads, ceiling)][:PROBES_MAX]


def drain_s(options: LoadOptions, plan: LoadPlan) -> float:
    """How long turns in flight get at the end: their own limit, but no longer than the run deserves."""
    if options.drain_s is not None:
        return options.drain_s
    longest = max((plan.timeout_s(name) for name in options.mix), default=plan.default_timeout_s)
    return min(longest, max(10.0, options.duration_s / 2))


def api_key(options: LoadOptions) -> str | None:
    """The key for `--target`. Raises ConfigError when the variable is not set."""
    if options.api_key_env is None:
        return None
    key = os.environ.get(options.api_key_env)
    if not key:
        raise ConfigError(f"--api-key-env names {options.api_key_env}, which is not set.")
    return key


def loaded_tenants(options: LoadOptions, deployment: ResolvedDeployment) -> tuple[str, ...]:
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
    options: LoadOptions, deployment: ResolvedDeployment | None, recording: Sequence[RecordedTurn] | None
) -> tuple[LoadOptions, list[str]]:
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


def _barred(options: LoadOptions, deployment: ResolvedDeployment) -> list[tuple[str, str]]:
    """Profile and tenant, where the tenant may not use the profile."""
    settings = deployment.deployment.tenants
    return [
        (profile, tenant)
        for tenant in loaded_tenants(options, deployment)
        if tenant in settings and (allowed := settings[tenant].profiles) is not None
        for profile in options.mix
        if profile not in allowed
    ]


def bounded(plan: LoadPlan, options: LoadOptions, expected: Estimate) -> LoadPlan:
    """The plan with its upper bounds: the options', else a multiple of what is `expected`. Every run has them."""
    factor = _BOUND_FACTOR if options.open_loop else _BOUND_FACTOR_CLOSED
    return plan.model_copy(
        update={
            "max_turns": options.max_turns or max(_TURNS_LEAST, factor * expected.turns),
            "max_tokens": options.max_tokens or max(_TOKENS_LEAST, _TOKENS_FACTOR * factor * expected.tokens),
        }
    )


def undecidable(
    thresholds: Iterable[Threshold], options: LoadOptions, *, planned: int | None, processes: bool
) -> list[str]:
    """Thresholds that this run cannot decide, whatever happens, each with the reason and what would help.

    Args:
        thresholds: the run's.
        options: what the user asked for.
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


def _without_measure(threshold: Threshold, options: LoadOptions, *, processes: bool) -> str | None:
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
