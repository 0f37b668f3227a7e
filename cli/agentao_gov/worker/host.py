"""One session in a process of its own, behind the same seam as any other session.

The process may hang, die or lie; the host always answers: it keeps the deadline on its side too, kills what does not
keep it, books what the process held, and starts a new process from the conversation of the last turn that ended well.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import shutil
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, TimeoutError
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agentao_gov.budget.types import Ledger, ScopeLimit
from agentao_gov.clock import Clock, Deadline
from agentao_gov.endings import Outcome
from agentao_gov.errors import GovError, InternalError
from agentao_gov.governor.classify import TurnResult
from agentao_gov.governor.report import Reason, Timing, ToolCall, TurnReport, Usage
from agentao_gov.governor.reporting import budget_lines, compose_report, limit_lines
from agentao_gov.governor.turn import LlmCallEnd, Observers, ToolCallEnd, TurnLabels
from agentao_gov.governor.types import (
    Conversation,
    EventSink,
    IterationEvent,
    SessionKey,
    SessionSpec,
    TextEvent,
    ToolEvent,
    TurnEvent,
    TurnRequest,
)
from agentao_gov.process.oslimits import OsLimits
from agentao_gov.process.stderr import RelayedLog, StderrReader
from agentao_gov.process.tags import TAG_VARIABLE
from agentao_gov.process.tree import ORPHANS_KILLED, SessionTree
from agentao_gov.worker import wire
from agentao_gov.worker.owner_ledger import OwnerLedger
from agentao_gov.worker.peer import WireClosed, WireError, WirePeer
from agentao_gov.worker.spawn import SessionProcess, proxies

_log = logging.getLogger(__name__)
#: Kept from the grace for killing and for writing the report, and how much of it a warden has for the killing: one that
#: was stopped by a tool does nothing.
_REPORT_S, _WARDEN_S = 0.2, 0.1
#: From the death of a process to the warden's line about its exit.
_EXIT_S = 1.0
_KILL_S = 1.0
#: No process has killed more than there can be: what it says about itself is a stranger's word.
_PIDS_MAX = 1 << 22
_CANCELS = {
    "shutdown": (Outcome.SHUTDOWN, "The service is shutting down."),
    "client_gone": (Outcome.CANCELLED, "The client went away."),
}


@dataclass(frozen=True, slots=True)
class HostParts:
    """What a factory gives to each of its hosts."""

    ledger: Ledger
    clock: Clock
    observers: Observers
    scopes: Callable[[SessionSpec, TurnRequest], tuple[ScopeLimit, ...]]
    limits: OsLimits
    errors: StderrReader
    #: Gets a process, ready-made where there is one; raises GovError.
    spawn: Callable[[SessionSpec, Deadline], SessionProcess]
    #: Private home of the session's processes.
    home: Callable[[SessionKey], Path]


@dataclass(slots=True)
class _Live:
    """The process that serves now, and the wire to it."""

    process: SessionProcess
    peer: WirePeer
    gone: threading.Event


class SubprocessHost:
    """Satisfies `SessionHost`. `cancel`, `kill` and the properties are safe from any thread."""

    def __init__(self, spec: SessionSpec, parts: HostParts, conversation: Conversation | None) -> None:
        self.spec = spec
        self._parts = parts
        self._ledger = OwnerLedger(parts.ledger, spec.key.tenant, spec.model.name, parts.clock)
        # One for each: a server's flood must not use up what the process itself may say.
        self._log, self._errors = (RelayedLog(f"the process of session {spec.key}", parts.clock) for _ in range(2))
        #: The conversation after the last turn that ended well: what a new process starts from.
        self._conversation = conversation if conversation is not None else Conversation()
        self._one_turn = threading.Lock()
        self._lock = threading.Lock()
        # All below under `_lock`.
        self._live: _Live | None = None
        self._closed = False
        self._cancelled: str | None = None
        self._record: TurnRecord | None = None
        self._survivors = False

    # ── SessionHost ───────────────────────────────────────────────────────────────────────────────

    def start(self, deadline: Deadline) -> None:
        """Gets a process and opens the session in it. Raises GovError."""
        gone = threading.Event()
        process = self._parts.spawn(self.spec, deadline)
        peer = WirePeer(
            process.wire,
            notifications={
                wire.EVENT: self._on_event,
                wire.OBSERVE: self._on_observe,
                wire.LEDGER: self._ledger.notice,
                wire.LOG: self._log.handle,
            },
            requests={wire.LEDGER: self._ledger.handle},
            on_close=gone.set,
            name=self.spec.key.session,
        )
        live = _Live(process, peer, gone)
        try:
            self._open(live, deadline)
        except BaseException as error:
            self._end_process(live)
            if isinstance(error, OSError):
                raise InternalError(f"The session process could not be opened: {error}.") from error
            raise

    def _open(self, live: _Live, deadline: Deadline) -> None:
        """Opens the session in a process that was just got; the caller ends the process if this raises."""
        live.peer.start()
        self._parts.errors.add(live.process.take_errors(), self._errors.error_output)
        with self._lock:
            if self._closed:
                raise InternalError(f"Session {self.spec.key} was closed while it opened.")
            self._live = live
        order = {
            "versions": wire.VERSIONS,
            "spec": wire.encode_spec(self.spec),
            "conversation": wire.encode_conversation(self._conversation),
            "home": str(self._parts.home(self.spec.key)),
            "proxies": proxies(),
            "within_s": (within_s := min(deadline.remaining_s(), 1e6)),
        }
        try:
            live.peer.call(wire.OPEN, order).result(within_s)
        except WireClosed:
            died = f"The session process ended while it opened. {self._exit_reason(live)}".strip()
            raise InternalError(died, hint=live.process.hint) from None
        except WireError as error:
            raise wire.decode_error(error.data, error.message) from error
        except TimeoutError:
            raise InternalError(f"The session process did not open within {within_s:.1f} s.") from None

    def turn(self, request: TurnRequest, on_event: EventSink) -> TurnReport:
        """Runs one turn; see SessionHost. Raises InternalError for a second turn beside the first, or after close."""
        if not self._one_turn.acquire(blocking=False):
            raise InternalError(f"Session {self.spec.key} already runs a turn.")
        try:
            with self._lock:
                if self._closed:
                    raise InternalError(f"Session {self.spec.key} is closed.")
                self._cancelled = None
            return self._observed_turn(request, on_event)
        finally:
            self._one_turn.release()

    def cancel(self, reason: str) -> None:
        """Cancels the turn in flight, if any."""
        with self._lock:
            live = self._live
            if self._record is None or self._cancelled is not None:
                return
            self._cancelled = reason
            self._record.wake.set()
        if live is not None:
            live.peer.notify(wire.CANCEL, {"reason": reason})

    def snapshot(self) -> Conversation:
        """What has to be kept to go on later; answers also when the process is dead."""
        return self._conversation

    def rest(self) -> bool:
        """Nothing: the session's memory is its process's."""
        return False

    def close(self, deadline: Deadline) -> None:
        """Asks the process to end in order; by force at the deadline."""
        with self._lock:
            self._closed = True
            live = self._live
        self.cancel("shutdown")
        if live is None:
            return
        # The kill needs some of the time too.
        within_s = max(0.0, min(deadline.remaining_s(), 3600.0) - 0.3)
        with contextlib.suppress(WireClosed, WireError, TimeoutError, KeyError, TypeError, ValueError):
            closed = live.peer.call(wire.CLOSE, {"within_s": within_s * 0.8}).result(within_s)
            ORPHANS_KILLED.add(min(max(0, int(closed["orphans_killed"])), _PIDS_MAX))
        live.peer.close()
        live.gone.wait(min(0.5, within_s))
        self._end_process(live)
        shutil.rmtree(self._parts.home(self.spec.key), ignore_errors=True)

    def kill(self) -> None:
        """Ends the session's processes by force, at once."""
        with self._lock:
            self._closed = True
            live = self._live
        self.cancel("shutdown")
        if live is not None:
            self._end_process(live)
        shutil.rmtree(self._parts.home(self.spec.key), ignore_errors=True)

    @property
    def stuck(self) -> bool:
        """Only if the system refuses to kill the process: whatever else hangs in it ends with it."""
        with self._lock:
            return self._survivors

    def process_ids(self) -> tuple[int, ...]:
        """Root of the session's process tree: its warden."""
        with self._lock:
            return (self._live.process.root.pid,) if self._live is not None else ()

    # ── one turn ──────────────────────────────────────────────────────────────────────────────────

    def _observed_turn(self, request: TurnRequest, on_event: EventSink) -> TurnReport:
        spec, parts = self.spec, self._parts
        labels = TurnLabels(
            spec.key, request.user, spec.profile.profile.name, spec.mode, request.turn_id, spec.model.name
        )
        limits = spec.profile.profile.limits
        deadline = request.deadline or Deadline.after(limits.turn_timeout_s, parts.clock)
        scopes = parts.scopes(spec, request)
        record = TurnRecord(spec, request, scopes, on_event, parts.clock)
        self._ledger.begin(request.user, scopes)
        parts.observers.tell(lambda observer: observer.turn_started(labels))
        with self._lock:
            self._record = record
        try:
            report = self._run(request, record, deadline)
        finally:
            with self._lock:
                self._record = None
        parts.observers.tell(lambda observer: observer.turn_ended(labels, report))
        return report

    def _run(self, request: TurnRequest, record: TurnRecord, deadline: Deadline) -> TurnReport:
        try:
            live = self._living(deadline)
        except GovError as error:
            return self._own_report(record, Outcome.INTERNAL_ERROR, Reason.of(error))
        answer = live.peer.call(
            wire.TURN,
            {
                "turn_id": request.turn_id,
                "message": request.message,
                "user": request.user,
                "remaining_s": min(deadline.remaining_s(), 1e9),
                "queued_ms": request.queued_ms,
                "id": request.id,
            },
        )
        answer.add_done_callback(lambda _: record.wake.set())
        if self._cancelled is not None:  # cancelled while a process was being started
            live.peer.notify(wire.CANCEL, {"reason": self._cancelled})
        grace_s = float(self.spec.profile.profile.limits.cancel_grace_s)
        if not self._await(answer, record, deadline, grace_s):
            self._end_process(live, _WARDEN_S)
            outcome, why = self._why_stopped(record)
            text = f"{why} The session process did not stop within {grace_s:g} s and was killed."
            return self._own_report(record, outcome, Reason(text))
        return self._report(answer, record, live)

    def _await(self, answer: Future[Any], record: TurnRecord, deadline: Deadline, grace_s: float) -> bool:
        """Waits for the answer, but not longer than the grace after the deadline or a cancel."""
        while not answer.done() and self._cancelled is None and not deadline.passed:
            record.wake.wait(min(deadline.remaining_s(), 3600.0))
            if self._cancelled is None and not answer.done():
                record.wake.clear()
        until = time.monotonic() + max(0.0, grace_s - _REPORT_S)
        with contextlib.suppress(TimeoutError, WireClosed, WireError):
            answer.result(max(0.0, until - time.monotonic()))
        return answer.done()

    def _report(self, answer: Future[Any], record: TurnRecord, live: _Live) -> TurnReport:
        try:
            data = answer.result()
            report = record.sign(TurnReport.model_validate(data["report"]), self._ledger.usage())
            self._take_over(data)
        except WireClosed:
            outcome, why = self._why_stopped(record) if self._cancelled else (Outcome.INTERNAL_ERROR, "")
            text = f"{why} The session process ended during the turn. {self._exit_reason(live)}".strip()
            return self._own_report(record, outcome, Reason(text))
        except WireError as error:
            failure = wire.decode_error(error.data, error.message)
            self._end_process(live)
            return self._own_report(record, Outcome.INTERNAL_ERROR, Reason.of(failure))
        except (KeyError, ValueError, TypeError) as error:
            self._end_process(live)
            nonsense = "The session process answered nonsense"
            return self._own_report(record, Outcome.INTERNAL_ERROR, Reason(f"{nonsense}.", f"{nonsense}: {error}"))
        if data.get("stuck") or report.outcome is Outcome.STUCK:
            # Elsewhere such a session is quarantined for good; a process can be ended, and the next turn goes on.
            self._end_process(live)
            if report.outcome is Outcome.STUCK:
                outcome, why = self._why_stopped(record)
                detail = f"{why} {report.detail or ''} The session process was killed.".replace("  ", " ")
                ending = {"outcome": outcome, "detail": detail, "operator_detail": None, "exit_code": outcome.exit_code}
                return report.model_copy(update=ending)
        return report

    def _take_over(self, data: Mapping[str, Any]) -> None:
        """Puts the messages that changed onto those that are known. Raises KeyError, TypeError or ValueError."""
        changes = data.get("conversation")
        if changes is None:
            return
        kept = self._conversation.messages[: max(0, int(data["keep"]))]
        changed = Conversation.of(changes)
        self._conversation = dataclasses.replace(changed, messages=(*kept, *changed.messages))

    def _why_stopped(self, record: TurnRecord) -> tuple[Outcome, str]:
        if self._cancelled is None:
            return Outcome.TURN_TIMEOUT, f"The turn met its deadline after {record.elapsed_s():.1f} s."
        return _CANCELS.get(self._cancelled, (Outcome.CANCELLED, "The turn was cancelled."))

    def _own_report(self, record: TurnRecord, outcome: Outcome, detail: Reason) -> TurnReport:
        """The report of a turn whose process can no longer write one. What was held is booked first."""
        self._ledger.abandon()
        return record.report(outcome, detail, self._ledger.usage(), self._parts.ledger)

    # ── the process ───────────────────────────────────────────────────────────────────────────────

    def _living(self, deadline: Deadline) -> _Live:
        """The process that serves, or a new one that starts from the last good conversation."""
        with self._lock:
            live = self._live
        if live is not None and not live.peer.closed:
            return live
        if live is not None:
            _log.warning(
                "The process of session %s is gone; starting another. %s", self.spec.key, self._exit_reason(live)
            )
        self.start(deadline)
        with self._lock:
            live = self._live
        assert live is not None
        return live

    def _exit_reason(self, live: _Live) -> str:
        """Why a process ended, in a sentence; ends what is left of its tree."""
        code, struck = live.process.read_exit(_EXIT_S)
        self._end_process(live)
        named = self._parts.limits.explain_exit(code if code is not None else 0, struck)
        if named is not None or code is None:
            return named or ""
        return f"It was killed by signal {-code}." if code < 0 else f"It ended with code {code}."

    def _end_process(self, live: _Live, warden_s: float = _KILL_S) -> None:
        """Kills what is left of a process's tree, itself where the warden has not in time. Idempotent."""
        live.process.kill()
        live.process.let_go()
        live.peer.close()
        gone = live.process.wait_gone(warden_s)
        live.process.read_exit(0)
        if not live.process.ended_well:
            # The warden itself was killed: what it guarded is found by its tag.
            tree = SessionTree(self.spec.child_env[TAG_VARIABLE], [live.process.root])
            try:
                gone = not tree.kill(_KILL_S).survivors
            except OSError:  # without a free descriptor nobody can be looked for
                gone = False
        with self._lock:
            if self._live is live:
                self._live = None
            self._survivors |= not gone
        self._ledger.abandon()

    # ── what comes up the wire, on the reader's thread ────────────────────────────────────────────

    def _on_event(self, params: Mapping[str, Any]) -> None:
        with self._lock:
            record = self._record
        if record is not None:
            record.event(wire.decode_event(params))

    def _on_observe(self, params: Mapping[str, Any]) -> None:
        with self._lock:
            record = self._record
        if record is None:
            return
        labels, seen = record.labels, wire.decode_observation(params)
        if isinstance(seen, LlmCallEnd):
            self._parts.observers.tell(lambda observer: observer.llm_call(labels, seen))
        elif isinstance(seen, ToolCallEnd):
            self._parts.observers.tell(lambda observer: observer.tool_call(labels, seen))
        else:
            self._parts.observers.tell(lambda observer: observer.permission(labels, seen))


