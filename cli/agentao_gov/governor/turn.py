"""One turn in flight: its deadline, its stop, its counters. What every part of the governor shares about it."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass

from agentao.cancellation import CancellationToken

from agentao_gov.budget.types import Ledger, ScopeLimit
from agentao_gov.clock import SYSTEM_CLOCK, Clock, Deadline
from agentao_gov.governor.classify import StopCause, TurnFacts
from agentao_gov.governor.meter import TurnMeter
from agentao_gov.governor.observe import Observers, TurnLabels
from agentao_gov.governor.reason import Reason
from agentao_gov.governor.requests import EventSink, IterationEvent, TurnEvent

__all__ = ["CallLimits", "Turn"]

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class CallLimits:
    """Limits of each model call of a turn."""

    output_tokens_max: int
    #: Below this an answer is of no use: the call waits, or the budget counts as exhausted.
    output_tokens_min: int
    retries_max: int


class Turn:
    """The state of one turn. Thread-safe: its thread, its tools, sub-agents, the watcher and cancellers use it."""

    def __init__(
        self,
        *,
        labels: TurnLabels,
        deadline: Deadline,
        ledger: Ledger,
        scopes: tuple[ScopeLimit, ...],
        limits: CallLimits,
        sink: EventSink | None = None,
        observers: Observers | None = None,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        self.labels = labels
        self.deadline = deadline
        self.ledger = ledger
        self.scopes = scopes
        self.limits = limits
        self.clock = clock
        self.observers = observers if observers is not None else Observers()
        self.meter = TurnMeter()
        self.token = CancellationToken()
        self.started_at = clock.monotonic()
        #: Set when the turn ends or is stopped: what the watcher waits for.
        self.wake = threading.Event()
        self._sink = sink
        self._lock = threading.Lock()
        # All below under `_lock`.
        self._stop: StopCause | None = None
        self._stop_detail: Reason | None = None
        self._closed = False
        self._final_answer: str | None = None
        self._model_failure: Reason | None = None
        self._cap_reached = False
        self._output_cut = False
        self._unfinished: Reason | None = None
        self._warnings: list[Reason] = []
        # A round of the loop has begun and its request has not gone out yet.
        self._round_pending = False

    # ── stopping ──────────────────────────────────────────────────────────────────────────────────

    def stop(self, cause: StopCause, detail: Reason) -> bool:
        """Stops the turn: cancels its token, which wakes every wait. The first cause wins; says whether this is it."""
        with self._lock:
            if self._stop is not None or self._closed:
                return False
            self._stop, self._stop_detail = cause, detail
        self.token.cancel(cause.value)
        self.wake.set()
        return True

    @property
    def stopped(self) -> bool:
        """Whether nothing new may be begun."""
        with self._lock:
            return self._stop is not None or self._closed

    @property
    def stop_cause(self) -> tuple[StopCause | None, Reason | None]:
        """Why it was stopped, if it was."""
        with self._lock:
            return self._stop, self._stop_detail

    def close(self) -> None:
        """The report is about to be written: nothing is recorded or told after this."""
        with self._lock:
            self._closed = True
        # A thread that was left behind must not go on working for a turn that is over.
        self.token.cancel("turn is over")

    # ── what the model client notes ───────────────────────────────────────────────────────────────

    def call_begins(self) -> None:
        """A model call of the main loop begins: what was final before is not."""
        with self._lock:
            self._final_answer = None
            self._model_failure = None
            self._output_cut = False
            self._unfinished = None

    def call_ended(self, *, final_text: str | None, cut_by_budget: bool, unfinished: Reason | None) -> None:
        """A model call of the main loop ended well. `final_text` if it is a whole answer without tool calls.

        `unfinished`: why what came is not the whole answer.
        """
        with self._lock:
            if self._stop is None:
                self._final_answer = final_text
                self._output_cut = cut_by_budget
                self._unfinished = unfinished

    def model_failed(self, what: Reason) -> None:
        """The last model call failed for good."""
        with self._lock:
            self._model_failure = what

    def begin_round(self) -> None:
        """The loop is about to ask the model; the round counts when its request goes out."""
        with self._lock:
            self._round_pending = not self._cap_reached

    def round_sent(self) -> None:
        """A request of the loop goes out. The first one of a round counts it: a retry is no new round."""
        with self._lock:
            if not self._round_pending:
                return
            self._round_pending = False
        self.emit(IterationEvent(self.meter.iterate(), self.meter.tokens))

    def reach_cap(self) -> None:
        """The loop used all its iterations."""
        with self._lock:
            self._cap_reached = True

    @property
    def wrapping_up(self) -> bool:
        """Whether the cap was reached, so that only the last call without tools may follow."""
        with self._lock:
            return self._cap_reached

    def warn(self, what: Reason) -> None:
        """Adds a sentence for the report."""
        with self._lock:
            if what not in self._warnings:
                self._warnings.append(what)

    def facts(self) -> TurnFacts:
        """What was noted, for the classification; what agentao says is still missing."""
        with self._lock:
            return TurnFacts(
                stop=self._stop,
                stop_detail=self._stop_detail,
                final_answer=self._final_answer,
                cap_reached=self._cap_reached,
                model_failure=self._model_failure,
                output_cut_by_budget=self._output_cut,
                unfinished=self._unfinished,
            )

    @property
    def warnings(self) -> tuple[Reason, ...]:
        """Sentences for the report."""
        with self._lock:
            return tuple(self._warnings)

    # ── telling ───────────────────────────────────────────────────────────────────────────────────

    def emit(self, event: TurnEvent) -> None:
        """Hands an event to the sink while the turn runs. A sink that raises loses the event, not the turn."""
        with self._lock:
            if self._closed or self._sink is None:
                return
            sink: Callable[[TurnEvent], None] = self._sink
        try:
            sink(event)
        except Exception:
            _log.exception("The event sink of turn %s failed", self.labels.turn_id)

    def elapsed_s(self) -> float:
        """Since the turn began."""
        return self.clock.monotonic() - self.started_at
