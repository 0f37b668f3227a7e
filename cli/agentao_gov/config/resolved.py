"""Configuration with where each value came from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from agentao_gov.config.deployment import Deployment
from agentao_gov.config.findings import Finding
from agentao_gov.config.profile import Profile

__all__ = ["ResolvedDeployment", "ResolvedProfile"]


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
        """Where a value came from; `default` for keys nobody set."""
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
        """Where a value came from; `default` for keys nobody set."""
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
