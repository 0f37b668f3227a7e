"""Runs one granted turn: the session's lock between processes, the host, the archive, the one answer."""

from __future__ import annotations

import functools
import logging
import threading
from typing import TYPE_CHECKING

from agentao_gov.clock import SYSTEM_CLOCK, Clock, Deadline
from agentao_gov.endings import Outcome
from agentao_gov.errors import (
    CapacityError,
    DrainingError,
    GovError,
    InternalError,
    ModelError,
    QueueTimeoutError,
    SessionStuckError,
    StoreError,
    TurnTimeoutError,
)
from agentao_gov.governor.classify import TurnResult
from agentao_gov.governor.report import Reason, Timing, TurnReport
from agentao_gov.governor.reporting import compose_report, limit_lines
from agentao_gov.governor.turn import TurnLabels
from agentao_gov.governor.types import TurnRequest
from agentao_gov.pool.core import SessionHealth, StaleLeaseError
from agentao_gov.pool.events import SessionStuck, TurnEnded, TurnRefused, TurnStarted

if TYPE_CHECKING:
    from agentao_gov.pool.engine import Engine
    from agentao_gov.pool.events import Effect
    from agentao_gov.pool.residents import Resident
    from agentao_gov.pool.tickets import Ticket
    from agentao_gov.pool.types import TurnOrder

_log = logging.getLogger(__name__)

#: What a turn ends with: its report, the error its caller meets, or nothing because nobody wants it any more.
Ending = TurnReport | GovError | None


