"""Configuration with where each value came from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from agentao_gov.config.deployment import Deployment
from agentao_gov.config.findings import Finding
from agentao_gov.config.layers import (
    ConfigLayer,
    Overrides,
    environment_layers,
    flag_layers,
    nearest_key,
    set_layers,
    type_at,
)
from agentao_gov.config.profile import Profile
from agentao_gov.errors import ConfigError


@dataclass(frozen=True, slots=True)
class ResolvedProfile:
    """A profile ready to run under."""

    profile: Profile
    #: Where each value came from, by dotted TOML key: `{"limits.turn_timeout": "flag --timeout"}`.
    sources: Mapping[str, str]
    #: What is worth knowing: warnings here, for errors raise when a profile is loaded.
    findings: tuple[Finding, ...] = ()
    #: The file it came from.
    path: Path | None = None
    #: Rank of the layer each value came from; a stronger layer may clamp a weaker one's value.
    ranks: Mapping[str, int] = field(default_factory=dict, repr=False)

    def source(self, key: str) -> str:
        """Where the value of the dotted `key` came from; `default` where nobody set it."""
        return self.sources.get(key, "default")

    @property
    def adjustments(self) -> tuple[str, ...]:
        """What was lowered to fit another value; part of every report's warnings."""
        return tuple(f"{finding.key}: {finding.message}" for finding in self.findings if finding.adjusted)


@dataclass(frozen=True, slots=True)
class ResolvedDeployment:
    """A deployment ready to run under."""

    deployment: Deployment
    sources: Mapping[str, str]
    findings: tuple[Finding, ...] = ()
    #: The deployment file; None where there is none and defaults hold.
    path: Path | None = None
    #: `[state] dir`, absolute, or AGENTAO_GOV_STATE.
    state_dir: Path = field(default_factory=Path)

    def source(self, key: str) -> str:
        """Where the value of the dotted `key` came from; `default` where nobody set it."""
        return self.sources.get(key, "default")

    @property
    def base_dir(self) -> Path:
        """What relative paths of the file are relative to."""
        return self.path.parent if self.path else Path.cwd()

    @property
    def profiles_dir(self) -> Path:
        """`[profiles] dir`."""
        return self.base_dir / Path(self.deployment.profiles.dir).expanduser()

    @property
    def ledger_path(self) -> Path:
        """`[budget] path`, relative to the state directory."""
        return self.state_dir / Path(self.deployment.budget.path).expanduser()

    @property
    def prices_path(self) -> Path | None:
        """`[budget] prices`; None where the shipped table is all there is."""
        own = self.deployment.budget.prices
        return self.base_dir / Path(own).expanduser() if own else None


# ── what the environment, `--set` and flags say of which model ────────────────────────────────────


def layers_for(
    model: type[BaseModel], overrides: Overrides, environ: Mapping[str, str], written: Mapping[str, Any]
) -> Iterator[ConfigLayer]:
    """The layers of environment, `--set` and flags that belong to one model, lowest first.

    `written` is what the files say: a variable's name, all in capitals, means the tenant or server that is named there.
    `model.*` belongs to both. Raises ConfigError for a key that neither has: a mistyped override that is ignored
    would be a limit that does not hold.
    """
    other: type[BaseModel] = Profile if model is Deployment else Deployment
    layers = [
        *environment_layers(environ, model, written),
        *set_layers(overrides.sets, model),
        *flag_layers(overrides.flags),
    ]
    for layer in layers:
        ((section, _),) = layer.values.items()
        if section in model.model_fields:
            yield layer
        elif section not in other.model_fields:
            raise ConfigError(f"{layer.source}: unknown key{_suggestion(layer) or '.'}")


def _suggestion(layer: ConfigLayer) -> str:
    key = next(iter(layer.values))
    value = layer.values[key]
    while isinstance(value, dict) and value:
        name = next(iter(value))
        key, value = f"{key}.{name}", value[name]
    near = nearest_key(Profile, key) or nearest_key(Deployment, key)
    return f"; did you mean {near}?" if near and (type_at(Profile, near) or type_at(Deployment, near)) else ""
