"""What is put under load: a service that already runs, or the user's own configuration started as a real `serve`.

The started one differs from the user's in what a test must not touch, and the report lists each difference: its own
port, state and ledger, keys made for this run, a simulated model unless another was asked for, and daily budgets out of
the way (`--keep-budgets` keeps them).
"""

from __future__ import annotations

import contextlib
import hashlib
import secrets
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil

from agentao_gov.config import ResolvedDeployment, is_loopback
from agentao_gov.config.deployment import Deployment
from agentao_gov.errors import ConfigError, InternalError, UsageError
from agentao_gov.loadtest.server_series import listening_process, tree_of
from agentao_gov.simulator import Simulator, start_simulator
from agentao_gov.testrig.client import ServiceClient
from agentao_gov.testrig.service import PrivateService, ServiceStartError

#: Overrides from the environment that this run replaces; those of profiles stay.
_REPLACED = (
    "AGENTAO_GOV_STATE",
    *(f"AGENTAO_GOV__{table}__" for table in ("SERVER", "STATE", "BUDGET", "TENANTS")),
)
_ANSWER_S_MAX = 5.0
_PROC, _CGROUPS = Path("/proc"), Path("/sys/fs/cgroup")
#: Below each mount of the memory controller: its limit and its count of processes killed, of version 2 and 1.
_LIMIT_FILES, _EVENT_FILES = ("memory.max", "memory.limit_in_bytes"), ("memory.events", "memory.oom_control")


@dataclass(slots=True)
class Target:
    """A service under load. `close` ends what was started here and nothing else."""

    url: str
    #: API key by tenant; empty where none is needed.
    keys: dict[str, str]
    tenants: tuple[str, ...]
    simulator: Simulator | None = None
    service: PrivateService | None = None
    #: Differences from the user's configuration, for the report.
    differences: list[str] = field(default_factory=list)
    #: Of a service on this machine that was not started here.
    found_pid: int | None = None

    @property
    def pid(self) -> int | None:
        """The service's process; None where it is on another machine, or may not be looked at."""
        return self.service.root_pid if self.service is not None else self.found_pid

    def death(self) -> str | None:
        """Why the service is gone; None while it is there."""
        if self.service is not None:
            code = self.service.wait(0.0)
            said = ": ".join(("", *(line[:300] for line in self.service.log_tail(1))))
            return None if code is None else f"it ended with {code}{said}"
        return None if self.answers() else "nothing answers any more"

    def answers(self) -> bool:
        """Whether anything speaks HTTP there."""
        return ServiceClient(self.url).request("GET", "/healthz", timeout_s=_ANSWER_S_MAX).status != 0

    def close(self) -> int | None:
        """Ends the service, then its model; how many of the service's processes outlived it. May be called again."""
        left = None if self.service is None else self.service.stop()
        if self.simulator is not None:
            self.simulator.close()
        return left