class Turns:
    """The life of a lease. `run` blocks for the turn and is called on a thread of the engine's."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._clock = engine.clock

    def granted(self, ticket: Ticket) -> None:
        """Starts the turn; called on the thread that freed its place."""
        self._engine.runners.submit(functools.partial(self.run, ticket))

    def run(self, ticket: Ticket) -> None:
        """Runs the turn, gives the lease back, then answers: whoever has the answer finds the place free."""
        ticket.thread_id = threading.get_ident()
        resident = ticket.resident
        assert resident is not None
        try:
            verdict, ending = self._turn(ticket, resident)
        except GovError as error:
            verdict, ending = (SessionHealth.BROKEN if isinstance(error, InternalError) else SessionHealth.OK), error
        except Exception as error:
            _log.exception("Turn %s of session %s failed", ticket.order.turn_id, ticket.key)
            verdict = SessionHealth.BROKEN
            ending = InternalError(f"The turn could not be run: {type(error).__name__}: {error}.")
        if verdict is not SessionHealth.STALE:
            ticket.drop_hold()
        self._give_back(ticket, resident, verdict)
        if verdict is not SessionHealth.STALE:
            self.answer(ticket, ending)

    def answer(self, ticket: Ticket, ending: Ending) -> None:
        """Answers the caller, once; an abandoned turn was answered when it was abandoned."""
        with self._engine.lock:
            if ticket.abandoned:
                return
            self._engine.turns += isinstance(ending, TurnReport)
        future = ticket.future
        if not future.running() and not future.set_running_or_notify_cancel():
            return
        if isinstance(ending, TurnReport):
            self._engine.tell(TurnEnded(ending))
            future.set_result(ending)
        elif ending is not None:
            self._engine.tell(TurnRefused(ticket.key, ticket.order.turn_id, ending))
            future.set_exception(ending)

    def cancelled_report(self, ticket: Ticket) -> TurnReport:
        """The report of a turn that was called off before its agent had it."""
        shutdown = ticket.cancel_reason == "shutdown"
        outcome = Outcome.SHUTDOWN if shutdown else Outcome.CANCELLED
        return report_without_agent(ticket, outcome, Reason("The turn was cancelled before it started."), self._clock)

    def abandon(self, ticket: Ticket) -> None:
        """The host has not come back long after it had to: quarantines the session and answers the caller."""
        engine = self._engine

        def take_away(now: float) -> list[Effect]:
            if ticket.abandoned or engine.running.get(ticket.key) is not ticket or ticket.lease_id is None:
                return []
            del engine.running[ticket.key]
            ticket.abandoned = True
            engine.abandoned.add(ticket.key)
            engine.turns += 1
            return engine.core.release(now, ticket.lease_id, SessionHealth.STUCK)

        engine.decide(take_away)
        if ticket.abandoned and not ticket.future.done():
            detail = Reason("The session's host did not return; the session is quarantined.")
            report = report_without_agent(ticket, Outcome.STUCK, detail, self._clock)
            engine.tell(SessionStuck(ticket.key, ticket.order.turn_id))
            engine.tell(TurnEnded(report))
            ticket.future.set_result(report)

    # -- the turn --------------------------------------------------------------------------------------------------

    def _turn(self, ticket: Ticket, resident: Resident) -> tuple[SessionHealth, Ending]:
        order = ticket.order
        if not self._prepare(ticket, resident):
            return SessionHealth.STALE, None
        if ticket.given_up or not ticket.future.set_running_or_notify_cancel():
            return SessionHealth.OK, self.cancelled_report(ticket) if ticket.cancel_reason is not None else None
        self._engine.tell(TurnStarted(ticket.key, order.turn_id, ticket.waited_s))
        request = TurnRequest(
            order.turn_id, order.message, order.user, self._deadline(ticket), round(ticket.waited_s * 1000), order.id
        )
        ticket.started = True
        if ticket.cancel_reason is not None:
            resident.host.cancel(ticket.cancel_reason)
        report = resident.host.turn(request, ticket.on_event)
        if report.outcome is Outcome.INTERNAL_ERROR:
            return SessionHealth.BROKEN, report
        if report.outcome is not Outcome.STUCK:
            report = self._save(ticket, resident, report)
        return (SessionHealth.STUCK if resident.host.stuck else SessionHealth.OK), report

    def _prepare(self, ticket: Ticket, resident: Resident) -> bool:
        """Takes the session for this process. False: this copy is out of date, or another profile is asked for."""
        if ticket.given_up:
            return True
        if resident.archived:
            archive = self._engine.lifecycle.archive
            if ticket.held is None:
                ticket.held = archive.hold(ticket.key, self._patience(ticket), lambda: ticket.given_up)
            if ticket.held is None:
                if ticket.given_up:
                    return True
                raise QueueTimeoutError("Another worker process runs a turn on this session.", retry_after_s=1.0)
            if archive.version(ticket.held) != resident.head.version:
                if resident.dirty:
                    _log.error("Session %s: a turn that could not be saved is lost, another worker went on", ticket.key)
                return False
        if resident.serves(ticket.order):
            return True
        if resident.dirty and ticket.held is not None:
            # Its last turn is in memory alone, and this copy is about to close: a StoreError here loses nothing.
            self._engine.lifecycle.save(resident, ticket.held)
        return False

    def _save(self, ticket: Ticket, resident: Resident, report: TurnReport) -> TurnReport:
        lifecycle = self._engine.lifecycle
        lifecycle.book(resident, report)
        if not resident.archived or ticket.held is None:
            return report
        try:
            lifecycle.save(resident, ticket.held)
        except StoreError as error:
            # The answer is there and must not be lost with the file; the session stays in memory until it is written.
            _log.error("Session %s was not saved: %s", ticket.key, error)
            return report.with_warning(Reason.of(error).after("Not saved yet: "))
        return report

    def _give_back(self, ticket: Ticket, resident: Resident, verdict: SessionHealth) -> None:
        engine = self._engine

        def release(now: float) -> list[Effect]:
            if ticket.abandoned:
                engine.abandoned.discard(ticket.key)
                return engine.core.unstuck(now, ticket.key)
            del engine.running[ticket.key]
            engine.rests.note(resident, now)
            if verdict is SessionHealth.STALE:
                engine.tickets[ticket.waiter_id] = ticket
            assert ticket.lease_id is not None
            return engine.core.release(now, ticket.lease_id, verdict)

        try:
            engine.decide(release)
        except StaleLeaseError:
            _log.exception("The lease of session %s was gone", ticket.key)
        engine.changed.set()
        if verdict is SessionHealth.STUCK:
            engine.tell(SessionStuck(ticket.key, ticket.order.turn_id))
            # Its MCP servers and shells need not outlive it; the thread that will not stop has to be left.
            engine.closers.submit(resident.host.kill)

    def _deadline(self, ticket: Ticket) -> Deadline | None:
        order = ticket.order
        if order.deadline is None:
            return None
        return order.deadline.earlier(Deadline.after(order.profile.profile.limits.turn_timeout_s, self._clock))

    def _patience(self, ticket: Ticket) -> Deadline:
        wait = Deadline(ticket.submitted_at + self._engine.core.limits.queue_timeout_s, self._clock)
        return wait if ticket.order.deadline is None else wait.earlier(ticket.order.deadline)


# -- reports of turns that no agent could report: cancelled while they waited, abandoned by their host, or refused ----

#: The first that fits counts: a draining pool is a capacity error too.
_REFUSALS: tuple[tuple[type[GovError], Outcome], ...] = (
    (DrainingError, Outcome.SHUTDOWN),
    (CapacityError, Outcome.REFUSED),
    (StoreError, Outcome.STORE_UNAVAILABLE),
    (ModelError, Outcome.MODEL_ERROR),
    (SessionStuckError, Outcome.STUCK),
    (TurnTimeoutError, Outcome.TURN_TIMEOUT),
)


def report_without_agent(ticket: Ticket, outcome: Outcome, detail: Reason, clock: Clock) -> TurnReport:
    """The one report of a turn, from what the pool knows of it: no usage, no answer."""
    total_ms = round((clock.monotonic() - ticket.submitted_at) * 1000)
    timing = Timing(total=total_ms, queued=round(ticket.waited_s * 1000) or total_ms)
    return _report(ticket.order, TurnResult(outcome, detail=detail), clock.time() - total_ms / 1000, timing)


def refused_report(order: TurnOrder, error: GovError, clock: Clock = SYSTEM_CLOCK) -> TurnReport:
    """The report of a turn that was refused: a batch has one for every line."""
    outcome = next((found for kind, found in _REFUSALS if isinstance(error, kind)), Outcome.INTERNAL_ERROR)
    return _report(order, TurnResult(outcome, detail=Reason.of(error)), clock.time(), Timing())


def _report(order: TurnOrder, verdict: TurnResult, started_at: float, timing: Timing) -> TurnReport:
    labels = TurnLabels(order.key, order.user, order.profile.profile.name, order.mode, order.turn_id, order.model.name)
    return compose_report(
        labels,
        verdict,
        id=order.id,
        started_at=started_at,
        timing=timing,
        limits=limit_lines(order.profile),
        secret=order.model.api_key.get_secret_value(),
    )
