"""What this machine offers against orphans, one layer a line, found out by trying: `doctor` prints it."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from agentao_gov.process import warden
from agentao_gov.process.oslimits import groups_can_be_made, own_cgroup

_WARDEN = warden.PROGRAM
_PROBE_S_MAX = 10.0


@dataclass(frozen=True, slots=True)
class Layer:
    """One layer: whether it works here, and which fault it survives."""

    name: str
    available: bool
    survives: str
    detail: str = ""


def _probe() -> frozenset[str]:
    """Lets the warden program try what needs a process of its own."""
    command = [sys.executable, "-I", "-S", _WARDEN, "--probe"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_PROBE_S_MAX, check=False)  # noqa: S603
    except (OSError, subprocess.TimeoutExpired):
        return frozenset()
    return frozenset(done.stdout.split())


def _cgroup_v2() -> tuple[bool, str]:
    """Whether sessions get control groups of their own, and whether the kernel holds their memory limits."""
    here = own_cgroup()
    if here is None:
        return False, "cgroups v2 are not mounted"
    if not groups_can_be_made(here):
        return False, f"no groups can be made below {here} (delegate it to use it)"
    try:
        memory = "memory" in (here / "cgroup.subtree_control").read_text().split()
    except OSError:
        memory = False
    return True, f"{here}, {'with' if memory else 'without'} the memory controller"


def survey_layers() -> tuple[Layer, ...]:
    """Tries every layer; takes some 0.2 s."""
    works = _probe()
    cgroup, cgroup_detail = _cgroup_v2()
    warden = bool(works)
    return (
        Layer("close", True, "an orderly end: MCP servers are asked to leave, with a time limit"),
        Layer("tags", Path("/proc/self/environ").exists(), "a session that closes, times out or is stuck"),
        Layer("sweep", Path("/proc/self/environ").exists(), "SIGKILL of everything at once, at the next start"),
        Layer("warden", warden, "SIGKILL of the service, or of a session process", _WARDEN if warden else ""),
        Layer("sub-reaper", "subreaper" in works, "servers that daemonise, or empty their environment"),
        Layer("pidfd", "pidfd" in works, "reused process ids: a signal never meets a stranger"),
        Layer("user namespace", "user_namespace" in works, "a pid namespace without privileges"),
        Layer(
            "pid namespace",
            "pid_namespace" in works,
            "SIGKILL of a session's wardens, in subprocess mode with session_pid_namespace",
        ),
        Layer(
            "cgroup v2",
            cgroup,
            "SIGKILL of a session's warden, in subprocess mode: daemons stay in its group",
            cgroup_detail,
        ),
    )
