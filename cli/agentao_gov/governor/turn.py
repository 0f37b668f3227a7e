"""One turn in flight: its deadline, its stop, its counters. What every part of the governor shares about it."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, Protocol

from agentao.cancellation import CancellationToken

from agentao_gov.budget.types import Ledger, ScopeLimit
from agentao_gov.clock import SYSTEM_CLOCK, Clock, Deadline
from agentao_gov.governor.classify import StopCause, TurnFacts
from agentao_gov.governor.report import Mode, Reason, ToolCall, ToolOutcome, TurnReport, Usage
from agentao_gov.governor.types import EventSink, IterationEvent, SessionKey, TurnEvent

_log = logging.getLogger(__name__)

# ── what a turn used ──────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class CallUsage:
    """Tokens of one model call, as charged."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0
    #: Written to the provider's prompt cache; like the cached ones a part of the prompt.
    cache_write_tokens: int = 0
    reasoning_tokens: int = 0
    #: The part that no provider reported.
    estimated_tokens: int = 0

    @property
    def total_tokens(self) -> int:
        """Prompt and completion."""
        return self.prompt_tokens + self.completion_tokens


class TurnMeter:
    """What one turn used so far: tokens, calls, time, tools. Thread-safe: sub-agents and tools run beside the turn."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        # All below under `_lock`.
        self._sum = CallUsage(0, 0)
        self._subtree_tokens = 0
        self._llm_calls = 0
        self._iterations = 0
        self._model_s = 0.0
        self._tools_s = 0.0
        self._first_token_s: float | None = None
        self._tools: list[ToolCall] = []

    def sent(self) -> None:
        """A request went out."""
        with self._lock:
            self._llm_calls += 1

    def iterate(self) -> int:
        """A round of the tool loop begins; returns its number, from 1."""
        with self._lock:
            self._iterations += 1
            return self._iterations

    def charge(self, usage: CallUsage, *, subtree: bool) -> None:
        """Adds what one call used; `subtree` where a sub-agent made it."""
        with self._lock:
            old = self._sum
            self._sum = replace(
                old,
                prompt_tokens=old.prompt_tokens + usage.prompt_tokens,
                completion_tokens=old.completion_tokens + usage.completion_tokens,
                cached_tokens=old.cached_tokens + usage.cached_tokens,
                cache_write_tokens=old.cache_write_tokens + usage.cache_write_tokens,
                reasoning_tokens=old.reasoning_tokens + usage.reasoning_tokens,
                estimated_tokens=old.estimated_tokens + usage.estimated_tokens,
            )
            if subtree:
                self._subtree_tokens += usage.total_tokens

    def model_time(self, seconds: float) -> None:
        """Adds time spent waiting for the model."""
        with self._lock:
            self._model_s += seconds

    def first_token(self, seconds: float) -> None:
        """Notes when the turn's first text came, in seconds from its start; later texts change nothing."""
        with self._lock:
            if self._first_token_s is None:
                self._first_token_s = seconds

    def tool(self, name: str, outcome: ToolOutcome, seconds: float, reason: str | None = None) -> None:
        """Records a tool call that ended, how long it ran in seconds, and why it was refused."""
        with self._lock:
            self._tools_s += seconds
            self._tools.append(ToolCall(name=name, outcome=outcome, duration_ms=round(seconds * 1000), reason=reason))

    @property
    def tokens(self) -> int:
        """Tokens used so far."""
        with self._lock:
            return self._sum.total_tokens

    @property
    def iterations(self) -> int:
        """Rounds so far."""
        with self._lock:
            return self._iterations

    def usage(self) -> Usage:
        """The usage block of the report."""
        with self._lock:
            total = self._sum
            return Usage(
                prompt_tokens=total.prompt_tokens,
                completion_tokens=total.completion_tokens,
                cached_tokens=total.cached_tokens,
                cache_write_tokens=total.cache_write_tokens,
                reasoning_tokens=total.reasoning_tokens,
                total_tokens=total.total_tokens,
                llm_calls=self._llm_calls,
                subtree_tokens=self._subtree_tokens,
                estimated_tokens=total.estimated_tokens,
            )

    def times_s(self) -> tuple[float | None, float, float]:
        """Seconds until the first token (None: no text came), with the model, and in tools."""
        with self._lock:
            return self._first_token_s, self._model_s, self._tools_s

    def tool_calls(self) -> tuple[ToolCall, ...]:
        """In the order of their end."""
        with self._lock:
            return tuple(self._tools)


# ── what observers are told: metrics, tracing, audit ──────────────────────────────────────────────

#: `refused` was never sent (budget, store); `error` was answered with one or failed; `cut` was stopped on the way.
LlmCallOutcome = Literal["ok", "error", "cut", "refused"]


@dataclass(frozen=True, slots=True)
class TurnLabels:
    """Whose turn an event belongs to."""

    key: SessionKey
    user: str
    profile: str
    mode: Mode
    turn_id: str
    model: str


@dataclass(frozen=True, slots=True)
class LlmCallEnd:
    """One request to the model that ended. Tokens as charged."""

    outcome: LlmCallOutcome
    duration_s: float
    first_token_s: float | None
    prompt_tokens: int
    completion_tokens: int
    estimated_tokens: int
    #: loop, summary, wrap_up, sub_agent
    purpose: str
    status: int | None = None
    error_type: str | None = None
    retries: int = 0


