"""Open requests are shared between tenants by arithmetic alone."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from agentao_gov.service.request_limits import FairShares


def fill(shares: FairShares, tenant: str) -> int:
    """As many as the tenant may have."""
    count = 0
    while shares.enter(tenant):
        count += 1
    return count


def test_one_tenant_alone_has_half_and_the_next_ones_half_of_the_rest() -> None:
    """There is always room for one more tenant."""
    shares = FairShares(400, 2)

    assert [fill(shares, name) for name in ("a", "b", "c")] == [200, 100, 50]


@given(others=st.integers(0, 50), guaranteed=st.integers(1, 20), requests_max=st.integers(0, 500))
def test_a_tenant_has_its_guaranteed_requests_however_many_the_others_have(
    others: int, guaranteed: int, requests_max: int
) -> None:
    """That is what a neighbour of any number of floods goes on with."""
    shares = FairShares(requests_max, guaranteed)
    taken = sum(fill(shares, f"evil-{n}") for n in range(others))

    assert fill(shares, "acme") >= guaranteed
    assert taken <= requests_max + others * guaranteed


def test_what_has_ended_is_given_back() -> None:
    """Also to another tenant."""
    shares = FairShares(10, 1)
    taken = fill(shares, "a")
    for _ in range(taken):
        shares.leave("a")

    assert shares.of("a") == 0
    assert fill(shares, "b") == taken
