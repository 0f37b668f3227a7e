"""What the core wants done. The shell performs effects in their order, outside the core's lock."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from agentao_gov.governor.types import SessionKey
from agentao_gov.pool.types import CloseReason

__all__ = ["Close", "Effect", "Grant", "Leak", "Open", "RefusalReason", "Refuse"]

RefusalReason = Literal[
    "draining",
    "queue_full",
    "queue_timeout",
    "tenant_session_limit",
    "user_session_limit",
    "open_failed",
    "open_timeout",
    "open_hung",
    "stuck",
    "deleted",
    "store",
]


@dataclass(slots=True)
class Open:
    """Build this session's agent, for the waiter that asked first; answer `opened` or `open_failed`."""

    key: SessionKey
    waiter_id: int


@dataclass(slots=True)
class Close:
    """Take this session out of memory; answer `closed`, or `close_refused` when it could not be kept."""

    key: SessionKey
    reason: CloseReason


@dataclass(slots=True)
class Grant:
    """The waiter may run its turn now; answer `release` with this lease."""

    waiter_id: int
    key: SessionKey
    lease_id: int
    waited_s: float


@dataclass(slots=True)
class Refuse:
    """The waiter gets no place. The figures are those of the moment of refusal."""

    waiter_id: int
    key: SessionKey
    reason: RefusalReason
    waited_s: float
    #: When trying again makes sense, from how long turns have lasted lately.
    retry_after_s: float
    waiting: int
    busy: int
    resident: int
    #: The cap that was met, where one was.
    limit: int | None


@dataclass(slots=True)
class Leak:
    """A lease is held longer than a turn can last, or (`returned`) has come back after that."""

    lease_id: int
    key: SessionKey
    waiter_id: int
    held_s: float
    returned: bool


Effect = Open | Close | Grant | Refuse | Leak
