"""The order in which waiters are served: round-robin between tenants, first come first served within one."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import OrderedDict
from collections.abc import Iterator
from operator import attrgetter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from agentao_gov.pool.entries import Waiter

__all__ = ["FairQueue"]

_by_id = attrgetter("id")


class FairQueue:
    """Waiters of many tenants. A tenant with a hundred waiters gets every second place beside one with a single one.

    Sorted lists instead of heaps: a waiter leaves in the middle when its client goes away, and leaves nothing behind.
    """

    __slots__ = ("_ring",)

    def __init__(self) -> None:
        #: Tenants with at least one waiter, the next to be served first; each list is sorted by arrival.
        self._ring: OrderedDict[str, list[Waiter]] = OrderedDict()

    def __len__(self) -> int:
        return sum(map(len, self._ring.values()))

    def __bool__(self) -> bool:
        return bool(self._ring)

    def __iter__(self) -> Iterator[Waiter]:
        for waiters in self._ring.values():
            yield from waiters

    def push(self, waiter: Waiter) -> None:
        """Adds a waiter at the place its arrival gives it among its tenant's."""
        waiters = self._ring.get(waiter.key.tenant)
        if waiters is None:
            self._ring[waiter.key.tenant] = [waiter]
        elif waiters[-1].id < waiter.id:
            waiters.append(waiter)
        else:
            # A session that was locked becomes ready late: its waiter may be older than those already here.
            insort(waiters, waiter, key=_by_id)

    def pop(self) -> Waiter:
        """Takes the oldest waiter of the next tenant, and puts that tenant at the end of the ring."""
        tenant, waiters = next(iter(self._ring.items()))
        waiter = waiters.pop(0)
        if waiters:
            self._ring.move_to_end(tenant)
        else:
            del self._ring[tenant]
        return waiter

    def newest(self) -> Waiter:
        """The waiter that came last."""
        return max((waiters[-1] for waiters in self._ring.values()), key=_by_id)

    def remove(self, waiter: Waiter) -> None:
        """Takes out one waiter, wherever it stands."""
        waiters = self._ring[waiter.key.tenant]
        index = bisect_left(waiters, waiter.id, key=_by_id)
        if waiters[index] is not waiter:
            raise LookupError(waiter.id)
        del waiters[index]
        if not waiters:
            del self._ring[waiter.key.tenant]
