"""Who a key names, and that no door stands open by accident."""

from __future__ import annotations

import hashlib

import pytest

from agentao_gov.errors import AuthError, ConfigError
from agentao_gov.service.auth import TenantDirectory, is_loopback


def digest(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


KEYS = {"acme": [digest("k-acme"), digest("k-acme-2")], "bolt": [digest("k-bolt")], "default": []}


@pytest.mark.parametrize(("key", "tenant"), [("k-acme", "acme"), ("k-acme-2", "acme"), ("k-bolt", "bolt")])
def test_a_key_names_its_tenant(key: str, tenant: str) -> None:
    """Each of a tenant's keys does."""
    assert TenantDirectory(KEYS, host="0.0.0.0").tenant_of(f"Bearer {key}") == tenant


@pytest.mark.parametrize(
    "header", [None, "", "Bearer", "Bearer ", "Bearer wrong", "Basic k-acme", "k-acme", f"Bearer {digest('k-acme')}"]
)
def test_anything_else_is_refused(header: str | None) -> None:
    """A hash is not a key, and another scheme is none either."""
    with pytest.raises(AuthError):
        TenantDirectory(KEYS, host="127.0.0.1").tenant_of(header)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "example.org", ""])
def test_a_reachable_listener_without_keys_does_not_start(host: str) -> None:
    """Fail closed."""
    with pytest.raises(ConfigError):
        TenantDirectory({"default": []}, host=host)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.9.9.9", "::1", "[::1]", "localhost"])
def test_on_loopback_without_keys_everyone_is_the_default_tenant(host: str) -> None:
    """Whatever key an OpenAI client sends along."""
    directory = TenantDirectory({}, host=host)

    assert is_loopback(host)
    assert directory.tenant_of(None) == directory.tenant_of("Bearer anything") == "default"
