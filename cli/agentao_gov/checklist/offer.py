"""Gathers what the checklist looks at: the deployment, the profiles its tenants may use, and the one that is probed."""

from __future__ import annotations

from agentao_gov.checklist.facts import Facts, Machine
from agentao_gov.checklist.places import shown_path
from agentao_gov.config import Overrides, ResolvedDeployment, ResolvedProfile, load_profile, profile_paths
from agentao_gov.errors import ConfigError

__all__ = ["config_name", "gather"]

#: The probed profile where nobody names one.
DEFAULT_PROFILE = "qa"


def gather(
    deployment: ResolvedDeployment, profile: str | None, overrides: Overrides | None = None
) -> tuple[Facts, ResolvedProfile]:
    """The facts, and the profile whose turns are probed.

    With a named profile only that one is looked at; without, all that some tenant may use. Raises ConfigError.
    """
    if profile is not None:
        one = load_profile(profile, deployment=deployment, overrides=overrides)
        return _facts(deployment, (one,)), one
    names = _offered(deployment)
    if not names:
        raise ConfigError("No tenant may use any profile.", hint="`agentao-gov profile list` shows what there is.")
    resolved = {name: load_profile(name, deployment=deployment, overrides=overrides) for name in names}
    probed = resolved.get(DEFAULT_PROFILE) or next(iter(resolved.values()))
    return _facts(deployment, tuple(resolved.values())), probed


def _facts(deployment: ResolvedDeployment, profiles: tuple[ResolvedProfile, ...]) -> Facts:
    return Facts(deployment.deployment, profiles, Machine.here(), deployment.state_dir, deployment.path)


def _offered(deployment: ResolvedDeployment) -> list[str]:
    wanted: set[str] = set()
    tenants = deployment.deployment.tenants
    for tenant in tenants.values():
        if tenant.profiles is None:
            return list(profile_paths(deployment))
        wanted |= set(tenant.profiles)
    return sorted(wanted) if tenants else list(profile_paths(deployment))


def config_name(deployment: ResolvedDeployment) -> str:
    """How the report names the configuration."""
    return "defaults (no deployment file)" if deployment.path is None else shown_path(deployment.path)
