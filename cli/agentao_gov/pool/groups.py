"""A cap on sessions in memory - the pool's, a tenant's or a user's - and who is within it."""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, Literal

from agentao_gov.pool.fairness import FairQueue

if TYPE_CHECKING:
    from agentao_gov.pool.entries import Entry

__all__ = ["UNLIMITED", "Group", "GroupKind"]

GroupKind = Literal["pool", "tenant", "user"]

UNLIMITED = float("inf")


class Group:
    """Counts sessions against a cap, lists the idle ones by their last turn, and parks who waits for room."""

    __slots__ = ("cap", "closing", "id", "idle", "kind", "members", "parked", "resident")

    def __init__(self, kind: GroupKind, id: tuple[str, ...], cap: float) -> None:
        self.kind = kind
        self.id = id
        #: Sessions in memory at once; infinity: unlimited.
        self.cap = cap
        #: Entries that count here, in memory or waiting; at none the group is forgotten.
        self.members = 0
        #: Opening, idle, busy, closing and stuck ones.
        self.resident = 0
        #: The part of `resident` whose close has been ordered and will soon return.
        self.closing = 0
        #: Sessions that may be evicted, the longest idle first. One with a turn waiting for it is not among them.
        self.idle: OrderedDict[Entry, None] = OrderedDict()
        #: Turns whose session needs room in this group.
        self.parked = FairQueue()

    @property
    def has_room(self) -> bool:
        """Whether one more session may be opened."""
        return self.resident < self.cap

    def shortage(self) -> int:
        """How many sessions must go, beyond those already closing, to give room to everyone parked here."""
        if self.cap == UNLIMITED:
            return 0
        return int(self.resident - self.cap) + len(self.parked) - self.closing
