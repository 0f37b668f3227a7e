"""One load test from its flags to its report: checklist, target, generator, measurement, verdict."""

from __future__ import annotations

import json
import math
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from agentao_gov.config import ResolvedDeployment, ResolvedProfile, is_loopback, load_deployment
from agentao_gov.errors import ConfigError, GovError, InternalError
from agentao_gov.loadtest.compare import check_comparable, compare_reports, read_report
from agentao_gov.loadtest.document import LoadTestReport
from agentao_gov.loadtest.driver import LoadDriver, check_port
from agentao_gov.loadtest.execution import Execution
from agentao_gov.loadtest.faults import FaultPlayer, load_faults
from agentao_gov.loadtest.options import (
    LoadOptions,
    api_key,
    bounded,
    build_plan,
    choose_thresholds,
    load_profiles,
    loaded_tenants,
    planned_phases,
    settle_mix,
    undecidable,
)
from agentao_gov.loadtest.plan import Estimate, LoadPlan, Phase, estimate
from agentao_gov.loadtest.report import Findings, assemble, environment, plan_part
from agentao_gov.loadtest.schedule import RecordedTurn, load_replay, until
from agentao_gov.loadtest.server_series import ServerSeries
from agentao_gov.loadtest.target import (
    ServiceLimits,
    Target,
    check_ownership,
    existing_target,
    limits_of,
    own_target,
    promised,
    promised_by,
)
from agentao_gov.loadtest.thresholds import SOAK_DEFAULTS, Threshold, parse_threshold
from agentao_gov.loadtest.view import Stop, View
from agentao_gov.testrig.guarded import Guarded, private_folder

#: Daily budgets hold this many times what the plan should use, so that luck does not exhaust them.
_BUDGET_ROOM = 20
#: After the load, how long the service gets to put things away before the last look.
_SETTLE_S_MIN, _SETTLE_S_MAX = 3.0, 12.0
_SETTLED_ROWS = 6
#: Sessions that live no longer are waited for, to see that they go.
_TTL_S_MAX = 30.0
_CHECKLIST_S_MAX, _CHECKLIST_STOP_S_MAX = 300.0, 30.0
#: The plan's target while nothing has been started.
_NOWHERE = "http://127.0.0.1"


@dataclass(frozen=True, slots=True)
class DryRun:
    """What a load test would do: its schedule, and what it should come to. Nothing is started for it."""

    plan: LoadPlan
    estimate: Estimate
    thresholds: tuple[str, ...]
    schedule: tuple[dict[str, float], ...]
    #: What is known already: thresholds that cannot be decided.
    warnings: tuple[str, ...] = ()
    #: Per million prompt and completion tokens.
    price: tuple[float, float] | None = None

    @property
    def cost(self) -> float | None:
        """The bill; None where nobody stated a price."""
        return self.estimate.cost(*self.price) if self.price else None

    def to_dict(self) -> dict[str, Any]:
        """What `--format json` prints of a dry run."""
        return {
            "dry_run": True,
            "duration_s": self.estimate.duration_s,
            "turns": self.estimate.turns,
            "sessions": self.estimate.sessions,
            "llm_calls": self.estimate.llm_calls,
            "prompt_tokens": self.estimate.prompt_tokens,
            "completion_tokens": self.estimate.completion_tokens,
            "tokens": self.estimate.tokens,
            "cost": self.cost,
            "turns_by_profile": self.estimate.turns_by_profile,
            "thresholds": list(self.thresholds),
            "schedule": list(self.schedule),
            "max_turns": self.plan.max_turns,
            "max_tokens": self.plan.max_tokens,
            "warnings": list(self.warnings),
            "seed": self.plan.seed,
        }


def _schedule_of(phases: Iterable[Phase]) -> tuple[dict[str, float], ...]:
    """The level over time, phase after phase: turns per second, or sessions."""
    rows = []
    passed_s = 0.0
    for phase in phases:
        rows += [
            {
                "from_s": passed_s + part.start_s,
                "to_s": passed_s + part.end_s,
                "level_from": part.level_start,
                "level_to": part.level_end,
            }
            for part in phase.streams[0].segments
        ]
        passed_s += phase.duration_s
    return tuple(rows)


