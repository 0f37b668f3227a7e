"""Who a key names, and that no door stands open by accident."""

from __future__ import annotations

import hashlib

import pytest

from agentao_gov.errors import AuthError, ConfigError, ForbiddenOriginError
from agentao_gov.service.tenants import TenantDirectory, require_local_page


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

    assert directory.tenant_of(None) == directory.tenant_of("Bearer anything") == "default"


@pytest.mark.parametrize("host", ["127.0.0.1:8080", "localhost:8080", "localhost", "[::1]:8080"])
def test_programs_and_the_own_page_reach_an_open_service(host: str) -> None:
    """A program sends no origin; the service's page sends the service's."""
    require_local_page(host, None)
    require_local_page(host, f"http://{host}")


@pytest.mark.parametrize(
    ("host", "origin"),
    [
        ("127.0.0.1:8080", "https://evil.example"),
        ("127.0.0.1:8080", "null"),
        ("127.0.0.1:8080", "http://127.0.0.1:3000"),
        ("rebound.example:8080", None),
        ("rebound.example:8080", "http://rebound.example:8080"),
        ("127.0.0.1.evil.example", None),
        ("localhost.evil.example", None),
        ("", None),
        (None, None),
    ],
)
def test_web_pages_elsewhere_do_not(host: str | None, origin: str | None) -> None:
    """Neither by posting to loopback nor by a name that is made to mean it."""
    with pytest.raises(ForbiddenOriginError):
        require_local_page(host, origin)


def test_a_host_that_is_no_address_is_refused_too() -> None:
    """Not an internal error."""
    with pytest.raises(ForbiddenOriginError):
        require_local_page("[::1", None)
