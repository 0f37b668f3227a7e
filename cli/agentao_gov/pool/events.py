"""What the pool tells its observers, for metrics and logs. Values only; no content of any conversation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from agentao_gov.errors import (
    DrainingError,
    GovError,
    InternalError,
    QueueFullError,
    QueueTimeoutError,
    SessionNotFoundError,
    SessionStuckError,
    StoreError,
    TenantSessionLimitError,
    TurnTimeoutError,
    UserSessionLimitError,
)
from agentao_gov.governor.report import TurnReport
from agentao_gov.governor.types import SessionKey
from agentao_gov.pool.ladder import Rung
from agentao_gov.pool.types import CloseReason


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


@dataclass(frozen=True, slots=True)
class RungEntered:
    """The way down has come to a rung, which lasts `seconds` at the most; the counts are those of its beginning."""

    rung: Rung
    seconds: float
    busy: int
    waiting: int
    resident: int


@dataclass(frozen=True, slots=True)
class EndedByShutdown:
    """A session whose turn was cancelled, or whose agent was killed, by the rung."""

    key: SessionKey
    rung: Rung


PoolEvent = (
    SessionOpened
    | SessionOpenFailed
    | SessionClosed
    | SessionStuck
    | TurnStarted
    | TurnRefused
    | TurnEnded
    | LeaseLeaked
    | RungEntered
    | EndedByShutdown
)
#: Called outside every lock, on the thread where it happened; must be quick. What it raises is logged, no more.
PoolObserver = Callable[[PoolEvent], None]


# -- effects: what the core wants done, performed by the shell in their order and outside the core's lock --------------

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
    "tenant_stuck",
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


# -- from a refusal to the error its caller meets --------------------------------------------------------------------

_OPENING_HANGS = "The building of its agent hangs: see the profile's MCP servers and the session directory's disk."


def error_of(refusal: Refuse, cause: GovError | None = None) -> GovError:
    """The error for one refusal. `cause`: why the opening failed, where it did.

    How full the pool is, and what would make it larger, is for the operator: a tenant must not learn others' load.
    """
    session, tenant, waited_s = refusal.key.session, refusal.key.tenant, refusal.waited_s
    figures = f"{refusal.busy} turns run, {refusal.waiting} wait, {refusal.resident} sessions are in memory"
    retry_after_s = refusal.retry_after_s
    match refusal.reason:
        case "draining":
            return DrainingError("The service is shutting down and takes no new turns.", retry_after_s=retry_after_s)
        case "queue_full":
            return QueueFullError(
                f"The waiting room is full: {figures}.",
                hint="Raise `[pool] max_busy` or `queue_limit`, or send fewer turns at once.",
                outside="Too many turns are waiting already.",
                retry_after_s=retry_after_s,
            )
        case "queue_timeout":
            return QueueTimeoutError(
                f"The turn waited {waited_s:.1f} s without getting a place: {figures}.",
                hint="Raise `[pool] max_busy` or `queue_timeout`, or send fewer turns at once.",
                outside=f"The turn waited {waited_s:.1f} s without getting a place.",
                retry_after_s=retry_after_s,
            )
        case "tenant_session_limit":
            return TenantSessionLimitError(
                f"All of the {refusal.limit} sessions that tenant {tenant!r} may have at once are busy.",
                hint="Wait for a turn to end, or raise the tenant's `max_sessions`.",
                retry_after_s=retry_after_s,
            )
        case "user_session_limit":
            return UserSessionLimitError(
                f"All of the {refusal.limit} sessions that a user of tenant {tenant!r} may have at once are busy.",
                hint="Wait for a turn to end, or raise the tenant's `max_sessions_per_user`.",
                retry_after_s=retry_after_s,
            )
        case "open_timeout":
            return TurnTimeoutError(
                f"Session {session!r} was not ready after {waited_s:.1f} s, so the turn met its time limit.",
                hint=_OPENING_HANGS,
            )
        case "open_hung":
            return TurnTimeoutError(
                f"Session {session!r} was not ready within the limit for openings; the turn waited {waited_s:.1f} s.",
                hint=_OPENING_HANGS,
            )
        case "store":
            return StoreError(
                "No session can leave memory, because the session directory cannot be written.",
                hint="See the log for the reason; make room under `[state] dir`.",
                retry_after_s=retry_after_s,
            )
        case "stuck":
            return SessionStuckError(str(refusal.key))
        case "tenant_stuck":
            return TenantSessionLimitError(
                f"Turns of tenant {tenant!r} never came back, and hold {refusal.limit} sessions: no more may be stuck.",
                hint="See the log for their stacks. They are free when their tools return; in mode `subprocess` such a"
                " turn is ended with its process. `[pool] max_stuck_per_tenant` allows more.",
                retry_after_s=retry_after_s,
            )
        case "deleted":
            return SessionNotFoundError(f"Session {session!r} was deleted while the turn waited for it.")
        case "open_failed":
            return cause if cause is not None else InternalError(f"Session {refusal.key} could not be opened.")
