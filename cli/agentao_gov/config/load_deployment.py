"""Finds the deployment file, merges the layers and checks the result."""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Literal

from agentao_gov.config.deployment import Deployment
from agentao_gov.config.findings import Finding, raise_errors
from agentao_gov.config.layers import RANK_FILE, ConfigLayer, Layers, Overrides, flatten
from agentao_gov.config.load_profile import inspect_profile, profile_paths
from agentao_gov.config.model import model_findings
from agentao_gov.config.resolved import ResolvedDeployment, layers_for
from agentao_gov.config.toml_text import key_line, read_toml
from agentao_gov.config.units import format_duration
from agentao_gov.config.validate import build, finding
from agentao_gov.errors import ConfigError

FILE_NAME = "agentao-gov.toml"
CONFIG_VARIABLE = "AGENTAO_GOV_CONFIG"
STATE_VARIABLE = "AGENTAO_GOV_STATE"


def find_deployment(path: str | Path | None, environ: Mapping[str, str]) -> Path | None:
    """The file: the one given, the one AGENTAO_GOV_CONFIG names, else `./agentao-gov.toml` where it exists."""
    if path is not None:
        return Path(path).expanduser()
    if named := environ.get(CONFIG_VARIABLE):
        return Path(named).expanduser()
    return Path(FILE_NAME) if Path(FILE_NAME).is_file() else None


def load_deployment(
    path: str | Path | None = None,
    *,
    overrides: Overrides | None = None,
    environ: Mapping[str, str] | None = None,
) -> ResolvedDeployment:
    """The deployment with everything that overrides it; all defaults where there is no file.

    `path`: the file; None: the one that AGENTAO_GOV_CONFIG names, else `agentao-gov.toml` here. `overrides`: what the
    command line says. `environ`: where variables are read; None: this process's. Raises ConfigError listing all that is
    wrong. Blocks for file access.
    """
    resolved, findings = inspect_deployment(path, overrides=overrides, environ=environ)
    raise_errors(findings, what="The deployment", hint="`agentao-gov config schema` lists every key.")
    assert resolved is not None, "a deployment without error findings has been built"
    return resolved


def inspect_deployment(
    path: str | Path | None = None,
    *,
    overrides: Overrides | None = None,
    environ: Mapping[str, str] | None = None,
) -> tuple[ResolvedDeployment | None, tuple[Finding, ...]]:
    """As `load_deployment`, but errors in the file's values are returned, not raised: for `config check`."""
    environ = os.environ if environ is None else environ
    file = find_deployment(path, environ)
    stack: list[ConfigLayer] = []
    if file is not None:
        values, text = read_toml(file, what="deployment file")
        stack.append(ConfigLayer(values, f"file {file.name}", RANK_FILE, file, text))
    stack += layers_for(Deployment, overrides or Overrides(), environ, Layers(stack).values)
    layers = Layers(stack)
    deployment, findings = build(Deployment, layers)
    if deployment is None:
        return None, tuple(findings)
    findings += [*_impossible(deployment, layers), *_unwise(deployment, layers)]
    findings += model_findings(deployment.model, layers)
    sources = {key: layers.source(key) for key, _ in flatten(deployment.model_dump(by_alias=True))}
    state = environ.get(STATE_VARIABLE)
    if state:
        sources["state.dir"] = f"environment {STATE_VARIABLE}"
    base = file.parent if file else Path.cwd()
    state_dir = (base / Path(state or deployment.state.dir).expanduser()).absolute()
    resolved = ResolvedDeployment(deployment, sources, tuple(findings), file.absolute() if file else None, state_dir)
    return resolved, tuple(findings)


# ── combinations that cannot work, or not as anybody would want ───────────────────────────────────


