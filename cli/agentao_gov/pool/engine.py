"""Performs what the core decides: grants, openings and closes, each on threads of the pool's own.

One lock guards core and tables; it is held for the microseconds of a decision, never while a host, a file or an
observer is busy. Effects are performed after it is given back, on the thread that caused them.
"""

from __future__ import annotations

import functools
import logging
import sys
import threading
import traceback
from collections import deque
from collections.abc import Callable
from typing import NamedTuple

from agentao_gov.clock import Clock, Deadline
from agentao_gov.errors import GovError, InternalError
from agentao_gov.governor.types import SessionKey
from agentao_gov.pool.core import PoolCore
from agentao_gov.pool.events import (
    Close,
    Effect,
    Grant,
    Leak,
    LeaseLeaked,
    Open,
    PoolEvent,
    PoolObserver,
    Refuse,
    SessionClosed,
    SessionOpened,
    SessionOpenFailed,
    TurnRefused,
    error_of,
)
from agentao_gov.pool.limits import PoolLimits
from agentao_gov.pool.memory import RestQueue, Trimmer
from agentao_gov.pool.residents import Lifecycle, Resident
from agentao_gov.pool.threads import DaemonThreads
from agentao_gov.pool.tickets import Ticket, stack_of_caller
from agentao_gov.pool.types import CloseReason, SessionState, TurnOrder

_log = logging.getLogger(__name__)

#: Closes at once. Most take no time; with MCP servers 0.25 s, so that 16 threads close 64 sessions a second.
CLOSERS = 16
#: Waits remembered for the quantiles.
_WAITS = 2048


class Closing(NamedTuple):
    """A close under way, for the watch over closes that hang."""

    resident: Resident
    deadline: Deadline