def check_ownership(url: str, *, owned: bool) -> None:
    """Refuses to load what may be someone else's: a `url` not on loopback, unless it is `owned`. Raises UsageError."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise UsageError(f"--target {url!r} is not an http or https URL.")
    if not owned and not is_loopback(parts.hostname):
        raise UsageError(
            f"--target {parts.hostname} is not this machine.",
            hint="Add --i-own-this-target if you may put load on it.",
        )


def existing_target(url: str, *, api_key: str | None, tenant: str = "default") -> Target:
    """A service that already runs. Raises ConfigError when nothing answers.

    Args:
        url: where it listens, with or without `/v1`.
        api_key: the tenant's; None where none is needed.
        tenant: whose turns the report calls them.
    """
    target = Target(url, {tenant: api_key} if api_key else {}, (tenant,))
    if not target.answers():
        raise ConfigError(f"Nothing answers at {url}.", hint="Start the service first, or leave --target out.")
    pids = ServiceClient(url, api_key).serving_pids(timeout_s=_ANSWER_S_MAX)
    parts = urlsplit(url)
    if pids:
        target.found_pid = pids[0]
    elif pids is None and is_loopback(parts.hostname or "") and parts.port is not None:
        # Another kind of service: on loopback, who listens is who answers.
        target.found_pid = _listener(parts.port)
    return target


def _listener(port: int) -> int | None:
    """The process that listens on a loopback port, as far as it may be known."""
    with contextlib.suppress(psutil.Error, OSError):
        for connection in psutil.net_connections(kind="tcp"):
            if connection.status == psutil.CONN_LISTEN and connection.laddr and connection.laddr.port == port:
                return connection.pid
    return None


def own_target(
    resolved: ResolvedDeployment,
    folder: Path,
    *,
    model_flags: Mapping[str, str],
    seed: int,
    budget_room: int | None,
    simulator_script: Any = None,
    tenants: tuple[str, ...] = (),
) -> Target:
    """Starts `serve` with the user's deployment on a free port, and a simulated model unless `model_flags` name one.

    Args:
        resolved: the user's deployment.
        folder: for the derived configuration, state and log.
        model_flags: options of `serve` that name the model, with their values.
        seed: of the simulated model.
        budget_room: daily budgets below so many tokens are raised to it; None keeps them.
        simulator_script: what the simulated model does where a prompt says nothing else.
        tenants: take only these tenants of the deployment.

    Raises ConfigError where the service does not start, InternalError where it is not ready in time.
    """
    target = Target("", {}, ())
    try:
        flags = dict(model_flags)
        if not flags:
            target.simulator = start_simulator(simulator_script, seed=seed)
            flags = {"--model": "simulated-load", "--base-url": target.simulator.base_url}
            target.differences.append("model: the simulator")
        config = _derived(resolved, target, budget_room, tenants)
        words = [part for pair in flags.items() for part in pair]
        target.service = PrivateService(folder, config, keys=target.keys, flags=words, replaced=_REPLACED)
        target.url = target.service.url
        target.service.start()
    except ServiceStartError as error:
        target.close()
        if error.ended:
            raise ConfigError(error.message, hint="`agentao-gov serve` shows the same error.") from None
        raise InternalError(error.message) from None
    except BaseException:
        target.close()
        raise
    return target


def _derived(
    resolved: ResolvedDeployment, target: Target, budget_room: int | None, only: tuple[str, ...]
) -> dict[str, Any]:
    """The user's deployment with the differences a test needs, each noted on the target."""
    config: dict[str, Any] = resolved.deployment.model_dump(mode="json", by_alias=True, exclude_none=True)
    config["profiles"] = {"dir": str(resolved.profiles_dir.absolute())}
    budget = config["budget"]
    if budget.get("store") != "memory":
        if budget.get("store") != "sqlite":
            target.differences.append("budget.store: sqlite in a private directory, so that no row reaches yours")
        budget |= {"store": "sqlite", "path": "ledger.db"}
    _give_keys(config, target, only)
    if budget_room is not None:
        _raise_budgets(config, target, budget_room)
    return config


def _give_keys(config: dict[str, Any], target: Target, only: tuple[str, ...]) -> None:
    named = [name for name in config.get("tenants", {}) if name != "default"]
    chosen = [name for name in named if not only or name in only]
    if only and (unknown := sorted(set(only) - set(named) - {"default"})):
        raise ConfigError(f"The deployment has no tenant {unknown[0]!r}; there are: {', '.join(named) or 'none'}.")
    for name in named:
        key = secrets.token_urlsafe(24)
        config["tenants"][name]["api_key_sha256"] = [hashlib.sha256(key.encode()).hexdigest()]
        target.keys[name] = key
    target.tenants = tuple(chosen) or ("default",)
    if named:
        target.differences.append("tenants: keys made for this run")


def _raise_budgets(config: dict[str, Any], target: Target, room: int) -> None:
    places = [(config["budget"], f"{kind}_daily_tokens") for kind in ("tenant", "user", "session")]
    places += [(tenant, "daily_tokens") for tenant in config.get("tenants", {}).values()]
    low = [(table, key) for table, key in places if table.get(key, room) < room]
    for table, key in low:
        table[key] = room
    if low:
        target.differences.append(f"daily budgets: at least {room:,} tokens each (--keep-budgets keeps yours)")


@dataclass(frozen=True, slots=True)
class ServiceLimits:
    """What the service may use at most; each None where there is none, or where it cannot be known.

    Read from the process that serves, once it is ready: `serve` raises its soft limit of descriptors to the hard one,
    and its warden's says nothing.
    """

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
    """What the service at `url` says of its limits to the tenant of `key`; empty where it says nothing."""
    status = ServiceClient(url, key).status(timeout_s=_ANSWER_S_MAX)
    pool, plan = status.get("pool"), status.get("capacity")
    said = {
        **({name: pool.get(name) for name in ("max_sessions", "max_busy")} if isinstance(pool, dict) else {}),
        **({"memory_bytes": plan.get("memory_bytes")} if isinstance(plan, dict) else {}),
    }
    return {name: value for name, value in said.items() if isinstance(value, int)}


def limits_of(target: Target, said: Mapping[str, int | None]) -> ServiceLimits:
    """The limits that hold for the `target`, by its process and by what was `said` of it."""
    limits = ServiceLimits(max_sessions=said.get("max_sessions"), max_busy=said.get("max_busy"))
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
