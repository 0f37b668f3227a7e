"""The core's own records: a session in memory, a turn that waits, a lease. Owned by `PoolCore`, touched by it alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

from agentao_gov.pool.types import CloseReason, SessionState

if TYPE_CHECKING:
    from agentao_gov.governor.types import SessionKey
    from agentao_gov.pool.fairness import FairQueue
    from agentao_gov.pool.groups import Group

__all__ = ["Entry", "Lease", "Waiter"]


class Waiter:
    """A turn that has no place yet."""

    __slots__ = (
        "arrived_at",
        "deadline_at",
        "id",
        "key",
        "leak_after_s",
        "once",
        "open_s",
        "queue",
        "servers_s",
        "user",
        "wait_by",
    )

    def __init__(
        self,
        id: int,
        key: SessionKey,
        user: str,
        arrived_at: float,
        deadline_at: float,
        once: bool,
        leak_after_s: float,
        open_s: float,
        servers_s: float,
        wait_by: float,
    ) -> None:
        #: Arrival order over the whole pool; never used twice.
        self.id = id
        self.key = key
        self.user = user
        self.arrived_at = arrived_at
        #: When its caller stops caring; infinity: never.
        self.deadline_at = deadline_at
        #: When it has waited long enough for a place; the opening of its own session does not count.
        self.wait_by = wait_by
        #: How long it waits for its session's opening.
        self.open_s = open_s
        #: How long the MCP servers may need that start when it opens its session.
        self.servers_s = servers_s
        #: The session closes after this turn.
        self.once = once
        self.leak_after_s = leak_after_s
        #: The queue it stands in as the head of its session; None: it waits behind others, or for its opening.
        self.queue: FairQueue | None = None


class Lease:
    """The right to run one turn on one session."""

    __slots__ = ("entry", "granted_at", "id", "leak_at", "reported", "waiter")

    def __init__(self, id: int, entry: Entry, waiter: Waiter, granted_at: float) -> None:
        #: Never used twice, so that a release with an old lease cannot free somebody else's turn.
        self.id = id
        self.entry = entry
        self.waiter = waiter
        self.granted_at = granted_at
        self.leak_at = granted_at + waiter.leak_after_s
        #: The leak has been told; told once more when the lease comes back.
        self.reported = False


class Entry:
    """One session the core knows: in memory, or with somebody waiting for it."""

    __slots__ = (
        "close_reason",
        "closing_since",
        "doomed",
        "groups",
        "idle_since",
        "key",
        "lease",
        "once",
        "open_by",
        "opening_since",
        "overdue",
        "pinned_until",
        "spent",
        "state",
        "user",
        "waiters",
    )

    def __init__(self, key: SessionKey, user: str, groups: tuple[Group, ...]) -> None:
        self.key = key
        #: Whoever opened it; their cap counts it.
        self.user = user
        #: The caps it counts against: user, tenant, pool.
        self.groups = groups
        self.state = SessionState.GONE
        #: Turns for this session, oldest first.
        self.waiters: list[Waiter] = []
        #: Set while busy or stuck.
        self.lease: Lease | None = None
        self.idle_since = 0.0
        #: It closes when its one turn is over, or when nobody waits for that any more.
        self.once = False
        #: It has had a turn since it was opened.
        self.spent = False
        #: Why it must close as soon as nobody uses it; None: it may stay.
        self.doomed: CloseReason | None = None
        self.close_reason: CloseReason | None = None
        self.closing_since = 0.0
        #: While opening: since when, and when it counts as hung.
        self.opening_since = 0.0
        self.open_by = 0.0
        #: Its opening hung: whatever comes of it is closed at once.
        self.overdue = False
        #: Its archive could not be written: not to be evicted before this time.
        self.pinned_until = 0.0

    @property
    def is_deleted(self) -> bool:
        """Whether it only waits to be removed."""
        return CloseReason.DELETED in (self.doomed, self.close_reason)
