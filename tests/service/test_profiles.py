"""Which profiles a tenant may use, and what it learns of those it may not."""

from __future__ import annotations

import pytest

from agentao_gov.errors import ConfigError, ProfileNotAllowedError
from agentao_gov.service.tenants import OfferedProfile, ProfileBook
from tests.pool.bench import a_model, a_profile


def book(**allowed: list[str] | None) -> ProfileBook:
    offered = {name: OfferedProfile(a_profile(name), a_model()) for name in ("qa", "code", "secret-project")}
    return ProfileBook(offered, allowed)


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
