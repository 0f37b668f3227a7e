"""What the static checks look at: the configuration, the profiles it offers, and the machine."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import psutil

from agentao_gov.config.deployment import Deployment, Tenant
from agentao_gov.config.profile import Profile
from agentao_gov.config.resolved import ResolvedProfile

__all__ = ["Facts", "Machine"]

_CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")


@dataclass(frozen=True, slots=True)
class Machine:
    """What there is to share."""

    memory_bytes: int

    @classmethod
    def here(cls) -> Machine:
        """This machine, within its cgroup's limit where it has one."""
        total = psutil.virtual_memory().total
        try:
            limit = int(_CGROUP_LIMIT.read_text())
        except (OSError, ValueError):
            # No cgroup v2 here, or "max".
            return cls(total)
        return cls(min(total, limit))


@dataclass(frozen=True, slots=True)
class Facts:
    """One configuration on one machine."""

    deployment: Deployment
    profiles: tuple[ResolvedProfile, ...]
    machine: Machine
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
