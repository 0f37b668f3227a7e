"""Who is served next: FIFO within a user, round-robin between a tenant's users and between tenants."""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

__all__ = ["Ticket", "fair_order", "serve"]

#: What the store answers to one attempt: served, to be told no, or blocked by these scopes.
Attempted = Literal["served", "refused"] | tuple[Hashable, ...]


@dataclass(frozen=True, slots=True)
class Ticket:
    """One waiting call. `number` grows with arrival; `lines` are the scopes and windows it needs."""

    id: str
    number: int
    tenant: str
    user: str
    lines: tuple[Hashable, ...]


def fair_order(tickets: Iterable[Ticket], served: Mapping[tuple[str, str | None], int]) -> list[Ticket]:
    """All tickets in the order of their turn.

    `served` maps (tenant, None) and (tenant, user) to a counter that grew whenever one of theirs was served:
    who was served longest ago comes first. It is all the memory the round-robin needs, so a store can keep it.
    """
    rooms: dict[str, dict[str, deque[Ticket]]] = {}
    for ticket in sorted(tickets, key=lambda t: t.number):
        rooms.setdefault(ticket.tenant, {}).setdefault(ticket.user, deque()).append(ticket)
    after = max(served.values(), default=0)
    tenants = [
        (served.get((tenant, None), 0), next(iter(users.values()))[0].number, tenant) for tenant, users in rooms.items()
    ]
    queues = {
        tenant: [(served.get((tenant, user), 0), line[0].number, user) for user, line in users.items()]
        for tenant, users in rooms.items()
    }
    heapq.heapify(tenants)
    for queue in queues.values():
        heapq.heapify(queue)
    order: list[Ticket] = []
    while tenants:
        _, first, tenant = heapq.heappop(tenants)
        _, _, user = heapq.heappop(queues[tenant])
        line = rooms[tenant][user]
        order.append(line.popleft())
        after += 1
        if line:
            heapq.heappush(queues[tenant], (after, line[0].number, user))
        if queues[tenant]:
            heapq.heappush(tenants, (after, first, tenant))
    return order


def serve(order: Sequence[Ticket], attempt: Callable[[Ticket], Attempted]) -> None:
    """Lets each ticket try once, in order, without anyone overtaking on a scope that an earlier one needs.

    A blocked ticket claims the scopes that block it: tokens given back there gather until it fits, so a large
    call is never starved by small ones. Scopes that nobody ahead is blocked on stay open to those behind.
    """
    claimed: set[Hashable] = set()
    for ticket in order:
        if not claimed.isdisjoint(ticket.lines):
            continue
        answer = attempt(ticket)
        if isinstance(answer, tuple):
            claimed.update(answer)
