"""What is put under load: a service that already runs, or the user's own configuration started as a real `serve`.

The started one differs from the user's in what a test must not touch, and the report lists each difference: its own
port, state and ledger, keys made for this run, a simulated model unless another was asked for, and daily budgets out of
the way (`--keep-budgets` keeps them).
"""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import json
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil
import tomli_w

from agentao_gov.config import ResolvedDeployment, is_loopback
from agentao_gov.config.deployment import Deployment
from agentao_gov.errors import ConfigError, InternalError, UsageError
from agentao_gov.loadtest.driver import free_port
from agentao_gov.loadtest.server_series import listening_process, tree_of
from agentao_gov.simulator import Simulator, start_simulator
from agentao_gov.testrig.client import asked

__all__ = [
    "Limits",
    "Target",
    "check_ownership",
    "existing_target",
    "group_limit",
    "is_loopback",
    "limits_of",
    "oom_kills",
    "own_target",
    "promised",
    "promised_by",
]


_READY_S_MAX = 60.0
_STOP_S = 30.0
#: Overrides from the environment that this run replaces; those of profiles stay.
_REPLACED = ("AGENTAO_GOV__SERVER__", "AGENTAO_GOV__STATE__", "AGENTAO_GOV__BUDGET__", "AGENTAO_GOV__TENANTS__")
_MODEL_KEY = "AGENTAO_GOV_LOADTEST_MODEL_KEY"


@dataclass(slots=True)
class Target:
    """A service under load. `close` ends what was started here and nothing else."""

    url: str
    #: API key by tenant; empty where none is needed.
    keys: dict[str, str]
    tenants: tuple[str, ...]
    simulator: Simulator | None = None
    process: subprocess.Popen[bytes] | None = None
    #: Differences from the user's configuration, for the report.
    differences: list[str] = field(default_factory=list)
    log: Path | None = None
    #: Of a service on this machine that was not started here.
    found_pid: int | None = None

    @property
    def pid(self) -> int | None:
        """The service's process; None where it is on another machine, or may not be looked at."""
        return self.process.pid if self.process is not None else self.found_pid

    def death(self) -> str | None:
        """Why the service is gone; None while it is there."""
        if self.process is not None:
            code = self.process.poll()
            return None if code is None else f"it ended with {code}{self._last_words()}"
        return None if self.answers() else "nothing answers any more"

    def answers(self, path: str = "/healthz") -> bool:
        """Whether anything speaks HTTP there."""
        return _status(self.url, path) is not None

    def close(self) -> int | None:
        """Ends the service, then its model; how many of the service's processes outlived it. May be called again."""
        family: list[psutil.Process] = []
        if self.process is not None and self.process.poll() is None:
            with contextlib.suppress(psutil.Error):
                family = psutil.Process(self.process.pid).children(recursive=True)
            for signum, wait_s in ((signal.SIGTERM, _STOP_S), (signal.SIGTERM, 5.0), (signal.SIGKILL, 5.0)):
                with contextlib.suppress(ProcessLookupError):
                    self.process.send_signal(signum)
                try:
                    self.process.wait(wait_s)
                    break
                except subprocess.TimeoutExpired:
                    continue
        if self.simulator is not None:
            self.simulator.close()
        if self.process is None:
            return None
        _, alive = psutil.wait_procs(family, timeout=1.0)
        return sum(process.status() != psutil.STATUS_ZOMBIE for process in alive if process.is_running())

    def _last_words(self) -> str:
        if self.log is None or not self.log.exists():
            return ""
        lines = self.log.read_text(errors="replace").strip().splitlines()
        return f": {lines[-1][:300]}" if lines else ""