class TurnRecord:
    """What the owner saw of a turn in another process: enough for its report when that process cannot write one.

    Events come from the wire's reader thread, the rest from the turn's."""

    def __init__(
        self, spec: SessionSpec, request: TurnRequest, scopes: tuple[ScopeLimit, ...], sink: EventSink, clock: Clock
    ) -> None:
        self._spec = spec
        self._request = request
        self._scopes = scopes
        self._sink = sink
        self._clock = clock
        self._began, self._began_wall = clock.monotonic(), clock.time()
        self.labels = TurnLabels(
            spec.key, request.user, spec.profile.profile.name, spec.mode, request.turn_id, spec.model.name
        )
        #: Set when there is something to look at: an answer, or a cancel.
        self.wake = threading.Event()
        # Written by the reader's thread only; read once the turn is over.
        self._first_token_s: float | None = None
        self._tools: list[ToolCall] = []
        self._iterations = 0

    def elapsed_s(self) -> float:
        """Since the turn began."""
        return self._clock.monotonic() - self._began

    def event(self, event: TurnEvent) -> None:
        """Notes an event and passes it on."""
        match event:
            case TextEvent():
                if self._first_token_s is None:
                    self._first_token_s = self.elapsed_s()
            case ToolEvent():
                self._tools.append(ToolCall(name=event.name, outcome=event.outcome, duration_ms=event.duration_ms))
            case IterationEvent():
                self._iterations = event.iteration
        self._sink(event)

    def sign(self, report: TurnReport, booked: Usage) -> TurnReport:
        """The process's own report, whose identity and totals are the owner's to state."""
        spec, request = self._spec, self._request
        truth: dict[str, object] = {
            "turn_id": request.turn_id,
            "id": request.id,
            "tenant": spec.key.tenant,
            "user": request.user,
            "session": spec.key.session,
            "profile": self.labels.profile,
            "mode": spec.mode,
            "model": self.labels.model,
            "exit_code": report.outcome.exit_code,
        }
        said = report.usage
        truth["usage"] = said.model_copy(
            update={
                "prompt_tokens": booked.prompt_tokens,
                "completion_tokens": booked.completion_tokens,
                "total_tokens": booked.total_tokens,
                "estimated_tokens": booked.estimated_tokens,
            }
        )
        if said.total_tokens != booked.total_tokens:
            text = (
                f"The session process reported {said.total_tokens:,} tokens, the ledger booked {booked.total_tokens:,}."
            )
            report = report.with_warning(Reason(text))
        return report.model_copy(update=truth)

    def report(self, outcome: Outcome, detail: Reason, usage: Usage, ledger: Ledger) -> TurnReport:
        """The report, from what was seen."""
        request = self._request
        budget, warnings = budget_lines(ledger, self._scopes)
        timing = Timing(
            total=request.queued_ms + round(self.elapsed_s() * 1000),
            queued=request.queued_ms,
            first_token=None if self._first_token_s is None else round(self._first_token_s * 1000),
            tools=sum(call.duration_ms for call in self._tools),
        )
        return compose_report(
            self.labels,
            TurnResult(outcome, detail=detail),
            id=request.id,
            started_at=self._began_wall,
            timing=timing,
            limits=limit_lines(self._spec.profile),
            usage=usage,
            iterations=self._iterations,
            tool_calls=tuple(self._tools),
            budget=budget,
            warnings=warnings,
            secret=self._spec.model.api_key.get_secret_value(),
        )