def _impossible(deployment: Deployment, layers: Layers) -> Iterator[Finding]:
    """Combinations that cannot work."""
    server, shutdown = deployment.server, deployment.shutdown
    if shutdown.total_s > server.shutdown_budget_s:
        text = (
            f"the rungs add up to {format_duration(shutdown.total_s)}, more than the shutdown_budget of "
            f"{format_duration(server.shutdown_budget_s)}"
        )
        yield finding(layers, "shutdown", text, error=True)
    if not is_loopback(server.host) and not any(tenant.api_key_sha256 for tenant in deployment.tenants.values()):
        text = f"{server.host} is not loopback, and no tenant has an api key; `agentao-gov tenant new NAME` makes one"
        yield finding(layers, "server.host", text, error=True)
    if server.max_message_bytes > server.max_body_bytes:
        yield finding(layers, "server.max_message", "is larger than max_body, so it can never be met", error=True)
    owners: dict[str, str] = {}
    for name, tenant in deployment.tenants.items():
        for digest in tenant.api_key_sha256:
            if owners.setdefault(digest, name) != name:
                text = f"the same key also belongs to tenant {owners[digest]!r}"
                yield finding(layers, f"tenants.{name}.api_key_sha256", text, error=True)


def _unwise(deployment: Deployment, layers: Layers) -> Iterator[Finding]:
    """Combinations that work, but not as anybody would want."""
    pool, budget = deployment.pool, deployment.budget
    if pool.max_busy > pool.max_sessions:
        text = f"{pool.max_busy} turns at once can never run in {pool.max_sessions} sessions"
        yield finding(layers, "pool.max_busy", text, error=False)
    if pool.session_memory_bytes and pool.mode != "subprocess":
        text = f"has no effect with mode {pool.mode!r}: only a session process has a memory limit"
        yield finding(layers, "pool.session_memory", text, error=False)
    chain = (
        ("budget.session_daily_tokens", budget.session_daily_tokens, "user_daily_tokens", budget.user_daily_tokens),
        ("budget.user_daily_tokens", budget.user_daily_tokens, "tenant_daily_tokens", budget.tenant_daily_tokens),
    )
    for key, inner, outer_name, outer in chain:
        if inner and outer and inner > outer:
            text = f"{inner:,} can never be spent under the {outer_name} of {outer:,}"
            yield finding(layers, key, text, error=False)
    for name, tenant in deployment.tenants.items():
        if tenant.max_sessions and tenant.max_sessions > pool.max_sessions:
            text = f"{tenant.max_sessions} is more than the pool's {pool.max_sessions}"
            yield finding(layers, f"tenants.{name}.max_sessions", text, error=False)


def is_loopback(host: str) -> bool:
    """Whether a listener on this host can be reached from this machine alone."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


# ── what `config check` looks at: the file, its tenants' profiles, the profiles it offers ─────────


def audit_deployment(
    path: Path | None, *, check_threshold: Callable[[str], object], check_prices: Callable[[Path], object]
) -> list[Finding]:
    """All findings. Raises ConfigError where there is nothing to read.

    `check_threshold` raises ConfigError for a load-test threshold that cannot be read, `check_prices` for a file that
    is no price table; both stand on floors above.
    """
    deployment, found = inspect_deployment(path)
    findings = list(found)
    if deployment is None:
        return findings
    text = deployment.path.read_text("utf-8-sig") if deployment.path else ""
    known = profile_paths(deployment)
    for name, tenant in deployment.deployment.tenants.items():
        for profile in tenant.profiles or ():
            if profile not in known:
                key = f"tenants.{name}.profiles"
                message = f"there is no profile {profile!r}; there are: {', '.join(sorted(known))}"
                findings.append(Finding("error", key, message, deployment.path, key_line(text, key)))
    for level, key, message in _unusable(deployment, check_threshold, check_prices):
        findings.append(Finding(level, key, message, deployment.path, key_line(text, key)))
    for file in known.values():
        findings += inspect_profile(file, deployment=deployment)[1]
    return findings


def _unusable(
    deployment: ResolvedDeployment, check_threshold: Callable[[str], object], check_prices: Callable[[Path], object]
) -> Iterator[tuple[Literal["error", "warning"], str, str]]:
    """What only a later command would stumble over."""
    for expression in deployment.deployment.loadtest.thresholds:
        try:
            check_threshold(expression)
        except ConfigError as error:
            yield "error", "loadtest.thresholds", error.message.rstrip(".")
    if deployment.prices_path is not None:
        try:
            check_prices(deployment.prices_path)
        except ConfigError as error:
            yield "error", "budget.prices", error.message.rstrip(".")
    if "profiles.dir" in deployment.sources and deployment.sources["profiles.dir"] != "default":
        directory = deployment.profiles_dir
        if not directory.is_dir():
            yield "warning", "profiles.dir", f"there is no directory {str(directory)!r}: the shipped profiles are used"
