"""What goes into the pool and what can be read from it: orders, and the pictures of sessions and of the pool."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING

from agentao_gov.clock import Deadline
from agentao_gov.governor.report import Mode
from agentao_gov.governor.types import Conversation, SessionKey

if TYPE_CHECKING:
    from agentao_gov.config import ModelChoice, ResolvedProfile

#: From an MCP server's `startup_timeout` to the agent without it: 2 s, and imports of some seconds the first time.
_SERVER_END_S = 5.0


class SessionState(StrEnum):
    """Where a session is: `opening → idle ⇄ busy → closing → gone`, or `stuck`, or `hibernated` on disk."""

    OPENING = "opening"
    IDLE = "idle"
    BUSY = "busy"
    CLOSING = "closing"
    STUCK = "stuck"
    HIBERNATED = "hibernated"
    #: Not in memory: waiting for its opening, or forgotten.
    GONE = "gone"


#: In memory, whatever they do.
_RESIDENT = (SessionState.OPENING, SessionState.IDLE, SessionState.BUSY, SessionState.CLOSING, SessionState.STUCK)


class CloseReason(StrEnum):
    """Why a session leaves memory. The first four are evictions (`evictions_total{reason}`)."""

    TTL = "ttl"
    LRU = "lru"
    MEMORY = "memory"
    DRAIN = "drain"
    #: A fresh session after its one turn.
    ONCE = "once"
    DELETED = "deleted"
    #: Another worker process advanced the session: this copy is out of date.
    STALE = "stale"
    #: Its process died, or its agent cannot be trusted any more.
    BROKEN = "broken"
    #: A quarantined session whose thread came back after all.
    UNSTUCK = "unstuck"


#: The reasons that are evictions.
EVICTIONS = frozenset({CloseReason.TTL, CloseReason.LRU, CloseReason.MEMORY, CloseReason.DRAIN})


@dataclass(frozen=True, slots=True)
class TurnOrder:
    """One turn that wants to be run."""

    key: SessionKey
    user: str
    profile: ResolvedProfile
    model: ModelChoice
    message: str
    turn_id: str
    mode: Mode
    #: When the caller stops caring, waiting included; None: `queue_timeout` to wait, then the profile's `turn_timeout`.
    deadline: Deadline | None = None
    #: The batch line's id.
    id: str | int | None = None
    #: What the agent starts from instead of the archived conversation (a request without a session id).
    conversation: Conversation | None = None
    #: False: nothing of this session is archived (a request without a session id).
    keep: bool = True
    #: Where the tools work; None: the session's own private directory.
    workdir: Path | None = None

    @property
    def open_s_max(self) -> float:
        """How long the turn waits for its session's opening: as long as it may take itself, and its servers to start.

        One that hangs before its agent is there is cut like one that hangs later.
        """
        return float(self.profile.profile.limits.turn_timeout_s + self.servers_s)

    @property
    def servers_s(self) -> float:
        """Seconds that the profile's MCP servers may need to start, which they do side by side; 0 without any."""
        servers = self.profile.profile.mcp.servers.values()
        return max((server.startup_timeout_s + _SERVER_END_S for server in servers), default=0.0)


@dataclass(frozen=True, slots=True)
class SessionUsage:
    """What a session has used since it began, over all its turns, hibernations and restarts."""

    turns: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    total_tokens: int = 0
    llm_calls: int = 0


@dataclass(frozen=True, slots=True)
class SessionInfo:
    """One session as it stands. Times of the wall are seconds since the epoch."""

    key: SessionKey
    state: SessionState
    user: str
    profile: str
    mode: Mode
    model: str
    usage: SessionUsage
    created_at: float
    last_turn_at: float | None
    #: Seconds since the end of the last turn; None unless idle.
    idle_s: float | None = None
    #: The turn in flight.
    turn_id: str | None = None
    #: Turns waiting for this session.
    waiting: int = 0
    #: Roots of the process trees the session owns.
    process_ids: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class SessionPage:
    """A part of a tenant's sessions."""

    sessions: tuple[SessionInfo, ...]
    #: Whether others come after the last of them.
    has_more: bool
    #: How many the tenant has in all.
    total: int


@dataclass(frozen=True, slots=True)
class TenantStats:
    """One tenant's share of the pool."""

    resident: int
    busy: int
    waiting: int
    #: None: unlimited.
    max_sessions: int | None
    #: Sessions whose turn never came back.
    stuck: int = 0


@dataclass(frozen=True, slots=True)
class PoolStats:
    """The pool at one moment, and its counters since the start."""

    #: By state; every state has a figure.
    sessions: Mapping[SessionState, int]
    max_sessions: int
    max_busy: int
    queue_length: int
    queue_limit: int
    tenants: Mapping[str, TenantStats] = field(default_factory=dict)
    #: Stuck sessions after which a tenant gets no further turn.
    max_stuck_per_tenant: int = 1
    #: By reason: ttl, lru, memory, drain.
    evictions: Mapping[str, int] = field(default_factory=dict)
    rehydrations: int = 0
    #: Rehydrations within a minute of the eviction: over a tenth of the evictions, the pool is too small.
    ghost_hits: int = 0
    #: By error code.
    refusals: Mapping[str, int] = field(default_factory=dict)
    openings: int = 0
    opening_failures: int = 0
    close_failures: int = 0
    #: Turns that were abandoned since the start; the sessions still stuck are in `sessions`.
    abandoned: int = 0
    leaks: int = 0
    turns: int = 0
    #: Sessions in memory that are not at rest after their last turn; the others' messages are compressed.
    awake: int = 0
    #: Idle sessions whose last turn could not be written to disk: they would lose it with the process.
    unsaved: int = 0
    #: Seconds a turn waited for its place, over the last turns.
    wait_s_p50: float = 0.0
    wait_s_p95: float = 0.0
    wait_s_p99: float = 0.0
    #: The rung of the shutdown ladder the pool stands on.
    rung: str = "serving"

    @property
    def resident(self) -> int:
        """Sessions in memory, whatever they do."""
        return sum(self.sessions[s] for s in _RESIDENT)

    @property
    def busy(self) -> int:
        """Sessions running a turn."""
        return self.sessions[SessionState.BUSY]

    def needs_replacement(self, stuck_max: int) -> bool:
        """Whether so many turns are stuck that only a new process helps: each holds a thread and a slot for good.

        From `stuck_max` on, or when no place is left. No tenant counts for more than it may have, so that one alone
        does not end the turns of all others.
        """
        counted = sum(min(tenant.stuck, self.max_stuck_per_tenant) for tenant in self.tenants.values())
        return counted >= stuck_max or self.sessions[SessionState.STUCK] >= self.max_busy

    @property
    def is_replaced_unnoticed(self) -> bool:
        """Whether a tenant has as many stuck turns as it may have, and nobody else has a turn at the moment."""
        refused = {name for name, tenant in self.tenants.items() if tenant.stuck >= self.max_stuck_per_tenant}
        others = (tenant for name, tenant in self.tenants.items() if name not in refused)
        return bool(refused) and not any(tenant.busy or tenant.waiting for tenant in others)
