"""Finds a profile, follows `extends`, merges the layers and checks the result."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agentao_gov.config.checks import (
    fit_tool_timeouts,
    recommendations,
    rule_findings,
    sandbox_findings,
    tool_name_findings,
)
from agentao_gov.config.findings import Finding, raise_errors
from agentao_gov.config.layers import RANK_FILE, RANK_SHIPPED, ConfigLayer, Layers, Overrides, flatten
from agentao_gov.config.mcp import resolve_servers
from agentao_gov.config.model import context_cap, known_model, model_findings
from agentao_gov.config.profile import Profile
from agentao_gov.config.resolved import ResolvedDeployment, ResolvedProfile, layers_for
from agentao_gov.config.toml_text import key_line, read_toml
from agentao_gov.config.validate import build, finding
from agentao_gov.errors import ConfigError, UnknownProfileError
from agentao_gov.resources import shipped

# Deep enough for company -> team -> task -> experiment; a longer chain is nearly always a loop.
_EXTENDS_MAX = 8


def profile_paths(deployment: ResolvedDeployment | None = None) -> dict[str, Path]:
    """Every profile by name, nearest first: `./profiles/`, the deployment's directory, the shipped ones."""
    found: dict[str, Path] = {}
    for directory in _directories(deployment):
        try:
            files = sorted(directory.glob("*.toml")) if directory.is_dir() else []
        except OSError as error:
            raise ConfigError(f"The directory {str(directory)!r} cannot be read: {error.strerror}.") from None
        for file in files:
            found.setdefault(file.stem, file)
    return found


def _directories(deployment: ResolvedDeployment | None) -> Iterator[Path]:
    yield Path("profiles")
    if deployment is not None:
        yield deployment.profiles_dir
    yield shipped("profiles")


def load_profile(
    name: str | Path,
    *,
    deployment: ResolvedDeployment | None = None,
    overrides: Overrides | None = None,
    environ: Mapping[str, str] | None = None,
) -> ResolvedProfile:
    """The profile of a name or file path, with everything that overrides it.

    `name`: a path where it ends in `.toml`, else looked up in `./profiles/`, in the `[profiles] dir` of `deployment`,
    and among the shipped ones. `overrides`: what the command line says. `environ`: where variables are read; None: this
    process's. Raises UnknownProfileError with the names there are, and ConfigError listing all that is wrong.
    """
    resolved, findings = inspect_profile(name, deployment=deployment, overrides=overrides, environ=environ)
    raise_errors(findings, what=f"The profile {str(name)!r}", hint="`agentao-gov profile schema` lists every key.")
    assert resolved is not None, "a profile without error findings has been built"
    return resolved


def inspect_profile(
    name: str | Path,
    *,
    deployment: ResolvedDeployment | None = None,
    overrides: Overrides | None = None,
    environ: Mapping[str, str] | None = None,
) -> tuple[ResolvedProfile | None, tuple[Finding, ...]]:
    """As `load_profile`, but errors in the file's values are returned, not raised: for `profile check`."""
    overrides = overrides or Overrides()
    path = _locate(name, deployment)
    chain = _chain(path, deployment)
    files = [_file_layer(link, _rank(link.path) + i) for i, link in enumerate(chain)]
    environ = os.environ if environ is None else environ
    upper = list(layers_for(Profile, overrides, environ, Layers(files).values))
    upper = [layer for layer in upper if "model" not in layer.values or any("model" in f.values for f in files)]
    layers = Layers([*files, *_with_tool_flag(files, upper)])
    layers.values.setdefault("name", path.stem)
    profile, findings = build(Profile, layers)
    if profile is None:
        return None, tuple(findings)
    profile, fitted = fit_tool_timeouts(profile, layers)
    findings += fitted
    findings += _window_findings(profile, layers, deployment)
    findings += _share_findings(profile, layers, deployment)
    findings += model_findings(profile.model, layers)
    findings += sandbox_findings(profile, layers)
    findings += rule_findings(profile, layers)
    findings += tool_name_findings(profile, layers)
    profile, of_servers = resolve_servers(profile, layers, environ)
    findings += of_servers
    findings += recommendations(profile, layers, profile.model.name if profile.model else None)
    resolved = ResolvedProfile(profile, _sources(profile, layers), tuple(findings), path, _ranks(profile, layers))
    return resolved, tuple(findings)


@dataclass(frozen=True, slots=True)
class _Link:
    path: Path
    values: dict[str, Any]
    text: str


def _locate(name: str | Path, deployment: ResolvedDeployment | None) -> Path:
    text = str(name)
    if isinstance(name, Path) or "/" in text or text.endswith(".toml"):
        return Path(text).expanduser()
    known = profile_paths(deployment)
    if text not in known:
        raise UnknownProfileError(text, list(known), hint="`agentao-gov profile list` shows them.")
    return known[text]


