"""Which tenant a request comes from, and which profiles, each with its model, that tenant may use.

Keys are known by their SHA-256 alone and compared in constant time. Profiles are resolved once, at the start, so that
no request reads a file.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from agentao_gov.config import is_loopback
from agentao_gov.errors import AuthError, ConfigError, ForbiddenOriginError, ProfileNotAllowedError

if TYPE_CHECKING:
    from agentao_gov.config import ModelChoice, ResolvedProfile

#: Who asks where no key is configured.
DEFAULT_TENANT = "default"
#: Stands where a tenant's name does when the operator asks; no tenant can be called so.
ADMIN = ""


def require_local_page(host: str | None, origin: str | None) -> None:
    """Refuses what a web page elsewhere has a browser send to an open service on loopback: ForbiddenOriginError.

    `host`, `origin`: the request's headers of these names; None where it has none.

    A page may post to 127.0.0.1 unasked, and its own name may be made to mean 127.0.0.1 (DNS rebinding). The first
    shows in `Origin`, the second in `Host`; programs send no `Origin`. With keys neither gets anywhere.
    """
    try:
        name = urlsplit(f"//{host or ''}").hostname or ""
    except ValueError:
        name = ""
    if not is_loopback(name):
        raise ForbiddenOriginError(f"Without API keys the service answers to this machine's names only, not {host!r}.")
    if origin is not None and origin != f"http://{host}":
        raise ForbiddenOriginError(f"Without API keys the service takes nothing from pages of {origin!r}.")


class TenantDirectory:
    """Finds tenants by key. Immutable, so any thread may ask."""

    def __init__(
        self, keys_sha256: Mapping[str, Iterable[str]], *, host: str, admin_sha256: Iterable[str] = ()
    ) -> None:
        """Takes the keys there are.

        `keys_sha256`: tenant to the lowercase hex hashes of its keys. `host`: the address the service listens on.
        `admin_sha256`: hashes of the operator's own keys. Raises ConfigError where other machines could reach it
        without a key.
        """
        self._keys = tuple(
            (tenant, bytes.fromhex(digest)) for tenant, digests in keys_sha256.items() for digest in digests
        )
        self._admin_keys = tuple((ADMIN, bytes.fromhex(digest)) for digest in admin_sha256)
        if not self._keys and not is_loopback(host):
            raise ConfigError(
                f"The service would listen on {host}, which other machines can reach, without any API key.",
                hint="Create one with `agentao-gov tenant new NAME`, or bind to 127.0.0.1.",
            )

    @property
    def open(self) -> bool:
        """Whether no keys are configured, so that everyone on loopback is tenant `default`."""
        return not self._keys

    def tenant_of(self, authorization: str | None) -> str:
        """The tenant that the header `Authorization` names; raises AuthError where keys exist and none fits."""
        if self.open:
            # OpenAI clients always send some key; on an open loopback service it names nobody.
            return DEFAULT_TENANT
        found = _owner(authorization, self._keys)
        if found is None:
            raise AuthError("The API key names no tenant.")
        return found

    def require_admin(self, authorization: str | None) -> None:
        """Raises AuthError where the header `Authorization` carries no key of the operator's."""
        if not self.is_admin(authorization):
            raise AuthError("Only the admin key opens this.")

    def is_admin(self, authorization: str | None) -> bool:
        """Whether the header `Authorization` carries one of the operator's own keys."""
        try:
            return _owner(authorization, self._admin_keys) is not None
        except AuthError:
            return False


def _owner(authorization: str | None, keys: tuple[tuple[str, bytes], ...]) -> str | None:
    """Whose key it is; None where it is nobody's. Raises AuthError where there is no key."""
    scheme, _, key = (authorization or "").partition(" ")
    key = key.strip()
    if scheme.lower() != "bearer" or not key:
        raise AuthError("No API key was sent: `Authorization: Bearer KEY` is missing.")
    digest = hashlib.sha256(key.encode()).digest()
    found: str | None = None
    # Every hash is compared, so that the time tells nothing about which one came close.
    for owner, known in keys:
        if hmac.compare_digest(digest, known) and found is None:
            found = owner
    return found


@dataclass(frozen=True, slots=True)
class OfferedProfile:
    """A profile and the model its turns run on."""

    resolved: ResolvedProfile
    model: ModelChoice

    @property
    def name(self) -> str:
        """What clients call it."""
        return self.resolved.profile.name


class ProfileCatalog:
    """Finds profiles by name, per tenant. Immutable."""

    def __init__(self, offered: Mapping[str, OfferedProfile], allowed: Mapping[str, list[str] | None]) -> None:
        """Takes what is served and who may use it.

        `offered`: by name, every profile that is served. `allowed`: tenant to the names it may use; None, or a tenant
        that is not there: all of them. Raises ConfigError for a name that is not served.
        """
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
        """The tenant's profile `name`; where that is None `qa`, or the first one the tenant may use.

        Raises ProfileNotAllowedError.
        """
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