@dataclass(slots=True)
class LoadTestRun:
    """A load test. `prepare` reads the configuration, `run` does it; both raise GovError for what a user got wrong."""

    options: LoadOptions
    view: View
    stop: Stop
    deployment: ResolvedDeployment | None = None
    profiles: dict[str, ResolvedProfile] = field(default_factory=dict)
    thresholds: tuple[Threshold, ...] = ()
    recording: tuple[RecordedTurn, ...] | None = None
    #: What the options became that the user did not choose.
    adjusted: tuple[str, ...] = ()

    def prepare(self) -> None:
        """Checks flags, configuration, profiles and thresholds. Nothing is started."""
        options = self.options
        options.check()
        if options.target is not None:
            check_ownership(options.target, owned=options.owned)
        configured: Sequence[str] = ()
        if options.target is None or options.config is not None:
            self.deployment = load_deployment(options.config)
            configured = self.deployment.deployment.loadtest.thresholds
        if options.replay is not None:
            self._read_recording(options.replay)
        options, adjusted = settle_mix(options, self.deployment, self.recording)
        self.options, self.adjusted = options, tuple(adjusted)
        if self.deployment is not None:
            self.profiles = load_profiles(options.mix, self.deployment)
            if options.target is None:
                loaded_tenants(options, self.deployment)
            if options.write and self.deployment.path is None:
                raise ConfigError("There is no agentao-gov.toml to write to.", hint="`agentao-gov init` writes one.")
        self.thresholds = choose_thresholds(options.thresholds, configured, self.profiles)
        if options.shape == "soak" and not (options.thresholds or configured):
            self.thresholds += tuple(parse_threshold(text) for text in SOAK_DEFAULTS)
        if options.faults is not None:
            self._check_faults(options.faults)
        if options.baseline is not None:
            # Refused before the load, not after it.
            planned = plan_part(options, self._plan(_NOWHERE), None, Findings(0.0))
            current = {"plan": planned, "environment": environment()}
            check_comparable(read_report(options.baseline), current, force=options.force)

    def _read_recording(self, path: Path) -> None:
        options = self.options
        recording = load_replay(path)
        if options.replay_until_s is not None:
            recording = until(recording, options.replay_until_s, options.replay_speed)
        self.recording = recording

    def warnings(self) -> list[str]:
        """What is certain already: thresholds that cannot be decided, and what the options became."""
        target = self.options.target
        plan = self._plan(_NOWHERE)
        planned = estimate(plan, planned_phases(self.options, plan, ("default",))).turns
        return [
            *self.adjusted,
            *undecidable(
                self.thresholds,
                self.options,
                planned=planned if self.options.open_loop else None,
                processes=target is None or is_loopback(urlsplit(target).hostname or ""),
            ),
        ]

    def refused(self, error: GovError) -> LoadTestReport:
        """The report of a run that could not begin: a stale one in the same directory must not pass for it."""
        findings = Findings(started_at=time.time(), refused=(error.message, error.exit_code))
        findings.checklist = {"status": "skipped", "reason": "the run could not begin"}
        return assemble(self.options, None, (), None, findings)

    def _check_faults(self, path: Path) -> None:
        """Raises ConfigError for a fault whose time cannot come."""
        load_s = self.options.duration_s
        late = [fault for fault in load_faults(path) if fault.at_s >= load_s]
        if late and self.options.replay is None:
            raise ConfigError(
                f"--faults {path}: {late[0].kind} at {late[0].at_s:g} s lies beyond the load's {load_s:g} s.",
                hint="Make --duration longer.",
            )

    def dry_run(self) -> DryRun:
        """The schedule, and what it should come to."""
        plan = self._plan(_NOWHERE)
        phases = planned_phases(self.options, plan, ("default",))
        return DryRun(
            plan=plan,
            estimate=estimate(plan, phases),
            thresholds=tuple(threshold.expression for threshold in self.thresholds),
            schedule=_schedule_of(phases),
            warnings=tuple(self.warnings()),
            price=self.options.price,
        )

    def run(self) -> LoadTestReport:
        """Runs to the end, whatever the end is. What was started here is gone when it returns."""
        findings = Findings(started_at=time.time())
        if self.options.web_port is not None:
            check_port("--web-port", self.options.web_port)
        with private_folder("agentao-gov-loadtest-") as folder:
            plan, execution = self._run_in(folder, findings)
        findings.signal, findings.stopped_by = self.stop.signal, self.stop.by
        report = assemble(self.options, plan, self.thresholds, execution, findings)
        if self.options.baseline is not None and findings.signal is None:
            # The comparison needs the report's own figures, so it is made in a second pass.
            findings.comparisons, findings.baseline = compare_reports(
                read_report(self.options.baseline),
                json.loads(report.to_json()),
                allowance=self.options.max_regression,
                force=self.options.force,
            )
            report = assemble(self.options, plan, self.thresholds, execution, findings)
        return report

    def _run_in(self, folder: Path, findings: Findings) -> tuple[LoadPlan | None, Execution | None]:
        execution: Execution | None = None
        plan: LoadPlan | None = None
        target: Target | None = None
        try:
            if self.options.target is not None:
                # The checklist would say so, too, in more words.
                target = self._target(folder)
            self._checklist(findings)
            if not self.stop():
                target = target or self._target(folder)
                findings.differences = (*self.adjusted, *target.differences)
                plan = self._plan(target.url)
                execution = self._execute(plan, target, folder, findings)
        finally:
            if target is not None:
                findings.orphans = target.close()
            self._keep_samples(folder)
        return plan, execution

    def _checklist(self, findings: Findings) -> None:
        if not self.options.checklist:
            findings.checklist = {"status": "skipped", "reason": "--no-checklist"}
            return
        self.view.note("checklist first")
        code, report = run_checklist(self.options, self.stop)
        findings.checklist = report
        findings.checklist_failed = code == 1
        if code not in (0, 1) and not self.stop():
            error = report.get("error")
            reason = error.get("message") if isinstance(error, dict) else report.get("reason", "")
            hint = "`agentao-gov checklist` shows why; --no-checklist leaves it out."
            if code == ConfigError.ending.exit_code:
                raise ConfigError(f"The checklist cannot be run: {reason}", hint=hint)
            raise InternalError(f"The checklist ended with {code}: {reason}", hint=hint)

    def _target(self, folder: Path) -> Target:
        options = self.options
        if options.target is not None:
            return existing_target(options.target, api_key=api_key(options), tenant=options.tenant or _whose(options))
        assert self.deployment is not None
        self.view.note("starting the service and its model")
        plan = self._plan(_NOWHERE)
        tokens = estimate(plan, planned_phases(options, plan, ("default",))).tokens
        room = None if options.keep_budgets else max(10_000_000, _BUDGET_ROOM * tokens)
        return own_target(
            self.deployment,
            folder / "service",
            model_flags=options.model_flags,
            seed=options.seed,
            budget_room=room,
            tenants=() if options.tenant is None else (options.tenant,),
        )

    def _plan(self, url: str) -> LoadPlan:
        options = self.options
        queue_s = self.deployment.deployment.pool.queue_timeout_s if self.deployment is not None else 10.0
        simulated = not options.model_flags and (options.target is None or options.api == "openai")
        plan = build_plan(
            options,
            target=url,
            profiles=self.profiles,
            queue_timeout_s=queue_s,
            simulated=simulated,
            recording=self.recording,
        )
        return bounded(plan, options, estimate(plan, planned_phases(options, plan, ("default",))))

    def _execute(self, plan: LoadPlan, target: Target, folder: Path, findings: Findings) -> Execution:
        driver = LoadDriver(
            plan,
            folder / "generator",
            keys=target.keys,
            web_port=self.options.web_port,
            bind=self.options.bind,
            local_workers=self.options.bind is None,
        )
        series = ServerSeries(target.url, target.pid, model_pid=target.simulator.pid if target.simulator else None)
        execution = Execution(
            options=self.options,
            plan=plan,
            thresholds=self.thresholds,
            target=target,
            driver=driver,
            series=series,
            view=self.view,
            stop=self.stop,
            limits=self._limits(target),
        )
        series.start()
        player = FaultPlayer(load_faults(self.options.faults), target, self.stop) if self.options.faults else None
        try:
            with driver:
                if player is not None:
                    # Beside a victim the load is the second phase; the first one measures it alone.
                    player.start(lambda: driver.span(0 if self.options.victim is None else 1)[0] or None)
                execution.run()
            if target.pid is not None:
                self._settle(series, findings)
        finally:
            series.stop()
            if player is not None:
                player.stop()
                findings.faults = player.findings(execution.main.samples if execution.main else [], series.rows)
        findings.service_died = execution.service_died or (None if self.stop() else target.death())
        findings.generator_died = execution.generator_died
        findings.budget_overshoot = self._overshoot(target)
        return execution

    def _settle(self, series: ServerSeries, findings: Findings) -> None:
        """Waits until the service has put away what the load left, where it does so soon.

        Idle connections to its model live a few seconds. Sessions live for their TTL: a short one is waited for.
        """
        ttl_s = self.deployment.deployment.pool.session_ttl_s if self.deployment is not None else math.inf
        findings.ttl_s = ttl_s if ttl_s <= _TTL_S_MAX and self.options.target is None else None
        start = time.monotonic()
        while time.monotonic() < start + _SETTLE_S_MAX + (findings.ttl_s or 0.0) and not self.stop.wait(0.5):
            recent = series.rows[-_SETTLED_ROWS:]
            same = len({(row.fds, row.children) for row in recent}) == 1
            at_work = any(row.sessions.get("busy") or row.queue for row in recent)
            waits = findings.ttl_s is not None and recent and recent[-1].resident
            if time.monotonic() > start + _SETTLE_S_MIN and same and not at_work and not waits:
                return

    def _limits(self, target: Target) -> ServiceLimits:
        if self.deployment is not None and self.options.target is None:
            return limits_of(target, promised(self.deployment.deployment))
        return limits_of(target, promised_by(target.url, next(iter(target.keys.values()), None)))

    def _overshoot(self, target: Target) -> int | None:
        """Tokens the model really produced beyond the tenants' daily budgets; None where it cannot be known."""
        if target.simulator is None or not target.simulator.alive or self.deployment is None:
            return None
        deployment = self.deployment.deployment
        daily = [
            tenant.daily_tokens or deployment.budget.tenant_daily_tokens
            for name, tenant in deployment.tenants.items()
            if name in target.tenants
        ] or [deployment.budget.tenant_daily_tokens]
        if not self.options.keep_budgets or any(limit is None for limit in daily):
            return 0
        used = target.simulator.truth(requests=False).total.total_tokens
        return max(0, used - sum(limit or 0 for limit in daily))

    def _keep_samples(self, folder: Path) -> None:
        raw = folder / "generator" / "samples.jsonl"
        if self.options.report_dir is not None and raw.exists():
            self.options.report_dir.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(raw, self.options.report_dir / "samples.jsonl")


