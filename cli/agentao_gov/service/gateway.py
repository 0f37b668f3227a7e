"""What stands between HTTP and the pool: who asks, what may be asked, and the picture of how things are."""

from __future__ import annotations

import asyncio
import time
import uuid
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from agentao_gov.errors import SessionNotFoundError
from agentao_gov.governor.report import TurnReport
from agentao_gov.governor.types import Conversation, EventSink, SessionKey
from agentao_gov.monitor.metrics import Metrics
from agentao_gov.monitor.monitor import Monitor
from agentao_gov.pool.types import SessionInfo, SessionState, TurnOrder
from agentao_gov.service.executors import Executors
from agentao_gov.service.peers import NO_PEERS, Peers
from agentao_gov.service.tenants import OfferedProfile, ProfileCatalog, TenantDirectory

if TYPE_CHECKING:
    from agentao_gov.config import Deployment
    from agentao_gov.pool import AgentPool


@dataclass(frozen=True, slots=True)
class TurnInFlight:
    """A turn of this process that has not ended, for status and page."""

    order: TurnOrder
    since: float


@dataclass
class Gateway:
    """Everything the endpoints use. Its methods are called on the event loop and never block, unless they say so."""

    pool: AgentPool
    deployment: Deployment
    profiles: ProfileCatalog
    tenants: TenantDirectory
    monitor: Monitor
    metrics: Metrics
    #: Seconds since the epoch.
    started_at: float = field(default_factory=time.time)
    worker: int = 0
    workers: int = 1
    peers: Peers = NO_PEERS
    executors: Executors = field(default_factory=Executors)
    #: Turns submitted by this process, by turn id; changed on the event loop alone.
    in_flight: dict[str, TurnInFlight] = field(default_factory=dict)
    #: Reasons other than the ladder's for which the instance is not ready; changed on the event loop alone.
    unready: set[str] = field(default_factory=set)

    def order(
        self, tenant: str, session: str | None, offer: OfferedProfile, message: str, user: str,
        conversation: Conversation | None = None,
    ) -> TurnOrder:  # fmt: skip
        """A turn of a session; without a session id one of a fresh agent that leaves nothing behind."""
        turn_id = uuid.uuid4().hex
        return TurnOrder(
            key=SessionKey(tenant, session if session is not None else f"once-{turn_id}"),
            user=user,
            profile=offer.resolved,
            model=offer.model,
            message=message,
            turn_id=turn_id,
            mode=self.deployment.pool.mode if session is not None else "fresh",
            conversation=conversation,
            keep=session is not None,
        )

    def submit(self, order: TurnOrder, on_event: EventSink) -> Future[TurnReport]:
        """Hands a turn to the pool; raises CapacityError when it is refused at once."""
        future = self.pool.submit(order, on_event)
        self.in_flight[order.turn_id] = TurnInFlight(order, time.time())
        loop = asyncio.get_running_loop()

        def ended(_: Future[TurnReport]) -> None:
            try:
                loop.call_soon_threadsafe(self.in_flight.pop, order.turn_id, None)
            except RuntimeError:  # the loop has ended before the turn
                return

        future.add_done_callback(ended)
        return future

    def abandon(self, order: TurnOrder, future: Future[TurnReport]) -> None:
        """Cancels a turn whose client left: taken out of the queue when it waits, cancelled when it runs."""
        if not future.cancel():
            self.pool.cancel(order.key, "client_gone", turn_id=order.turn_id)

    def turn_s_max(self, order: TurnOrder) -> float:
        """How long a turn may take from submission to report, beside its session's opening."""
        limits = order.profile.profile.limits
        return float(self.deployment.pool.queue_timeout_s + limits.turn_timeout_s + limits.cancel_grace_s)

    def session(self, key: SessionKey) -> SessionInfo:
        """One session of the tenant; raises SessionNotFoundError. May read the archive: blocks."""
        info = self.pool.session(key)
        if info is None:
            raise SessionNotFoundError(f"There is no session {key.session!r}.")
        return info

    def not_ready_because(self) -> list[str]:
        """Why this instance should get no traffic; empty when it should. Reads the pool's counters: quick."""
        stats = self.pool.stats()
        reasons = sorted(self.unready)
        if stats.rung != "serving":
            reasons.append(f"shutting down: {stats.rung}")
        stuck_max = self.deployment.pool.max_stuck
        if stats.needs_replacement(stuck_max):
            stuck = stats.sessions[SessionState.STUCK]
            reasons.append(f"{stuck} turns are stuck (the cap is {stuck_max})")
        if not self.monitor.budgets.store_ok:
            reasons.append("the token ledger does not answer")
        return reasons
