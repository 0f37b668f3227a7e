"""What the service may use at most: its process's own limits, its control groups', its configuration's.

Read from the process that serves, once it is ready: `serve` raises its soft limit of descriptors to the hard one, and
its warden's says nothing. Nothing here raises: a limit that cannot be read is one that cannot be named.
"""

from __future__ import annotations

import contextlib
import http.client
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import urlsplit

import psutil

from agentao_gov.config.deployment import Deployment
from agentao_gov.loadtest.processes import listening_process, tree_of
from agentao_gov.loadtest.target import Target, asked

__all__ = ["Limits", "group_limit", "limits_of", "oom_kills", "promised", "promised_by"]

_PROC, _CGROUPS = Path("/proc"), Path("/sys/fs/cgroup")
#: Below each mount of the memory controller: its limit and its count of processes killed, of version 2 and 1.
_LIMIT_FILES, _EVENT_FILES = ("memory.max", "memory.limit_in_bytes"), ("memory.events", "memory.oom_control")


@dataclass(frozen=True, slots=True)
class Limits:
    """Each None where there is none, or where it cannot be known."""

    max_sessions: int | None = None
    max_busy: int | None = None
    memory_bytes: int | None = None
    #: Who set it: `[capacity] memory`, a control group, the machine.
    memory_by: str | None = None
    fds: int | None = None
    #: Cores that the service may run on.
    cores: tuple[int, ...] = ()


def promised(deployment: Deployment) -> dict[str, int | None]:
    """What the configuration of a service says of its limits."""
    return {
        "max_sessions": deployment.pool.max_sessions,
        "max_busy": deployment.pool.max_busy,
        "memory_bytes": deployment.capacity.memory_bytes,
    }


def promised_by(url: str, key: str | None) -> dict[str, int | None]:
    """What a running service says of its limits (`GET /v1/status`); empty where it says nothing."""
    try:
        path = urlsplit(url).path.rstrip("/").removesuffix("/v1") + "/v1/status"
        with asked(url, path, key) as answer:
            status = json.load(answer)
        pool, plan = status["pool"], status.get("capacity") or {}
        said = {
            "max_sessions": pool["max_sessions"],
            "max_busy": pool["max_busy"],
            "memory_bytes": plan.get("memory_bytes"),
        }
    except (OSError, http.client.HTTPException, ValueError, LookupError, TypeError, AttributeError):
        # Another kind of service, or one too busy; what it does not say is not known.
        return {}
    return {name: value for name, value in said.items() if isinstance(value, int)}


def limits_of(target: Target, said: Mapping[str, int | None]) -> Limits:
    """The limits that hold for the service, by its process and by what was `said` of it."""
    limits = Limits(max_sessions=said.get("max_sessions"), max_busy=said.get("max_busy"))
    candidates = [(said.get("memory_bytes"), "[capacity] memory")]
    main = _serving(target)
    if main is not None:
        candidates += [(group_limit(main.pid), "its control group"), (psutil.virtual_memory().total, "the machine")]
        with contextlib.suppress(psutil.Error, OSError):
            limits = replace(limits, fds=main.rlimit(psutil.RLIMIT_NOFILE)[0], cores=tuple(main.cpu_affinity()))
    known = [(size, by) for size, by in candidates if size]
    memory_bytes, memory_by = min(known, default=(None, None))
    return replace(limits, memory_bytes=memory_bytes, memory_by=memory_by)


def oom_kills(pid: int | None, *, proc: Path = _PROC, cgroups: Path = _CGROUPS) -> int | None:
    """How many processes of its control group and those below the kernel has killed for memory so far."""
    # The group of the one that was killed counts it, whichever group above had run out.
    counts = (
        [] if pid is None else [_count(here / name) for here, _ in _groups(pid, proc, cgroups) for name in _EVENT_FILES]
    )
    return max((count for count in counts if count is not None), default=None)


def _serving(target: Target) -> psutil.Process | None:
    if target.pid is None:
        return None
    tree = tree_of(target.pid)
    return listening_process(tree, urlsplit(target.url).port) or (tree[0] if tree else None)


def _groups(pid: int, proc: Path, cgroups: Path) -> Iterator[tuple[Path, Path]]:
    """The process's control groups that may limit memory (version 2 and 1), each with the root of its hierarchy."""
    try:
        lines = (proc / str(pid) / "cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if not controllers or "memory" in controllers.split(","):
            root = cgroups / "memory" if controllers else cgroups
            yield root / path.strip("/"), root


def group_limit(pid: int, *, proc: Path = _PROC, cgroups: Path = _CGROUPS) -> int | None:
    """The least memory limit of its control groups and those above them; None: there is none."""
    folders = (
        folder
        for here, root in _groups(pid, proc, cgroups)
        for folder in (here, *here.parents)
        if folder.is_relative_to(root)
    )
    limits = [_number(folder / name) for folder in folders for name in _LIMIT_FILES]
    return min((limit for limit in limits if limit), default=None)


def _number(path: Path) -> int | None:
    """The file's number; None for `max`, and where there is no such file."""
    with contextlib.suppress(OSError, ValueError):
        return int(path.read_text())
    return None


def _count(path: Path) -> int | None:
    """The line `oom_kill N` of the file."""
    with contextlib.suppress(OSError):
        for line in path.read_text().splitlines():
            name, _, value = line.partition(" ")
            if name == "oom_kill" and value.isdigit():
                return int(value)
    return None
