"""One load test from its flags to its report: checklist, target, generator, measurement, verdict."""

from __future__ import annotations

import json
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from agentao_gov.config import ResolvedDeployment, ResolvedProfile, load_deployment
from agentao_gov.errors import InternalError
from agentao_gov.loadtest.assemble import assemble
from agentao_gov.loadtest.compare import check_comparable, compare_reports, read_report
from agentao_gov.loadtest.document import LoadTestReport
from agentao_gov.loadtest.driver import LoadDriver
from agentao_gov.loadtest.execution import CEILING, Execution
from agentao_gov.loadtest.faults import FaultPlayer, load_faults
from agentao_gov.loadtest.findings import Findings
from agentao_gov.loadtest.keeper import Keeper
from agentao_gov.loadtest.options import (
    Options,
    api_key,
    build_phase,
    build_plan,
    choose_thresholds,
    load_profiles,
)
from agentao_gov.loadtest.plan import Estimate, LoadPlan, estimate
from agentao_gov.loadtest.provenance import environment, plan_part
from agentao_gov.loadtest.series import ServerSeries
from agentao_gov.loadtest.target import Target, check_ownership, existing_target, own_target
from agentao_gov.loadtest.thresholds import Threshold
from agentao_gov.loadtest.view import Stop, View

__all__ = ["DryRun", "LoadTest"]

#: Daily budgets hold this many times what the plan should use, so that luck does not exhaust them.
_BUDGET_ROOM = 20
#: An upper bound where the user set none: this many times the plan.
_BOUND_FACTOR = 2
#: After the load, how long the service gets to put things away before the last look.
_SETTLE_S_MIN, _SETTLE_S_MAX = 3.0, 12.0
_SETTLED_ROWS = 6
_CHECKLIST_S_MAX = 300.0


@dataclass(frozen=True, slots=True)
class DryRun:
    """What a load test would do."""

    plan: LoadPlan
    estimate: Estimate
    thresholds: tuple[str, ...]
    schedule: tuple[dict[str, float], ...]
    cost: float | None

    def to_dict(self) -> dict[str, Any]:
        """For `--format json`."""
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
            "seed": self.plan.seed,
        }


