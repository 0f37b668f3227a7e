"""From measurements to a capacity plan: how many sessions, how many busy, and what gives way first.

`make_plan` is arithmetic only; `this_machine` reads what there is: memory, cores, descriptors and processes, inside the
limits of the container where there is one.
"""

from __future__ import annotations

import os
import resource
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import psutil

from agentao_gov.governor.report import Mode

#: Part of memory, descriptors and processes a plan may use: the rest is the system's and a bad minute's.
HEADROOM = 0.8
#: Part of the CPU that turns may use before waiting times run away (M/M/1 at 0.7: 3.3 times the service time).
CPU_SHARE = 0.7
#: CPU that HTTP, archive and metrics add to a turn, which the probe measures without them (10.8 ms against 7.3 in
#: `benchmarks/service.md`).
SERVICE_CPU_MS = 3.5
#: What costs next to nothing is said to fit this often.
ENOUGH = 1_000_000
#: The published rule of thumb.
RULE_SESSION_BYTES = 10_000_000
RULE_MCP_BYTES = 100_000_000
_CGROUP = Path("/sys/fs/cgroup")


@dataclass(frozen=True, slots=True)
class MachineLimits:
    """What there is. Limits of the container where there is one."""

    memory_bytes: int
    cores: int
    fds_max: int
    processes_max: int


@dataclass(frozen=True, slots=True)
class McpMeasured:
    """One MCP server of the profile."""

    name: str
    bytes: int
    processes: int
    start_s: float
    share: Literal["session", "tenant", "process"] = "session"


@dataclass(frozen=True, slots=True)
class Measured:
    """What the probe found."""

    mode: Mode
    #: The service's process without sessions, and what it took to get there.
    base_bytes: int
    base_fds: int
    start_s: float
    #: Opening a session without MCP servers, median.
    open_ms: float
    session_empty_bytes: int
    session_full_bytes: int
    #: Prompt tokens of the full conversation.
    full_tokens: int
    session_fds: float
    #: Processes of a session that are not MCP servers.
    session_processes: int
    cpu_ms_empty: float
    cpu_ms_full: float
    mcp: tuple[McpMeasured, ...] = ()


@dataclass(frozen=True, slots=True)
class CapacityPlan:
    """What this machine holds."""

    sessions: int
    busy: int
    turns_per_s: float
    mcp_processes: int
    memory_bytes: int
    bottleneck: str
    #: Sessions that each resource alone would hold.
    sessions_by: Mapping[str, int]
    #: The lines at which alerts fire.
    alert_lines: Mapping[str, float]
    alert_at: float
    #: What the published rule of thumb says these sessions need.
    rule_bytes: int
    details: Mapping[str, Any] = field(default_factory=dict)


def rule_of_thumb_bytes(sessions: int, mcp_servers: int) -> int:
    """Published: sessions x 10 MB + MCP servers x 100 MB."""
    return sessions * RULE_SESSION_BYTES + mcp_servers * RULE_MCP_BYTES


def make_plan(
    machine: MachineLimits,
    measured: Measured,
    *,
    max_sessions: int,
    max_busy: int,
    turn_s: float,
    tenants: int = 1,
    alert_at: float = 0.85,
) -> CapacityPlan:
    """The plan for a machine, from what sessions were measured to cost on it.

    `max_sessions`, `max_busy`: the pool's own limits. `turn_s`: how long a turn takes, nearly all of it the model's
    time. `tenants`: how many share an MCP server of `share = "tenant"` each. `alert_at`: the part of each figure at
    which its alert fires.
    """
    own = [server for server in measured.mcp if server.share == "session"]
    shared = [server for server in measured.mcp if server.share != "session"]
    copies = {server.name: tenants if server.share == "tenant" else 1 for server in shared}
    shared_bytes = sum(server.bytes * copies[server.name] for server in shared)
    shared_processes = sum(server.processes * copies[server.name] for server in shared)
    each_bytes = measured.session_full_bytes + sum(server.bytes for server in own)
    each_processes = measured.session_processes + sum(server.processes for server in own)

    by = {
        "memory": _fits(machine.memory_bytes * HEADROOM - measured.base_bytes - shared_bytes, each_bytes),
        "descriptors": _fits(machine.fds_max * HEADROOM - measured.base_fds, measured.session_fds),
        "processes": _fits(machine.processes_max * HEADROOM - shared_processes, each_processes),
        "max_sessions": max_sessions,
    }
    bottleneck = min(by, key=lambda name: by[name])
    sessions = max(0, by[bottleneck])
    busy, turns_per_s, busy_by = _busy(machine, measured, sessions=sessions, max_busy=max_busy, turn_s=turn_s)
    mcp_processes = sessions * sum(server.processes for server in own) + shared_processes
    # Rounded up to 64 MiB: the plan is a line to alert on, not a prediction to the byte.
    need = measured.base_bytes + shared_bytes + sessions * each_bytes
    step = 64 * 2**20
    memory_bytes = -(-int(need / alert_at) // step) * step
    servers = sum(sessions for _ in own) + sum(copies.values())
    return CapacityPlan(
        sessions=sessions,
        busy=busy,
        turns_per_s=turns_per_s,
        mcp_processes=mcp_processes,
        memory_bytes=min(memory_bytes, machine.memory_bytes),
        bottleneck=bottleneck,
        sessions_by=by,
        alert_lines={
            "sessions": sessions * alert_at,
            "mcp_processes": mcp_processes * alert_at,
            "memory_bytes": min(memory_bytes, machine.memory_bytes) * alert_at,
        },
        alert_at=alert_at,
        rule_bytes=rule_of_thumb_bytes(sessions, servers),
        details={"session_bytes": each_bytes, "need_bytes": need, "busy_by": busy_by},
    )


def _fits(room: float, each: float) -> int:
    """How many fit; what costs nothing never runs out."""
    if room <= 0:
        return 0
    return ENOUGH if each * ENOUGH <= room else int(room / each)


def _busy(
    machine: MachineLimits, measured: Measured, *, sessions: int, max_busy: int, turn_s: float
) -> tuple[int, float, str]:
    """Turns at once, turns a second, and what limits them."""
    # One interpreter lock a process: in this process all turns share a core.
    cores = machine.cores if measured.mode == "subprocess" else 1
    cpu_s = (max(measured.cpu_ms_full, measured.cpu_ms_empty) + SERVICE_CPU_MS) / 1000
    turns_per_s = CPU_SHARE * cores / cpu_s
    by = {"cpu": max(1, int(turns_per_s * turn_s)), "max_busy": max_busy, "sessions": max(1, sessions)}
    limit = min(by, key=lambda name: by[name])
    return by[limit], turns_per_s, limit


def this_machine(memory_bytes: int | None = None) -> MachineLimits:
    """What this machine has; `memory_bytes` overrides what the service may use of its memory, None takes all."""
    memory = memory_bytes
    if memory is None:
        total = int(psutil.virtual_memory().total)
        memory = min(total, _cgroup_number("memory.max") or total)
    processes = resource.getrlimit(resource.RLIMIT_NPROC)[0]
    if processes == resource.RLIM_INFINITY:
        processes = 1_000_000
    processes = min(processes, _cgroup_number("pids.max") or processes)
    # The service raises its soft limit to the hard one (`server.raise_descriptor_limit`).
    descriptors = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    if descriptors == resource.RLIM_INFINITY:
        descriptors = 1_000_000
    return MachineLimits(memory, len(os.sched_getaffinity(0)), descriptors, processes)


def _cgroup_number(name: str) -> int | None:
    """A limit of the container (cgroup 2); None where there is none."""
    try:
        text = (_CGROUP / name).read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None
