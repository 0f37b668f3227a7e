"""What the checklist looks at: the deployment, the profiles that tenants may use, the one it probes, the machine."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import psutil

from agentao_gov.config import Overrides, ResolvedDeployment, ResolvedProfile, load_profile, profile_paths
from agentao_gov.config.deployment import Deployment, Tenant
from agentao_gov.config.profile import Profile
from agentao_gov.errors import ConfigError

_CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")
#: The probed profile where nobody names one.
DEFAULT_PROFILE = "qa"


@dataclass(frozen=True, slots=True)
class Facts:
    """One configuration on one machine."""

    deployment: Deployment
    profiles: tuple[ResolvedProfile, ...]
    #: What the machine has to share, within its control group's limit.
    memory_bytes: int
    #: Where the service would keep its ledger; None where nobody said.
    state_dir: Path | None = None
    #: The deployment file; None where defaults hold.
    path: Path | None = None

    @property
    def offered(self) -> tuple[Profile, ...]:
        """The profiles themselves."""
        return tuple(resolved.profile for resolved in self.profiles)

    @property
    def open_door(self) -> bool:
        """No keys: everyone on loopback is tenant `default`."""
        return not any(tenant.api_key_sha256 for tenant in self.deployment.tenants.values())

    @property
    def tenants(self) -> dict[str, Tenant]:
        """Everyone who can get in. An open door lets `default` in, configured or not."""
        named = dict(self.deployment.tenants)
        if self.open_door:
            named.setdefault("default", Tenant())
        return named


def gather(
    deployment: ResolvedDeployment, profile: str | None, overrides: Overrides | None = None
) -> tuple[Facts, ResolvedProfile]:
    """The facts, and the profile whose turns are probed.

    Args:
        deployment: the user's.
        profile: the one profile to look at, by name or path; None: all that some tenant may use.
        overrides: of the command line, for profiles.

    Raises ConfigError, also where no tenant may use any profile.
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
    return Facts(deployment.deployment, profiles, _memory_bytes(), deployment.state_dir, deployment.path)


def _memory_bytes() -> int:
    total = psutil.virtual_memory().total
    try:
        return min(total, int(_CGROUP_LIMIT.read_text()))
    except (OSError, ValueError):
        # No cgroup v2 here, or "max".
        return total


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


def shown_path(path: Path) -> str:
    """As people and CI systems name it: below the current directory where it is there."""
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return str(path)
