"""Performs what the core decides: grants, openings and closes, each on threads of the pool's own.

One lock guards core and tables; it is held for the microseconds of a decision, never while a host, a file or an
observer is busy. Effects are performed after it is given back, on the thread that caused them.
"""

from __future__ import annotations

import ctypes
import functools
import gc
import logging
import sys
import threading
import traceback
from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

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
from agentao_gov.pool.residents import Keeper, Resident
from agentao_gov.pool.threads import Workers
from agentao_gov.pool.tickets import Ticket, stack_of_caller
from agentao_gov.pool.types import CloseReason, SessionState, TurnOrder

if TYPE_CHECKING:
    from agentao_gov.pool.records import Entry
    from agentao_gov.pool.residents import Resident

__all__ = ["Closing", "Engine", "Rests", "Trimmer"]


# Lets sessions rest a moment after their last turn: their hosts keep less memory, and are found as quickly.

#: After the end of a turn. A conversation whose next message comes sooner pays nothing.
REST_AFTER_S = 1.0
#: Sessions that stay awake at once, however little time has passed: when 500 of 200 KB each came in two seconds the
#: process grew to 268 MB, with this to 181. As many as may be busy by default, so that those asked over and over do.
AWAKE_MAX = 64
#: So many more, and they are brought down: memory is given back once for all of them, at a millisecond or two.
AWAKE_SLACK = 16
#: Sessions that one job lets rest, 3 ms each with 200 KB: closes wait behind a job.
_BATCH = 32


class Rests:
    """Who is due when. Each session in memory stands here once at most, however many turns it has."""

    def __init__(self, engine: Engine, give_back: Callable[[], object]) -> None:
        """`give_back` returns freed pages to the machine."""
        self._engine = engine
        self._give_back = give_back
        #: Sessions that had a turn, about in the order in which they are due; under the engine's lock.
        self._due: deque[tuple[float, Resident]] = deque()
        #: Those among them that may have memory to give up; under the engine's lock.
        self._heavy = 0
        #: A job that brings them down to `AWAKE_MAX` is under way; under the engine's lock.
        self._relieving = False
        #: Sessions on their way to rest; under the engine's lock.
        self._going = 0

    @property
    def awake(self) -> int:
        """How many keep their messages ready, or their memory has not been given back yet. Under the engine's lock."""
        return len(self._due) + self._going

    def note(self, resident: Resident, now: float) -> None:
        """A turn of the session has ended. Under the engine's lock; takes a fraction of a microsecond."""
        if not resident.awaits_rest:
            self._put(resident, now + REST_AFTER_S)
            if self._heavy > AWAKE_MAX + AWAKE_SLACK and not self._relieving:
                self._relieving = True
                self._engine.closers.submit(self._relieve)

    def look(self, now: float) -> None:
        """Lets those rest that nobody has asked since; the work is done on the closers' threads."""
        engine = self._engine
        tired: list[Resident] = []
        with engine.lock:
            while self._due and self._due[0][0] <= now:
                resident = self._pop()
                entry = self._idle_entry(resident)
                if entry is None:
                    continue  # it is closing, or its turn's end will note it again
                if entry.idle_since + REST_AFTER_S > now:
                    self._put(resident, entry.idle_since + REST_AFTER_S)
                else:
                    tired.append(resident)
            self._going += len(tired)
        for n in range(0, len(tired), _BATCH):
            engine.closers.submit(functools.partial(self._rest, tired[n : n + _BATCH]))

    def _relieve(self) -> None:
        """Lets the longest idle ones rest, one after the other, until no more than `AWAKE_MAX` are awake."""
        try:
            while (batch := self._excess()) is not None:
                self._rest(batch)
        except BaseException:
            with self._engine.lock:
                self._relieving = False  # or nobody would ever be asked to again
            raise

    def _excess(self) -> list[Resident] | None:
        """Who is to rest before its time; None: there are few enough."""
        with self._engine.lock:
            if self._heavy <= AWAKE_MAX:
                self._relieving = False
                return None
            batch: list[Resident] = []
            while self._heavy > AWAKE_MAX and len(batch) < _BATCH:
                resident = self._pop()
                if self._idle_entry(resident) is not None:
                    batch.append(resident)
            self._going += len(batch)
            return batch

    def _put(self, resident: Resident, due_at: float) -> None:
        resident.awaits_rest = True
        self._heavy += not resident.light
        self._due.append((due_at, resident))

    def _pop(self) -> Resident:
        resident = self._due.popleft()[1]
        resident.awaits_rest = False
        self._heavy -= not resident.light
        return resident

    def _idle_entry(self, resident: Resident) -> Entry | None:
        entry = self._engine.core.table.entries.get(resident.spec.key)
        return entry if entry is not None and entry.state is SessionState.IDLE else None

    def _rest(self, residents: Sequence[Resident]) -> None:
        gave_up = [self._gave_up(resident) for resident in residents]
        try:
            if any(gave_up):
                self._give_back()
        finally:
            with self._engine.lock:
                self._going -= len(residents)
                for resident, heavy in zip(residents, gave_up, strict=True):
                    # One that has been noted again meanwhile is counted as what it was.
                    if not resident.awaits_rest:
                        resident.light = not heavy

    def _gave_up(self, resident: Resident) -> bool:
        try:
            return resident.host.rest()
        except Exception:
            _log.exception("Session %s could not rest", resident.spec.key)
            return False


# Gives the memory of evicted sessions back to the machine: without this an eviction for memory frees nothing.
#
# Agents are cyclic garbage, and glibc keeps freed pages: 50 closed agents were all alive until a collection, and 144 MB
# stayed in use until `malloc_trim`, which left 61 (agentao 0.5.17).

#: A full collection with 500 filled sessions stops the interpreter for some 100 ms: not more often than this.
_APART_S = 15.0


class Trimmer:
    """Collects and trims, at most every fifteen seconds. Thread-safe."""

    def __init__(self, monotonic: Callable[[], float]) -> None:
        self._monotonic = monotonic
        self._lock = threading.Lock()
        self._last_at = float("-inf")
        self._trim = _malloc_trim()

    def __call__(self) -> bool:
        """True if it did; False if it did not long ago."""
        with self._lock:
            now = self._monotonic()
            if now - self._last_at < _APART_S:
                return False
            self._last_at = now
        gc.collect()
        self.give_back()
        return True

    def give_back(self) -> None:
        """Trims alone: what was freed without cycles, as compressed conversations were. Takes a millisecond or two."""
        if self._trim is not None:
            self._trim(0)


def _malloc_trim() -> Callable[[int], Any] | None:
    """glibc's; other C libraries have none. ctypes gives the interpreter lock back during the call."""
    try:
        return ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError):
        return None


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

    def __init__(self, limits: PoolLimits, keeper: Keeper, clock: Clock, close_s: float) -> None:
        self.clock = clock
        self.keeper = keeper
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
        self.runners = Workers("pool-turn", sys.maxsize)
        self.openers = Workers("pool-open", sys.maxsize)
        self.closers = Workers("pool-close", CLOSERS)
        self.trim = Trimmer(clock.monotonic)
        self.rests = Rests(self, self.trim.give_back)

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
            resident = self.keeper.open(order, Deadline.after(limit_s, self.clock))
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
        if not self.keeper.can_leave(resident, reason):
            self._end_close(key, lambda now: self.core.close_refused(now, key))
            return
        wrong = self.keeper.close(resident, reason, deadline)
        with self.lock:
            self.close_failures += wrong is not None
            late_delete = entry.close_reason is CloseReason.DELETED and reason is not CloseReason.DELETED
        if late_delete:
            self.keeper.remove(key)
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