@dataclass(slots=True)
class LoadTest:
    """A load test. `prepare` reads the configuration, `run` does it; both raise GovError for what a user got wrong."""

    options: Options
    view: View
    stop: Stop
    deployment: ResolvedDeployment | None = None
    profiles: dict[str, ResolvedProfile] = field(default_factory=dict)
    thresholds: tuple[Threshold, ...] = ()

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
            self.profiles = load_profiles(options.mix, self.deployment)
        self.thresholds = choose_thresholds(options.thresholds, configured, self.profiles)
        if options.faults is not None:
            load_faults(options.faults)
        if options.baseline is not None:
            # Refused before the load, not after it.
            planned = plan_part(options, self._plan("http://127.0.0.1"), None, Findings(0.0))
            current = {"plan": planned, "environment": environment()}
            check_comparable(read_report(options.baseline), current, force=options.force)

    def dry_run(self) -> DryRun:
        """The schedule, and what it should come to."""
        plan = self._plan("http://127.0.0.1")
        phase = build_phase(self.options, plan, ("default",))
        total = estimate(plan, [phase])
        price = self.options.price
        return DryRun(
            plan=plan,
            estimate=total,
            thresholds=tuple(threshold.expression for threshold in self.thresholds),
            schedule=tuple(
                {"from_s": p.start_s, "to_s": p.end_s, "level_from": p.level_start, "level_to": p.level_end}
                for p in phase.streams[0].segments
            ),
            cost=total.cost(*price) if price else None,
        )

    def run(self) -> LoadTestReport:
        """Runs to the end, whatever the end is. What was started here is gone when it returns."""
        findings = Findings(started_at=time.time())
        folder = Path(tempfile.mkdtemp(prefix="agentao-gov-loadtest-"))
        keeper = Keeper(folder)
        execution: Execution | None = None
        plan: LoadPlan | None = None
        target: Target | None = None
        try:
            self._checklist(findings, keeper)
            if not self.stop():
                target = self._target(folder, keeper)
                findings.differences = tuple(target.differences)
                plan = self._plan(target.url)
                execution = self._execute(plan, target, folder, findings)
        finally:
            if target is not None:
                findings.orphans = target.close()
            self._keep_samples(folder)
            shutil.rmtree(folder, ignore_errors=True)
            keeper.close()
        findings.signal = self.stop.signal
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

    # -- steps -----------------------------------------------------------------------------------------------------

    def _checklist(self, findings: Findings, keeper: Keeper) -> None:
        if not self.options.checklist:
            findings.checklist = {"status": "skipped", "reason": "--no-checklist"}
            return
        self.view.note("checklist first")
        code, report = run_checklist(self.options, self.stop, keeper)
        findings.checklist = report
        findings.checklist_failed = code == 1
        if code not in (0, 1) and not self.stop():
            error = report.get("error")
            reason = error.get("message") if isinstance(error, dict) else report.get("reason", "")
            raise InternalError(
                f"The checklist ended with {code}: {reason}",
                hint="`agentao-gov checklist` shows why; --no-checklist leaves it out.",
            )

    def _target(self, folder: Path, keeper: Keeper) -> Target:
        options = self.options
        if options.target is not None:
            return existing_target(options.target, api_key=api_key(options), tenant=options.tenant)
        assert self.deployment is not None
        self.view.note("starting the service and its model")
        plan = self._plan("http://127.0.0.1")
        tokens = estimate(plan, [build_phase(options, plan, ("default",))]).tokens
        room = None if options.keep_budgets else max(10_000_000, _BUDGET_ROOM * tokens)
        return own_target(
            self.deployment,
            folder,
            model_flags=options.model_flags,
            seed=options.seed,
            budget_room=room,
            started=keeper.watch,
        )

    def _plan(self, url: str) -> LoadPlan:
        options = self.options
        queue_s = self.deployment.deployment.pool.queue_timeout_s if self.deployment is not None else 10.0
        simulated = not options.model_flags and (options.target is None or options.api == "openai")
        plan = build_plan(options, target=url, profiles=self.profiles, queue_timeout_s=queue_s, simulated=simulated)
        if options.target is None:
            return plan
        # Someone else's service never gets more than a bounded load, whatever goes wrong here.
        expected = estimate(plan, [build_phase(options, plan, ("default",))])
        # A search tries loads up to its ceiling, so its bound is the ceiling's.
        factor = _BOUND_FACTOR * ((options.users or CEILING) if options.shape == "capacity" else 1)
        return plan.model_copy(
            update={
                "max_turns": options.max_turns or max(100, factor * expected.turns),
                "max_tokens": options.max_tokens or max(1_000_000, 5 * factor * expected.tokens),
            }
        )

    def _execute(self, plan: LoadPlan, target: Target, folder: Path, findings: Findings) -> Execution:
        driver = LoadDriver(
            plan,
            folder / "generator",
            keys=target.keys,
            web_port=self.options.web_port,
            bind=self.options.bind,
            local_workers=self.options.bind is None,
        )
        series = ServerSeries(target.url, target.pid)
        execution = Execution(
            options=self.options,
            plan=plan,
            thresholds=self.thresholds,
            target=target,
            driver=driver,
            series=series,
            view=self.view,
            stop=self.stop,
            limits=self._limits(),
        )
        series.start()
        player = FaultPlayer(load_faults(self.options.faults), target, self.stop) if self.options.faults else None
        try:
            with driver:
                if player is not None:
                    player.start(lambda: driver.span(0)[0] or None)
                execution.run()
            if target.pid is not None:
                self._settle(series)
        finally:
            series.stop()
            if player is not None:
                player.stop()
                findings.faults = player.findings(execution.played[0].samples if execution.played else [], series.rows)
        findings.service_died = execution.service_died or (None if self.stop() else target.death())
        findings.generator_died = execution.generator_died
        findings.budget_overshoot = self._overshoot(target)
        return execution

    def _settle(self, series: ServerSeries) -> None:
        """Waits until the service has put away what the load left: idle connections to its model live a few seconds."""
        deadline = time.monotonic() + _SETTLE_S_MAX
        while time.monotonic() < deadline and not self.stop.wait(0.5):
            recent = [(row.fds, row.children) for row in series.rows[-_SETTLED_ROWS:]]
            if time.monotonic() > deadline - _SETTLE_S_MAX + _SETTLE_S_MIN and len(set(recent)) == 1:
                return

    def _limits(self) -> dict[str, int | None]:
        soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        limits: dict[str, int | None] = {"fds": soft}
        if self.deployment is not None and self.options.target is None:
            deployment = self.deployment.deployment
            limits |= {
                "max_sessions": deployment.pool.max_sessions,
                "max_busy": deployment.pool.max_busy,
                "memory_bytes": deployment.capacity.memory_bytes,
            }
        return limits

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


def run_checklist(options: Options, stop: Stop, keeper: Keeper) -> tuple[int, dict[str, Any]]:
    """Runs `agentao-gov checklist` as a process of its own; its exit code and report."""
    command = [sys.executable, "-m", "agentao_gov.main", "checklist", "--format", "json"]
    if options.config is not None:
        command += ["--config", str(options.config)]
    if options.target is not None:
        command += ["--target", options.target, *(["--i-own-this-target"] if options.owned else [])]
        command += ["--api-key-env", options.api_key_env] if options.api_key_env else []
    process = subprocess.Popen(  # noqa: S603  our own interpreter and command
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
    )
    keeper.watch(process.pid)
    deadline = time.monotonic() + _CHECKLIST_S_MAX
    while True:
        try:
            out, err = process.communicate(timeout=0.2)
            break
        except subprocess.TimeoutExpired:
            if stop() or time.monotonic() > deadline:
                process.terminate()
                out, err = process.communicate()
                break
    try:
        report = json.loads(out)
    except ValueError:
        report = {"status": "error", "reason": err.decode(errors="replace").strip()[-500:]}
    return process.returncode, report if isinstance(report, dict) else {"status": "error"}
