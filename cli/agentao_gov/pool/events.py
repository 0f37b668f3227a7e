"""What the pool tells its observers, for metrics and logs. Values only; no content of any conversation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from agentao_gov.errors import GovError
from agentao_gov.governor.report import TurnReport
from agentao_gov.governor.types import SessionKey
from agentao_gov.pool.types import CloseReason

__all__ = [
    "LeaseLeaked",
    "PoolEvent",
    "PoolObserver",
    "SessionClosed",
    "SessionOpenFailed",
    "SessionOpened",
    "SessionStuck",
    "TurnEnded",
    "TurnRefused",
    "TurnStarted",
]


@dataclass(frozen=True, slots=True)
class SessionOpened:
    """An agent is in memory."""

    key: SessionKey
    duration_s: float
    #: It started from an archived conversation.
    rehydrated: bool


@dataclass(frozen=True, slots=True)
class SessionOpenFailed:
    """An agent could not be built."""

    key: SessionKey
    code: str
    message: str


@dataclass(frozen=True, slots=True)
class SessionClosed:
    """An agent left memory; `duration_s` is what its close took."""

    key: SessionKey
    reason: CloseReason
    duration_s: float
    #: What `close` raised, if it did. The slot is free all the same.
    error: str | None = None


@dataclass(frozen=True, slots=True)
class SessionStuck:
    """A turn was abandoned: the session is quarantined and keeps its slot."""

    key: SessionKey
    turn_id: str


@dataclass(frozen=True, slots=True)
class TurnStarted:
    """A turn got its place after `waited_s`."""

    key: SessionKey
    turn_id: str
    waited_s: float


@dataclass(frozen=True, slots=True)
class TurnRefused:
    """A turn ended without a report: it got no place, or no agent."""

    key: SessionKey
    turn_id: str
    #: Its text is the operator's, with everybody's figures and the settings to look at; its public one the client's.
    error: GovError

    @property
    def code(self) -> str:
        """The error's, for counting."""
        return self.error.code


@dataclass(frozen=True, slots=True)
class TurnEnded:
    """A turn ended with its one report."""

    report: TurnReport


@dataclass(frozen=True, slots=True)
class LeaseLeaked:
    """A lease is held longer than a turn can last (`returned` False), or came back after that (True)."""

    key: SessionKey
    lease_id: int
    held_s: float
    returned: bool
    #: Where the turn was asked for, and where its thread stands now.
    borrower: str
    worker: str


PoolEvent = (
    SessionOpened
    | SessionOpenFailed
    | SessionClosed
    | SessionStuck
    | TurnStarted
    | TurnRefused
    | TurnEnded
    | LeaseLeaked
)
#: Called outside every lock, on the thread where it happened; must be quick. What it raises is logged, no more.
PoolObserver = Callable[[PoolEvent], None]
