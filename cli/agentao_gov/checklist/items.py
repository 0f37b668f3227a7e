"""The eight items of the pre-load-test checklist, in order: ids, numbers and titles, fixed by the contract."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from agentao_gov.errors import UsageError

ItemId = Literal[
    "session_caps",
    "daily_token_budget",
    "turn_timeout",
    "max_iterations",
    "pool_limits",
    "graceful_shutdown",
    "monitoring",
    "tenant_isolation",
]


@dataclass(frozen=True, slots=True)
class Item:
    """One item: what it is called and how its probe tries to break it."""

    id: ItemId
    number: int
    title: str
    #: One sentence for `--list`.
    breaks_it_by: str


ITEMS: tuple[Item, ...] = (
    Item(
        "session_caps",
        1,
        "A cap on concurrent sessions per user and per tenant",
        "opening one session too many for a user and for a tenant, with another tenant at the same time",
    ),
    Item(
        "daily_token_budget",
        2,
        "A daily token budget per session",
        "spending a session's and a tenant's budget in parallel turns, counted at the model",
    ),
    Item(
        "turn_timeout",
        3,
        "A time limit on every chat()",
        "a model that never sends a byte, one that drips, and a tool that sleeps",
    ),
    Item(
        "max_iterations",
        4,
        "A sensible default for max_iterations",
        "an endless tool loop whose arguments change every time",
    ),
    Item(
        "pool_limits",
        5,
        "Pool TTL and max_sessions",
        "opening more sessions than the pool holds, then leaving them idle",
    ),
    Item(
        "graceful_shutdown",
        6,
        "Graceful shutdown",
        "SIGTERM with a turn in flight, a hung turn and MCP children, and a second SIGTERM",
    ),
    Item(
        "monitoring",
        7,
        "Monitoring and alerts on the capacity plan",
        "comparing /metrics with /proc under load, and crossing every line of the capacity plan",
    ),
    Item(
        "tenant_isolation",
        8,
        "A wall between tenants, and around the service",
        "a stranger's session that reads the service's environment and another tenant's file, by every tool offered",
    ),
)


def select(only: tuple[str, ...] = (), skip: tuple[str, ...] = ()) -> tuple[tuple[Item, bool], ...]:
    """Every item with whether it is to be run: those in `only` (empty: all) but those in `skip`, by their ids.

    Raises UsageError for an id that does not exist.
    """
    known = [item.id for item in ITEMS]
    for name in (*only, *skip):
        if name not in known:
            raise UsageError(f"There is no checklist item {name!r}.", hint=f"The items are: {', '.join(known)}.")
    return tuple((item, (not only or item.id in only) and item.id not in skip) for item in ITEMS)
