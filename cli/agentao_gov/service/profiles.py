"""Which profiles a tenant may use, each with its model: resolved once at start, so that no request reads a file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from agentao_gov.errors import ConfigError, ProfileNotAllowedError

if TYPE_CHECKING:
    from agentao_gov.config import ModelChoice, ResolvedProfile

__all__ = ["OfferedProfile", "ProfileBook"]


@dataclass(frozen=True, slots=True)
class OfferedProfile:
    """A profile and the model its turns run on."""

    resolved: ResolvedProfile
    model: ModelChoice

    @property
    def name(self) -> str:
        """What clients call it."""
        return self.resolved.profile.name


class ProfileBook:
    """Finds profiles by name, per tenant. Immutable."""

    def __init__(self, offered: Mapping[str, OfferedProfile], allowed: Mapping[str, list[str] | None]) -> None:
        """`allowed`: tenant to the names it may use; None or a tenant that is not there: all of them."""
        if not offered:
            raise ConfigError("There is no profile to serve.", hint="`agentao-gov init` writes some.")
        self._offered = dict(offered)
        self._allowed = dict(allowed)
        for tenant, names in self._allowed.items():
            for name in names or ():
                if name not in self._offered:
                    raise ConfigError(
                        f"Tenant {tenant!r} is allowed the profile {name!r}, which cannot be served; "
                        f"there are: {', '.join(sorted(self._offered))}.",
                        hint="`agentao-gov profile list` shows the profiles.",
                    )

    def of_tenant(self, tenant: str) -> list[OfferedProfile]:
        """What the tenant may use, in the order it was allowed."""
        names = self._allowed.get(tenant, self._allowed.get("default") if tenant not in self._allowed else None)
        return [self._offered[name] for name in (self._offered if names is None else names)]

    def resolve(self, tenant: str, name: str | None) -> OfferedProfile:
        """One profile; without a name `qa`, or the first one the tenant may use."""
        mine = {offer.name: offer for offer in self.of_tenant(tenant)}
        if name is None:
            if not mine:
                raise ProfileNotAllowedError("This tenant may use no profile.")
            return mine.get("qa") or next(iter(mine.values()))
        if name in mine:
            return mine[name]
        # The same words whether others may use such a profile or nobody may: its name is theirs.
        raise ProfileNotAllowedError(f"This tenant has no profile {name!r}. It may use: {', '.join(mine) or 'none'}.")

    def all(self) -> list[OfferedProfile]:
        """Every profile that is served."""
        return list(self._offered.values())
