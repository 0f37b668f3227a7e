"""What this machine has: memory, cores, descriptors, processes, inside the limits of its container."""

from __future__ import annotations

import os
import resource
from pathlib import Path

import psutil

from agentao_gov.monitor.capacity import Machine

__all__ = ["this_machine"]

_CGROUP = Path("/sys/fs/cgroup")


def this_machine(memory_bytes: int | None = None) -> Machine:
    """The machine; `memory_bytes` overrides what the service may use of its memory."""
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
    return Machine(memory, len(os.sched_getaffinity(0)), descriptors, processes)


def _cgroup_number(name: str) -> int | None:
    """A limit of the container (cgroup 2); None where there is none."""
    try:
        text = (_CGROUP / name).read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None