def _chain(path: Path, deployment: ResolvedDeployment | None) -> list[_Link]:
    """The file and all it extends, the root first."""
    links: list[_Link] = []
    while True:
        values, text = read_toml(path, what="profile")
        parent = values.pop("extends", None)
        links.insert(0, _Link(path, values, text))
        if parent is None:
            return links
        place = f"{path}:{key_line(text, 'extends')}"
        if not isinstance(parent, str):
            raise ConfigError(f"{place}: extends: must be the name or path of one profile, not {parent!r}.")
        path = _parent_path(parent, path, deployment, place)
        if any(link.path.resolve() == path.resolve() for link in links) or len(links) >= _EXTENDS_MAX:
            names = " -> ".join(link.path.stem for link in reversed(links))
            raise ConfigError(f"{place}: extends: the profiles extend each other: {names} -> {path.stem}.")


def _parent_path(parent: str, child: Path, deployment: ResolvedDeployment | None, place: str) -> Path:
    if "/" in parent or parent.endswith(".toml"):
        return child.parent / Path(parent).expanduser()
    known = profile_paths(deployment)
    known = {p.stem: p for p in sorted(child.parent.glob("*.toml"))} | {
        k: v for k, v in known.items() if not (child.parent / f"{k}.toml").exists()
    }
    found = known.get(parent)
    # `./profiles/qa.toml` may extend the shipped "qa": a profile never extends itself.
    if found is not None and found.resolve() == child.resolve():
        found = shipped("profiles") / f"{parent}.toml"
    if found is None or not found.exists():
        raise ConfigError(
            f"{place}: extends: there is no profile {parent!r}; there are: {', '.join(sorted(known))}.",
            hint="`agentao-gov profile list` shows them.",
        )
    return found


def _rank(path: Path) -> int:
    return RANK_SHIPPED if path.resolve().parent == shipped("profiles").resolve() else RANK_FILE


def _file_layer(link: _Link, rank: int) -> ConfigLayer:
    # A description belongs to the profile that wrote it, and so does the name.
    name = link.values.get("name")
    label = name if isinstance(name, str) else link.path.stem
    return ConfigLayer(link.values, f"profile {label}", rank, link.path, link.text)


def _with_tool_flag(files: list[ConfigLayer], upper: list[ConfigLayer]) -> Iterator[ConfigLayer]:
    """`--tool-timeout` also overrides the time-outs by tool name and of MCP servers."""
    for layer in upper:
        yield layer
        if layer.source != "flag --tool-timeout":
            continue
        value = layer.values["limits"]["tool_timeout"]
        names = {name for f in [*files, *upper] for name in _table(f.values, "limits", "tool_timeouts")}
        servers = {name for f in files for name in _table(f.values, "mcp", "servers")}
        values: dict[str, Any] = {"limits": {"tool_timeouts": dict.fromkeys(sorted(names), value)}}
        if servers:
            values["mcp"] = {"servers": {name: {"request_timeout": value} for name in sorted(servers)}}
        yield ConfigLayer(values, layer.source, layer.rank)


def _table(values: Mapping[str, Any], *path: str) -> Mapping[str, Any]:
    table: Any = values
    for name in path:
        table = table.get(name, {}) if isinstance(table, dict) else {}
    return table if isinstance(table, dict) else {}


def _window_findings(profile: Profile, layers: Layers, deployment: ResolvedDeployment | None) -> Iterator[Finding]:
    """The context cap against the window, stated or known, of the profile's own model, or of the deployment's.

    Another model may be chosen than the deployment's, and what was shipped is fitted to it: so that is a warning.
    """
    key = "limits.max_context_tokens"
    model = profile.model or (deployment.deployment.model if deployment is not None else None)
    if model is None or (profile.model is None and layers.rank(key) < RANK_FILE):
        return
    known = known_model(model.name) if model.name else None
    window = model.context_window or (known.window if known else None)
    if window and profile.limits.max_context_tokens > context_cap(window):
        text = (
            f"{profile.limits.max_context_tokens:,} is above {context_cap(window):,}, 80 % of the window of "
            f"{window:,} of {model.name!r}; the summariser needs the rest"
        )
        yield finding(layers, key, text, error=profile.model is not None)


def _share_findings(profile: Profile, layers: Layers, deployment: ResolvedDeployment | None) -> Iterator[Finding]:
    """A server cannot be shared by sessions that live in processes of their own."""
    if deployment is None or deployment.deployment.pool.mode != "subprocess":
        return
    for name, server in profile.mcp.servers.items():
        if server.share != "session":
            key = f"mcp.servers.{name}.share"
            text = f'{server.share!r} has no effect with [pool] mode = "subprocess": each session starts its own server'
            yield finding(layers, key, text, error=False)


def _sources(profile: Profile, layers: Layers) -> dict[str, str]:
    sources = {key: layers.source(key) for key, _ in flatten(profile.model_dump(by_alias=True))}
    for table in ("limits.tool_timeouts", "mcp.servers"):
        sources.setdefault(table, layers.source(table))
    return sources


def _ranks(profile: Profile, layers: Layers) -> dict[str, int]:
    return {key: layers.rank(key) for key, _ in flatten(profile.model_dump(by_alias=True))}
