"""Does a call fit, and whose turn is it? Decided here alone, on integers: no clock, no store, no threads."""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Literal, NamedTuple


class Answer(StrEnum):
    """What the budgets say to a call."""

    GRANTED = "granted"
    #: Does not fit now, but would if others gave back what they hold.
    WAIT = "wait"
    #: Spent for this window; nothing that is still held could make room.
    EXHAUSTED = "exhausted"
    #: Larger than the whole budget.
    IMPOSSIBLE = "impossible"


class Level(NamedTuple):
    """One scope in one window. `limit` includes grants; None is unlimited."""

    limit: int | None
    used: int
    reserved: int

    @property
    def free(self) -> int | None:
        """What can be reserved now; below zero after an under-estimate, None where nothing limits."""
        return None if self.limit is None else self.limit - self.used - self.reserved


class Admission(NamedTuple):
    """The answer. `blocking` are positions of the scopes that said no, the first of them the one to name."""

    answer: Answer
    output_tokens: int = 0
    blocking: tuple[int, ...] = ()


def admit(levels: Sequence[Level], prompt: int, output_min: int, output_max: int) -> Admission:
    """Admits a call only if used + reserved + prompt + output <= limit in all of its scopes.

    The output granted is `output_max`, or what remains if that is less, but never below `output_min`:
    so a budget can be used to its last tokens. A scope in which the call does not fit blocks it; it is worth
    waiting only if in every blocking scope the tokens now reserved by others could make room.
    """
    least = prompt + output_min
    grant = output_max
    blocking: list[int] = []
    impossible: list[int] = []
    exhausted: list[int] = []
    for position, (limit, used, reserved) in enumerate(levels):
        if limit is None:
            continue
        free = limit - used - reserved
        grant = min(grant, free - prompt)
        if least <= free:
            continue
        blocking.append(position)
        if least > limit:
            impossible.append(position)
        elif least > limit - used:
            exhausted.append(position)
    if impossible:
        return Admission(Answer.IMPOSSIBLE, blocking=tuple(impossible))
    if exhausted:
        return Admission(Answer.EXHAUSTED, blocking=tuple(exhausted))
    if blocking:
        return Admission(Answer.WAIT, blocking=tuple(blocking))
    return Admission(Answer.GRANTED, output_tokens=grant)


def extendable(levels: Sequence[Level], wanted: int) -> int:
    """How much of `wanted` a running stream can have on top of what it holds. It never waits: it holds tokens."""
    free = [level.free for level in levels]
    return max(0, min([wanted, *(tokens for tokens in free if tokens is not None)]))


# ── who is served next: FIFO within a user, round-robin between a tenant's users and between tenants ─

#: What the store answers to one attempt: served, to be told no, or blocked by these scopes.
Attempted = Literal["served", "refused"] | tuple[Hashable, ...]


@dataclass(frozen=True, slots=True)
class QueueTicket:
    """One waiting call. `number` grows with arrival; `lines` are the scopes and windows it needs."""

    id: str
    number: int
    tenant: str
    user: str
    lines: tuple[Hashable, ...]


def fair_order(tickets: Iterable[QueueTicket], served: Mapping[tuple[str, str | None], int]) -> list[QueueTicket]:
    """All tickets in the order of their turn.

    `served` maps (tenant, None) and (tenant, user) to a counter that grew whenever one of theirs was served:
    who was served longest ago comes first. It is all the memory the round-robin needs, so a store can keep it.
    """
    rooms: dict[str, dict[str, deque[QueueTicket]]] = {}
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
    order: list[QueueTicket] = []
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


def serve(order: Sequence[QueueTicket], attempt: Callable[[QueueTicket], Attempted]) -> None:
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
