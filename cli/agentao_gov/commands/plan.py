"""`agentao-gov plan`: measures this machine and prints the capacity plan."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from agentao_gov.commands._options import Config, Json, Mode, Sets

if TYPE_CHECKING:
    from agentao_gov.config import Overrides, ResolvedDeployment
    from agentao_gov.monitor.capacity import CapacityPlan, MachineLimits, Measured

#: Opening a hundred sessions takes seconds; MCP servers that hang have their own start-up limit below this.
_PROBE_S_MAX = 300.0
_SCHEMA = "agentao-gov/plan/1"


def command(
    config: Config = None,
    profile: Annotated[
        str, typer.Option("--profile", "-p", metavar="NAME|PATH", help="The profile to measure.")
    ] = "qa",
    mode: Mode = None,
    turn_time: Annotated[
        str,
        typer.Option("--turn-time", metavar="D", help="How long one of your turns takes, nearly all of it the model."),
    ] = "5s",
    memory: Annotated[
        str | None,
        typer.Option("--memory", metavar="SIZE", help="Memory the service may use; default: this machine's."),
    ] = None,
    sets: Sets = None,
    write: Annotated[
        bool, typer.Option("--write", help="Put the plan into [capacity] of the deployment file.")
    ] = False,
    as_json: Json = False,
) -> int:
    """Measure what a session costs on this machine, and print how many it holds and what gives way first."""
    from agentao_gov.config import Overrides, load_deployment, parse_bytes, parse_duration_s
    from agentao_gov.errors import ConfigError, UsageError
    from agentao_gov.monitor.capacity import make_plan, this_machine

    overrides = Overrides.given({"pool.mode": ("--mode", mode)}, sets)
    deployment = load_deployment(config, overrides=overrides)
    if write and deployment.path is None:
        raise ConfigError("There is no agentao-gov.toml to write the plan into.", hint="`agentao-gov init` writes one.")
    try:
        turn_s = parse_duration_s(turn_time)
        memory_bytes = parse_bytes(memory) if memory is not None else None
    except ValueError as error:
        raise UsageError(str(error)) from None
    measured = _measure(deployment, profile, overrides)
    machine = this_machine(memory_bytes)
    pool, capacity = deployment.deployment.pool, deployment.deployment.capacity
    plan = make_plan(
        machine,
        measured,
        max_sessions=pool.max_sessions,
        max_busy=pool.max_busy,
        turn_s=turn_s,
        tenants=max(1, len([tenant for tenant in deployment.deployment.tenants if tenant != "default"])),
        alert_at=capacity.alert_at,
    )
    if write:
        assert deployment.path is not None
        _write(deployment.path, plan)
    if as_json:
        sys.stdout.write(json.dumps(_document(machine, measured, plan, profile, turn_s)) + "\n")
    else:
        _show(machine, measured, plan, name=profile, turn_s=turn_s, deployment=deployment, written=write)
    return 0


def _measure(deployment: ResolvedDeployment, profile: str, overrides: Overrides) -> Measured:
    """Runs the probe in a process of its own against a simulated model in another."""
    import subprocess

    from agentao_gov.config import load_profile
    from agentao_gov.errors import ConfigError
    from agentao_gov.monitor.capacity import McpMeasured, Measured
    from agentao_gov.simulator import start_simulator

    load_profile(profile, deployment=deployment, overrides=overrides)  # its errors are the user's, and belong here
    with start_simulator() as simulator:
        order = {
            "config": str(deployment.path) if deployment.path else None,
            "sets": overrides.sets,
            "profile": profile,
            "mode": deployment.deployment.pool.mode,
            "base_url": simulator.base_url,
            "imports": ["agentao_gov.service.build", "agentao_gov.service.server"],
        }
        try:
            done = subprocess.run(
                [sys.executable, "-P", "-m", "agentao_gov.monitor.session_cost"],
                input=json.dumps(order), capture_output=True, text=True, timeout=_PROBE_S_MAX, check=False,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            raise ConfigError(
                f"Measuring took longer than {_PROBE_S_MAX:.0f} s.", hint="Does every MCP server of the profile start?"
            ) from None
    if done.returncode != 0 or not done.stdout.strip():
        last = done.stderr.strip().splitlines()[-1:] or [f"exit code {done.returncode}"]
        raise ConfigError(f"Sessions of profile {profile!r} could not be measured: {last[0]}")
    found: dict[str, Any] = json.loads(done.stdout)
    found["mcp"] = tuple(McpMeasured(**server) for server in found["mcp"])
    return Measured(**found)


def _write(path: Path, plan: CapacityPlan) -> None:
    from agentao_gov.config import format_bytes
    from agentao_gov.config.edit import write_capacity

    values = {
        "sessions": plan.sessions,
        "mcp_processes": plan.mcp_processes,
        "memory": format_bytes(plan.memory_bytes),
        "alert_at": plan.alert_at,
    }
    write_capacity(path, values)


def _document(
    machine: MachineLimits, measured: Measured, plan: CapacityPlan, profile: str, turn_s: float
) -> dict[str, Any]:
    from dataclasses import asdict

    return {
        "schema": _SCHEMA,
        "profile": profile,
        "turn_s": turn_s,
        "machine": asdict(machine),
        "measured": asdict(measured),
        "plan": asdict(plan),
    }


def _mib(value: float) -> str:
    if value < 2**20:
        return f"{value / 2**10:,.0f} KiB"
    return f"{value / 2**20:,.1f} MiB" if value < 2**30 else f"{value / 2**30:,.2f} GiB"


def _show(
    machine: MachineLimits, measured: Measured, plan: CapacityPlan, *, name: str, turn_s: float,
    deployment: ResolvedDeployment, written: bool,
) -> None:  # fmt: skip
    from agentao_gov.report.terminal import STYLES, console, print_table

    out = console(sys.stdout)
    rows = [
        ("machine", f"{_mib(machine.memory_bytes)}, {machine.cores} cores, {machine.fds_max:,} descriptors"),
        ("service without sessions", f"{_mib(measured.base_bytes)}, ready after {measured.start_s:.1f} s"),
        ("opening a session", f"{measured.open_ms:.1f} ms without MCP servers"),
        ("a session, empty", _mib(measured.session_empty_bytes)),
        (f"a session, {measured.full_tokens:,} tokens", _mib(measured.session_full_bytes)),
        ("CPU of a turn", f"{measured.cpu_ms_empty:.1f} ms empty, {measured.cpu_ms_full:.1f} ms full"),
    ]
    rows += [
        (
            f"MCP server {server.name}",
            f"{_mib(server.bytes)}, {server.processes} processes, {server.start_s:.1f} s to start",
        )
        for server in measured.mcp
    ]
    out.print(f"measured with profile {name}, mode {measured.mode}", style=STYLES["dim"])
    print_table(out, ("", ""), rows)
    out.print()
    others = ", ".join(f"{what} {count:,}" for what, count in plan.sessions_by.items() if what != plan.bottleneck)
    lines = [
        ("sessions", f"{plan.sessions:,}, limited by {plan.bottleneck} (others: {others})"),
        ("busy at once", f"{plan.busy:,} with turns of {turn_s:g} s, limited by {plan.details['busy_by']}"),
        ("turns a second", f"{plan.turns_per_s:,.0f} at 70 % of the CPU"),
        ("memory", f"{_mib(plan.details['need_bytes'])} needed, plan {_mib(plan.memory_bytes)}"),
        ("MCP processes", f"{plan.mcp_processes:,}"),
        ("alerts at", f"{plan.alert_lines['sessions']:,.0f} sessions, {plan.alert_lines['mcp_processes']:,.0f} MCP "
                      f"processes, {_mib(plan.alert_lines['memory_bytes'])}"),
        ("rule of thumb", f"{_mib(plan.rule_bytes)} for the same (10 MB a session + 100 MB an MCP server): "
                          f"{_factor(plan.rule_bytes, plan.details['need_bytes'])}"),
    ]  # fmt: skip
    out.print("plan", style=STYLES["dim"])
    print_table(out, ("", ""), lines)
    if written:
        sys.stderr.write(f"[capacity] of {deployment.path} holds the plan now.\n")
    elif deployment.path is not None:
        sys.stderr.write("`agentao-gov plan --write` puts it into the deployment file.\n")


def _factor(rule_bytes: float, need_bytes: float) -> str:
    ratio = rule_bytes / max(1.0, need_bytes)
    return f"{ratio:.1f} times too much" if ratio >= 1 else f"{1 / ratio:.1f} times too little"
