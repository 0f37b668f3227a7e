"""Whose turn it is."""

from __future__ import annotations

import random
from collections import Counter

from agentao_gov.budget.admission import Attempted, QueueTicket, fair_order, serve


def ticket(number: int, tenant: str = "t", user: str = "u", *lines: str) -> QueueTicket:
    return QueueTicket(f"{tenant}-{user}-{number}", number, tenant, user, lines or (tenant,))


def test_one_users_calls_are_served_as_they_came() -> None:
    """FIFO within a user."""
    order = fair_order([ticket(3), ticket(1), ticket(2)], {})

    assert [t.number for t in order] == [1, 2, 3]


def test_users_and_tenants_alternate() -> None:
    """Round-robin between tenants, and between the users of each."""
    tickets = [
        *(ticket(n, "a", "greedy") for n in range(1, 5)),
        ticket(5, "a", "modest"),
        *(ticket(n, "b", "only") for n in range(6, 8)),
    ]

    order = fair_order(tickets, {})

    assert [(t.tenant, t.user) for t in order] == [
        ("a", "greedy"),
        ("b", "only"),
        ("a", "modest"),
        ("b", "only"),
        ("a", "greedy"),
        ("a", "greedy"),
        ("a", "greedy"),
    ]


def test_who_was_served_longest_ago_comes_first() -> None:
    """The turn goes on where it stopped, also in another process."""
    order = fair_order([ticket(1, "a"), ticket(2, "b")], {("a", None): 7, ("b", None): 3})

    assert [t.tenant for t in order] == ["b", "a"]


def test_nobody_overtakes_on_a_scope_that_an_earlier_call_needs() -> None:
    """A blocked call claims its scope: the small one behind it waits, one with other scopes passes."""
    tried: list[int] = []

    def attempt(t: QueueTicket) -> Attempted:
        tried.append(t.number)
        return ("x",) if t.number == 1 else "served"

    serve([ticket(1, "t", "u", "x", "y"), ticket(2, "t", "u", "x"), ticket(3, "t", "u", "y")], attempt)

    assert tried == [1, 3]


def test_over_a_long_time_every_user_gets_the_same_share() -> None:
    """A user with fifty calls waiting and one with two are served equally often while both wait."""
    random.seed(7)
    waiting = [ticket(n, "t", "greedy") for n in range(50)] + [ticket(n, "t", "modest") for n in range(50, 52)]
    served: dict[tuple[str, str | None], int] = {}
    got: Counter[str] = Counter()
    for step in range(1, 401):
        first = fair_order(waiting, served)[0]
        waiting.remove(first)
        got[first.user] += 1
        served[first.tenant, None] = served[first.tenant, first.user] = step
        waiting.append(ticket(100 + step, "t", first.user))

    assert got == {"greedy": 200, "modest": 200}