@dataclass(frozen=True, slots=True)
class ToolCallEnd:
    """One tool call that ended."""

    name: str
    outcome: ToolOutcome
    duration_s: float


@dataclass(frozen=True, slots=True)
class PermissionEnd:
    """One permission decision: `allow`, `deny`, `prompt` as agentao's engine decides."""

    tool: str
    decision: str
    mode: str


class TurnObserver(Protocol):
    """Told what happens in turns, as values; nothing comes back. `NullObserver` is a base for those who want a part.

    Methods run on the turn's own threads and must not block. What they raise is logged and goes no further, so that a
    broken exporter cannot end a turn.
    """

    def turn_started(self, labels: TurnLabels) -> None:
        """A turn begins; `labels` say whose it is."""
        ...

    def llm_call(self, labels: TurnLabels, call: LlmCallEnd) -> None:
        """A model call of the turn with these `labels` ended; `call` has its tokens and times."""
        ...

    def tool_call(self, labels: TurnLabels, call: ToolCallEnd) -> None:
        """A tool call of the turn with these `labels` ended; `call` has its outcome and time."""
        ...

    def permission(self, labels: TurnLabels, decision: PermissionEnd) -> None:
        """Whether a tool may run was decided in the turn with these `labels`: `decision`."""
        ...

    def turn_ended(self, labels: TurnLabels, report: TurnReport) -> None:
        """The turn with these `labels` ended; `report` is its only one."""
        ...


class NullObserver:
    """Watches nothing; a base for those who want only some events."""

    def turn_started(self, labels: TurnLabels) -> None:
        """Nothing."""

    def llm_call(self, labels: TurnLabels, call: LlmCallEnd) -> None:
        """Nothing."""

    def tool_call(self, labels: TurnLabels, call: ToolCallEnd) -> None:
        """Nothing."""

    def permission(self, labels: TurnLabels, decision: PermissionEnd) -> None:
        """Nothing."""

    def turn_ended(self, labels: TurnLabels, report: TurnReport) -> None:
        """Nothing."""


class Observers:
    """All observers of a governor. Replaced, never changed, so that it is read without a lock."""

    def __init__(self, observers: Sequence[TurnObserver] = ()) -> None:
        self._all: tuple[TurnObserver, ...] = tuple(observers)

    def add(self, observer: TurnObserver) -> None:
        """Adds `observer`, which is told about turns from now on."""
        self._all = (*self._all, observer)

    def tell(self, event: Callable[[TurnObserver], None]) -> None:
        """Calls `event` with each observer; logs what one raises."""
        for observer in self._all:
            try:
                event(observer)
            except Exception:
                _log.exception("An observer of turns failed")


# ── the turn ──────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class CallLimits:
    """Limits of each model call of a turn."""

    output_tokens_max: int
    #: Below this an answer is of no use: the call waits, or the budget counts as exhausted.
    output_tokens_min: int
    retries_max: int


class Turn:
    """The state of one turn. Thread-safe: its thread, its tools, sub-agents, the watcher and cancellers use it.

    `deadline` and `scopes` hold for every call of the turn, `limits` for each; `sink` gets its events in order.
    """

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
        """Stops the turn: cancels its token, which wakes every wait. False where an earlier cause stands."""
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
        """Ends recording and telling, because the report is about to be written."""
        with self._lock:
            self._closed = True
        # A thread that was left behind must not go on working for a turn that is over.
        self.token.cancel("turn is over")

    # ── what the model client notes ───────────────────────────────────────────────────────────────

    def call_begins(self) -> None:
        """Notes that a model call of the main loop begins: what was final before is not."""
        with self._lock:
            self._final_answer = None
            self._model_failure = None
            self._output_cut = False
            self._unfinished = None

    def call_ended(self, *, final_text: str | None, cut_by_budget: bool, unfinished: Reason | None) -> None:
        """Notes that a model call of the main loop was answered.

        `final_text` is the text if it is a whole answer without tool calls; `cut_by_budget` tells that it was cut at a
        grant below `max_output_tokens`; `unfinished` is why what came is not the whole answer.
        """
        with self._lock:
            if self._stop is None:
                self._final_answer = final_text
                self._output_cut = cut_by_budget
                self._unfinished = unfinished

    def model_failed(self, what: Reason) -> None:
        """Notes that the last model call failed for good, and why."""
        with self._lock:
            self._model_failure = what

    def begin_round(self) -> None:
        """Notes that the loop is about to ask the model; the round counts when its request goes out."""
        with self._lock:
            self._round_pending = not self._cap_reached

    def round_sent(self) -> None:
        """Counts the round with its first request that goes out: a retry is no new round."""
        with self._lock:
            if not self._round_pending:
                return
            self._round_pending = False
        self.emit(IterationEvent(self.meter.iterate(), self.meter.tokens))

    def reach_cap(self) -> None:
        """Notes that the loop used all its iterations."""
        with self._lock:
            self._cap_reached = True

    @property
    def wrapping_up(self) -> bool:
        """Whether the cap was reached, so that only the last call without tools may follow."""
        with self._lock:
            return self._cap_reached

    def warn(self, what: Reason) -> None:
        """Adds a warning to the report, once."""
        with self._lock:
            if what not in self._warnings:
                self._warnings.append(what)

    def facts(self) -> TurnFacts:
        """What was noted, for `classify`; the session adds what agentao says."""
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
        """Seconds since the turn began."""
        return self.clock.monotonic() - self.started_at