def _whose(options: LoadOptions) -> str:
    """The tenant of a target that nobody named: a key is some tenant's, and without one everybody is `default`."""
    return "default" if options.api_key_env is None else "the key's"


def run_checklist(options: LoadOptions, stop: Stop) -> tuple[int, dict[str, Any]]:
    """Runs `agentao-gov checklist` as a process of its own; its exit code and report.

    Args:
        options: the configuration or target to walk.
        stop: ends it early.
    """
    command = [sys.executable, "-P", "-m", "agentao_gov.main", "checklist", "--format", "json"]
    if options.config is not None:
        command += ["--config", str(options.config)]
    if options.target is not None:
        command += ["--target", options.target, *(["--i-own-this-target"] if options.owned else [])]
        command += ["--api-key-env", options.api_key_env] if options.api_key_env else []
    with tempfile.TemporaryFile() as said, tempfile.TemporaryFile() as printed:
        checklist = Guarded(command, cwd=Path.cwd(), env=os.environ, output=said, stdout=printed)
        try:
            deadline = time.monotonic() + _CHECKLIST_S_MAX
            while checklist.wait(0.2) is None:
                if stop() or time.monotonic() > deadline:
                    checklist.process.terminate()
                    checklist.wait(_CHECKLIST_STOP_S_MAX)
                    break
        finally:
            checklist.end()
        printed.seek(0)
        said.seek(0)
        try:
            report = json.load(printed)
        except ValueError:
            report = {"status": "error", "reason": said.read().decode(errors="replace").strip()[-500:]}
    return checklist.process.returncode, report if isinstance(report, dict) else {"status": "error"}
