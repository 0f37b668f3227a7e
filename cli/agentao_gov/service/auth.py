"""Names the tenant behind an API key. Keys are known by their SHA-256 alone and compared in constant time."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable, Mapping
from urllib.parse import urlsplit

from agentao_gov.config import is_loopback
from agentao_gov.errors import AuthError, ConfigError, ForbiddenOriginError

__all__ = ["DEFAULT_TENANT", "TenantDirectory", "require_local_page"]

DEFAULT_TENANT = "default"


def require_local_page(host: str | None, origin: str | None) -> None:
    """Refuses what a web page elsewhere has a browser send to an open service on loopback.

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

    def __init__(self, keys_sha256: Mapping[str, Iterable[str]], *, host: str) -> None:
        """`keys_sha256`: tenant to the lowercase hex hashes of its keys. Raises ConfigError for an open door."""
        self._keys = tuple(
            (tenant, bytes.fromhex(digest)) for tenant, digests in keys_sha256.items() for digest in digests
        )
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
        """The tenant of an `Authorization` header; raises AuthError where keys exist and none fits."""
        if self.open:
            # OpenAI clients always send some key; on an open loopback service it names nobody.
            return DEFAULT_TENANT
        scheme, _, key = (authorization or "").partition(" ")
        key = key.strip()
        if scheme.lower() != "bearer" or not key:
            raise AuthError("No API key was sent: `Authorization: Bearer KEY` is missing.")
        digest = hashlib.sha256(key.encode()).digest()
        found: str | None = None
        # Every hash is compared, so that the time tells nothing about which one came close.
        for tenant, known in self._keys:
            if hmac.compare_digest(digest, known) and found is None:
                found = tenant
        if found is None:
            raise AuthError("The API key names no tenant.")
        return found