class Engine:
    """The shell around `PoolCore`. Thread-safe; no method blocks but those that end in `_job`."""

    def __init__(self, limits: PoolLimits, lifecycle: Lifecycle, clock: Clock, close_s: float) -> None:
        self.clock = clock
        self.lifecycle = lifecycle
        self.lock = threading.Lock()
        #: All under `lock`, down to `_causes`.
        self.core = PoolCore(limits)
        #: Turns without a place, by waiter.
        self.tickets: dict[int, Ticket] = {}
        #: Turns with a lease, by session.
        self.running: dict[SessionKey, Ticket] = {}
        #: Sessions with an agent, whatever it does.
        self.residents: dict[SessionKey, Resident] = {}
        #: Orders whose agents are being built.
        self.opening: dict[SessionKey, TurnOrder] = {}
        self.closing: dict[SessionKey, Closing] = {}
        #: Sessions whose host has not returned from a turn that was abandoned.
        self.abandoned: set[SessionKey] = set()
        self.waits: deque[float] = deque(maxlen=_WAITS)
        self.rehydrations = 0
        self.close_failures = 0
        self.turns = 0
        self._causes: dict[SessionKey, GovError] = {}
        self.close_s = close_s
        #: Set whenever a turn ended or a session left: what waits for the pool to empty looks then.
        self.changed = threading.Event()
        self._observers: tuple[PoolObserver, ...] = ()
        # The core bounds how many turns and openings there are; these only must not be smaller than it allows,
        # and a thread finishes its bookkeeping after its place is free.
        self.runners = DaemonThreads("pool-turn", sys.maxsize)
        self.openers = DaemonThreads("pool-open", sys.maxsize)
        self.closers = DaemonThreads("pool-close", CLOSERS)
        self.trim = Trimmer(clock.monotonic)
        self.rests = RestQueue(self.lock, self.closers.submit, self._idle_since, self.trim.give_back)

    # -- decisions -------------------------------------------------------------------------------------------------

    def decide(self, event: Callable[[float], list[Effect]]) -> None:
        """Lets the core decide on one event, then performs what it decided."""
        now = self.clock.monotonic()
        with self.lock:
            bound = [self._bind(effect) for effect in event(now)]
        for act in bound:
            act()

    def _bind(self, effect: Effect) -> Callable[[], None]:
        """What has to be done for an effect, with everything it needs looked up while the lock is held."""
        if isinstance(effect, Grant):
            ticket = self.tickets.pop(effect.waiter_id)
            ticket.lease_id = effect.lease_id
            ticket.waited_s = effect.waited_s
            ticket.resident = self.residents[effect.key]
            self.running[effect.key] = ticket
            self.waits.append(effect.waited_s)
            return functools.partial(ticket.granted, ticket)
        if isinstance(effect, Refuse):
            return functools.partial(self._refuse, effect, self.tickets.pop(effect.waiter_id))
        if isinstance(effect, Open):
            ticket = self.tickets[effect.waiter_id]
            self.opening[effect.key] = ticket.order
            return functools.partial(self.openers.submit, functools.partial(self._open_job, ticket.order))
        if isinstance(effect, Close):
            job = functools.partial(self._close_job, effect.key, effect.reason, self.residents[effect.key])
            return functools.partial(self.closers.submit, job)
        return functools.partial(self._report_leak, effect, self.running.get(effect.key))

    def _idle_since(self, resident: Resident) -> float | None:
        """When the session's last turn ended; None while it is not idle. Under the lock."""
        entry = self.core.table.entries.get(resident.spec.key)
        return entry.idle_since if entry is not None and entry.state is SessionState.IDLE else None

    def _refuse(self, refusal: Refuse, ticket: Ticket) -> None:
        ticket.drop_hold()
        with self.lock:
            cause = self._causes.get(refusal.key)
        error = error_of(refusal, cause)
        if ticket.future.set_running_or_notify_cancel():
            self.tell(TurnRefused(ticket.key, ticket.order.turn_id, error))
            ticket.future.set_exception(error)

    # -- openings --------------------------------------------------------------------------------------------------

    def _open_job(self, order: TurnOrder) -> None:
        began = self.clock.monotonic()
        limit_s = self.core.limits.open_limit_s(order.servers_s)
        try:
            resident = self.lifecycle.open(order, Deadline.after(limit_s, self.clock))
        except BaseException as error:
            self._open_failed(order, error)
            return

        def opened(now: float) -> list[Effect]:
            self.residents[order.key] = resident
            del self.opening[order.key]
            self.rehydrations += resident.rehydrated
            return self.core.opened(now, order.key)

        self.tell(SessionOpened(order.key, self.clock.monotonic() - began, resident.rehydrated))
        self.decide(opened)

    def _open_failed(self, order: TurnOrder, error: BaseException) -> None:
        if isinstance(error, GovError):
            cause = error
        else:
            _log.error("Opening session %s failed", order.key, exc_info=error)
            cause = InternalError(f"Session {order.key} could not be opened: {type(error).__name__}: {error}.")
            cause.__cause__ = error

        def failed(now: float) -> list[Effect]:
            del self.opening[order.key]
            self._causes[order.key] = cause
            return self.core.open_failed(now, order.key)

        self.decide(failed)
        with self.lock:
            self._causes.pop(order.key, None)
        self.tell(SessionOpenFailed(order.key, cause.code, cause.message))

    # -- closes ----------------------------------------------------------------------------------------------------

    def _close_job(self, key: SessionKey, reason: CloseReason, resident: Resident) -> None:
        began = self.clock.monotonic()
        deadline = Deadline.after(self.close_s, self.clock)
        with self.lock:
            self.closing[key] = Closing(resident, deadline)
            # A delete may have come after the close was ordered.
            entry = self.core.table.entries[key]
            reason = CloseReason.DELETED if entry.close_reason is CloseReason.DELETED else reason
        if not self.lifecycle.can_leave(resident, reason):
            self._end_close(key, lambda now: self.core.close_refused(now, key))
            return
        wrong = self.lifecycle.close(resident, reason, deadline)
        with self.lock:
            self.close_failures += wrong is not None
            late_delete = entry.close_reason is CloseReason.DELETED and reason is not CloseReason.DELETED
        if late_delete:
            self.lifecycle.remove(key)
        self.tell(SessionClosed(key, reason, self.clock.monotonic() - began, wrong))

        def closed(now: float) -> list[Effect]:
            del self.residents[key]
            return self.core.closed(now, key)

        self._end_close(key, closed)

    def _end_close(self, key: SessionKey, event: Callable[[float], list[Effect]]) -> None:
        def end(now: float) -> list[Effect]:
            del self.closing[key]
            return event(now)

        self.decide(end)
        self.changed.set()

    # -- observers -------------------------------------------------------------------------------------------------

    def subscribe(self, observer: PoolObserver) -> None:
        """Adds an observer of everything that happens from now on."""
        with self.lock:
            self._observers = (*self._observers, observer)

    def tell(self, event: PoolEvent) -> None:
        """Tells the observers. Never under the lock."""
        for observer in self._observers:
            try:
                observer(event)
            except Exception:
                _log.exception("A pool observer failed")

    def _report_leak(self, leak: Leak, ticket: Ticket | None) -> None:
        borrower = stack_of_caller(ticket.borrower) if ticket is not None else "unknown\n"
        worker = _stack_of_thread(ticket.thread_id) if ticket is not None else "unknown\n"
        what = "came back" if leak.returned else "is still held"
        _log.warning(
            "The lease of session %s %s after %.1f s.\nTaken at:\n%sIts thread is at:\n%s",
            leak.key, what, leak.held_s, borrower, worker,
        )  # fmt: skip
        self.tell(LeaseLeaked(leak.key, leak.lease_id, leak.held_s, leak.returned, borrower, worker))


def _stack_of_thread(thread_id: int | None) -> str:
    frame = sys._current_frames().get(thread_id) if thread_id is not None else None
    return "".join(traceback.format_stack(frame)) if frame is not None else "no thread\n"
