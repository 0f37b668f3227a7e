"""Who a key names, that no door stands open by accident, and which profiles a tenant may use."""

from __future__ import annotations

import hashlib

import pytest

from agentao_gov.errors import AuthError, ConfigError, ForbiddenOriginError, ProfileNotAllowedError
from agentao_gov.service.tenants import OfferedProfile, ProfileCatalog, TenantDirectory, require_local_page
from tests.pool.bench import a_model, a_profile


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


def book(**allowed: list[str] | None) -> ProfileCatalog:
    offered = {name: OfferedProfile(a_profile(name), a_model()) for name in ("qa", "code", "secret-project")}
    return ProfileCatalog(offered, allowed)


def test_a_profile_of_others_and_one_of_nobody_are_told_in_the_same_words() -> None:
    """Or a tenant could find out what the others have."""
    told = []
    for name in ("secret-project", "unheard-project"):
        with pytest.raises(ProfileNotAllowedError) as refused:
            book(acme=["qa", "code"]).resolve("acme", name)
        told.append(refused.value.public_message.replace(name, "NAME"))

    assert told[0] == told[1]
    assert "qa, code" in told[0]


def test_without_a_name_it_is_qa_or_the_first_there_is() -> None:
    """A tenant that may use none is told so."""
    assert book(acme=["code", "qa"]).resolve("acme", None).name == "qa"
    assert book(acme=["code"]).resolve("acme", None).name == "code"
    with pytest.raises(ProfileNotAllowedError):
        book(acme=[]).resolve("acme", None)


def test_a_tenant_that_is_not_listed_has_the_default_tenants_profiles() -> None:
    """And all of them where there is no default."""
    assert [offer.name for offer in book(default=["code"]).of_tenant("anyone")] == ["code"]
    assert len(book().of_tenant("anyone")) == 3


def test_a_tenant_cannot_be_allowed_what_is_not_there() -> None:
    """Told at the start, with what there is."""
    with pytest.raises(ConfigError, match="'nope', which cannot be served; there are: code, qa, secret-project"):
        book(acme=["nope"])