def check_ownership(url: str, *, owned: bool) -> None:
    """Refuses to load what may be someone else's. Raises UsageError."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise UsageError(f"--target {url!r} is not an http or https URL.")
    if not owned and not is_loopback(parts.hostname):
        raise UsageError(
            f"--target {parts.hostname} is not this machine.",
            hint="Add --i-own-this-target if you may put load on it.",
        )


def existing_target(url: str, *, api_key: str | None, tenant: str = "default") -> Target:
    """A service that already runs. Raises ConfigError when nothing answers."""
    target = Target(url, {tenant: api_key} if api_key else {}, (tenant,))
    if not target.answers():
        raise ConfigError(f"Nothing answers at {url}.", hint="Start the service first, or leave --target out.")
    parts = urlsplit(url)
    if is_loopback(parts.hostname or "") and parts.port is not None:
        target.found_pid = _listener(parts.port)
    return target


def _listener(port: int) -> int | None:
    """The process that listens on a port of this machine, as far as it may be known."""
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
    started: Callable[[int], None] = lambda _pid: None,
) -> Target:
    """Starts `serve` with the user's deployment on a free port, and a simulated model unless `model_flags` name one.

    Args:
        folder: private directory for the derived configuration, state and log.
        budget_room: daily budgets below so many tokens are raised to it; None keeps them.
        tenants: take only these tenants of the deployment.
        started: told the service's pid as soon as there is one.
    """
    target = Target("", {}, ())
    try:
        flags = dict(model_flags)
        if not flags:
            target.simulator = start_simulator(simulator_script, seed=seed)
            flags = {"--model": "simulated-load", "--base-url": target.simulator.base_url, "--api-key-env": _MODEL_KEY}
            target.differences.append("model: the simulator")
        config = _derived(resolved, target, folder, budget_room, tenants)
        path = folder / "agentao-gov.toml"
        path.write_text(tomli_w.dumps(config))
        port = free_port()
        target.url = f"http://127.0.0.1:{port}"
        target.log = folder / "serve.log"
        _start_serve(target, path, port, flags, folder, started)
    except BaseException:
        target.close()
        raise
    return target


def _start_serve(
    target: Target,
    config: Path,
    port: int,
    flags: Mapping[str, str],
    folder: Path,
    started: Callable[[int], None],
) -> None:
    command = [sys.executable, "-P", "-m", "agentao_gov.main", "serve"]
    command += ["--config", str(config), "--host", "127.0.0.1", "--port", str(port)]
    command += [part for pair in flags.items() for part in pair]
    assert target.log is not None
    with target.log.open("ab") as log:
        target.process = subprocess.Popen(  # noqa: S603  our own interpreter and command
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=_environment(folder),
            start_new_session=True,
        )
    started(target.process.pid)
    deadline = time.monotonic() + _READY_S_MAX
    while _status(target.url, "/readyz") != 200:
        if target.process.poll() is not None:
            words = target.log.read_text(errors="replace").strip()[-800:]
            raise ConfigError(f"The service did not start: {words}", hint="`agentao-gov serve` shows the same error.")
        if time.monotonic() > deadline:
            raise InternalError(f"The service was not ready within {_READY_S_MAX:g} s; its log is {target.log}.")
        time.sleep(0.05)


def _environment(folder: Path) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(_REPLACED)}
    # tiktoken would leave a copy of its table in the temporary directory.
    ours = {"AGENTAO_GOV_STATE": str(folder / "state"), _MODEL_KEY: "simulated", "TIKTOKEN_CACHE_DIR": ""}
    return kept | ours


def _derived(
    resolved: ResolvedDeployment, target: Target, folder: Path, budget_room: int | None, only: tuple[str, ...]
) -> dict[str, Any]:
    """The user's deployment with the differences a test needs, each noted on the target."""
    config: dict[str, Any] = resolved.deployment.model_dump(mode="json", by_alias=True, exclude_none=True)
    config["server"] |= {"host": "127.0.0.1", "port": 0}
    config["state"] = {"dir": str(folder / "state")}
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


def _status(url: str, path: str) -> int | None:
    """The status of a GET, None where nothing answers HTTP."""
    try:
        with asked(url, path) as answer:
            return answer.status
    except (OSError, http.client.HTTPException):
        return None


# What the service may use at most: its process's own limits, its control groups', its configuration's.
#
# Read from the process that serves, once it is ready: `serve` raises its soft limit of descriptors to the hard one, and
# its warden's says nothing. Nothing here raises: a limit that cannot be read is one that cannot be named.

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
