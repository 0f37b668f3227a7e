"""One governed session: an agent, one turn at a time, each under its limits and each ending with one report."""

from __future__ import annotations

import dataclasses
import json
import logging
import sys
import threading
import time
import traceback
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from agentao_gov.budget.types import Ledger, ScopeLimit
from agentao_gov.clock import Clock, Deadline
from agentao_gov.endings import Outcome
from agentao_gov.errors import GovError, InternalError
from agentao_gov.governor.build import AgentParts
from agentao_gov.governor.classify import StopCause, TurnFacts, TurnResult, classify
from agentao_gov.governor.report import Reason, TurnReport
from agentao_gov.governor.reporting import limit_lines, write_report
from agentao_gov.governor.tools import ToolLog
from agentao_gov.governor.turn import CallLimits, Observers, PermissionEnd, Turn, TurnLabels
from agentao_gov.governor.types import Conversation, EventSink, SessionSpec, TurnRequest
from agentao_gov.process import procfs

_log = logging.getLogger(__name__)

#: An answer shorter than this many tokens is of no use: with less left the budget counts as exhausted.
USEFUL_OUTPUT_TOKENS = 64

_CAUSES = {"client_gone": StopCause.CLIENT_GONE, "shutdown": StopCause.SHUTDOWN}
_CAUSE_TEXTS = {
    StopCause.CANCELLED: Reason("The turn was cancelled."),
    StopCause.CLIENT_GONE: Reason("The client went away."),
    StopCause.SHUTDOWN: Reason("The service is shutting down."),
}
#: Outcomes after which nothing has happened, unless a tool ran.
_UNDONE = frozenset(
    {
        Outcome.BUDGET_EXHAUSTED,
        Outcome.BUDGET_IMPOSSIBLE,
        Outcome.STORE_UNAVAILABLE,
        Outcome.MODEL_ERROR,
        Outcome.SHUTDOWN,
    }
)
#: Kept from the grace for writing the report.
_REPORT_S = 0.1
#: Longest single wait, because a wait without end cannot be interrupted by a signal on some platforms.
_WAIT_S_MAX = 3600.0
_STACK_FRAMES_MAX = 40
#: A shorter conversation is left as it is: agent and bookkeeping weigh more.
_BYTES_MIN = 8 * 1024

# ── the conversation between turns ─────────────────────────────────────────────────────────────────


class IdleMessages:
    """One session's messages: in the agent, or compressed here while nobody speaks to the session. Thread-safe.

    500 idle sessions with 100 messages of 2 KB hold 110 MB of text; compressed they hold a fourth of it, and a turn
    pays 1 ms per 200 KB to have it back. Messages pass through JSON as they do on their way to the archive.
    """

    def __init__(self, parts: AgentParts) -> None:
        self._parts = parts
        #: Held while the messages move; never while a turn runs.
        self._moving = threading.Lock()
        #: The messages while they rest; the agent's list is empty then. Guarded by `_moving`.
        self._packed: bytes | None = None

    def compress(self, busy: Callable[[], bool] = lambda: False) -> bool:
        """Compresses the messages; False where they are, are not worth it, or `busy` says that a turn needs them."""
        with self._moving:
            # A turn says that it is busy before it calls `restore`, which waits for this lock.
            if self._packed is not None or busy():
                return False
            agent, model = self._parts.agent, self._parts.model
            raw = json.dumps(agent.messages, separators=(",", ":")).encode()
            if len(raw) < _BYTES_MIN:
                return False
            # What the provider reported goes on as figures: the anchor holds the messages it was reported for.
            saved = model.anchor.export(agent.messages) or model.saved_anchor
            self._packed = zlib.compress(raw, 1)
            model.anchor, model.saved_anchor = model.anchor.blank(), saved
            agent.messages = []
            return True

    def restore(self) -> None:
        """Gives the agent its messages back."""
        with self._moving:
            if self._packed is not None:
                self._parts.agent.messages = json.loads(zlib.decompress(self._packed))
                self._packed = None

    def messages(self) -> list[dict[str, Any]]:
        """A copy of the messages, wherever they are."""
        with self._moving:
            if self._packed is not None:
                resting: list[dict[str, Any]] = json.loads(zlib.decompress(self._packed))
                return resting
            return [dict(message) for message in self._parts.agent.messages]

    def anchor(self, messages: Sequence[Mapping[str, Any]]) -> Mapping[str, int] | None:
        """What the provider last reported, as figures for the archive."""
        with self._moving:
            model = self._parts.model
            return model.anchor.export(messages) or model.saved_anchor


# ── one turn on a thread of its own ────────────────────────────────────────────────────────────────


@dataclass(slots=True)
class TurnRun:
    """What the turn's thread left: its text, or what it raised, if it returned at all."""

    thread: threading.Thread
    returned: bool
    text: str = ""
    crash: BaseException | None = None


def run_turn(turn: Turn, chat: Callable[[], str], *, grace_s: float, kill: Callable[[], None]) -> TurnRun:
    """Runs `chat` and watches it. Returns within the turn's deadline plus `grace_s`, or that long after a cancel.

        deadline ─► cancel token, sockets shut down ─► half the grace ─► `kill` ─► the rest of it ─► abandon

    `asyncio.to_thread` and agentao's `arun` share a pool of min(32, cores + 4) threads for the whole process, so six
    stuck turns would freeze every tenant of a 2-core machine; and their threads are joined at exit. Ours are daemons.
    """
    done = threading.Event()
    results: list[str] = []
    crashes: list[BaseException] = []

    def body() -> None:
        try:
            results.append(chat())
        except BaseException as error:
            crashes.append(error)
        finally:
            done.set()
            turn.wake.set()

    thread = threading.Thread(target=body, name=f"turn-{turn.labels.turn_id}", daemon=True)
    thread.start()
    returned = _watch(turn, done, grace_s, kill)
    if not returned:
        _log.error(
            "Turn %s of session %s did not stop within %.1f s and is abandoned. Its stack:\n%s",
            turn.labels.turn_id,
            turn.labels.key,
            grace_s,
            stack_of(thread),
        )
    return TurnRun(thread, returned, results[0] if results else "", crashes[0] if crashes else None)


def _watch(turn: Turn, done: threading.Event, grace_s: float, kill: Callable[[], None]) -> bool:
    while not done.is_set() and not turn.stopped:
        left_s = turn.deadline.remaining_s()
        if left_s <= 0:
            turn.stop(StopCause.DEADLINE, Reason(f"The turn met its deadline after {turn.elapsed_s():.1f} s."))
            break
        turn.wake.wait(min(left_s, _WAIT_S_MAX))
    if done.is_set():
        return True
    until = time.monotonic() + grace_s
    if done.wait(grace_s / 2):
        return True
    kill()
    return done.wait(max(0.0, until - time.monotonic() - _REPORT_S))


def stack_of(thread: threading.Thread) -> str:
    """Where a thread is now; without values, which may be a tenant's."""
    frame = sys._current_frames().get(thread.ident or 0)
    if frame is None:
        return "(the thread has ended)"
    return "".join(traceback.format_stack(frame, limit=_STACK_FRAMES_MAX)).rstrip()


# ── the session ────────────────────────────────────────────────────────────────────────────────────


class GovernedSession:
    """Satisfies the pool's `SessionHost` in this process. `cancel`, `kill` and the properties are for any thread.

    `Governor.open` makes it. `spec`: whose session it is, under which profile and model. `parts`: the agent with what
    governs it. `ledger`: where its tokens are reserved. `scopes` names the budgets of a turn before it starts.
    `observers` are told of its turns. `clock`: time for its deadlines.
    """

    def __init__(
        self,
        spec: SessionSpec,
        parts: AgentParts,
        *,
        ledger: Ledger,
        scopes: Callable[[TurnRequest], tuple[ScopeLimit, ...]],
        observers: Observers,
        clock: Clock,
    ) -> None:
        self._spec = spec
        self._parts = parts
        self._ledger = ledger
        self._scopes = scopes
        self._observers = observers
        self._clock = clock
        self._limits = limit_lines(spec.profile)
        self._one_turn = threading.Lock()
        self._messages = IdleMessages(parts)
        #: The turn in flight; written under `_one_turn`, read by the model client, the guard and cancellers.
        self.current: Turn | None = None
        self._closed = False
        # The thread of a turn that was left behind: while it runs, the agent is in unknown hands.
        self._abandoned: threading.Thread | None = None
        parts.agent.add_host_event_observer(self._on_host_event)

    # ── SessionHost ───────────────────────────────────────────────────────────────────────────────

    def turn(self, request: TurnRequest, on_event: EventSink) -> TurnReport:
        """Runs one turn and returns its report within the deadline plus `cancel_grace`; blocks meanwhile.

        `request`: the message, and until when. `on_event` gets the turn's events on its thread. Raises InternalError
        beside another turn, and after `close`.
        """
        if not self._one_turn.acquire(blocking=False):
            raise InternalError(f"Session {self._spec.key} already runs a turn.")
        try:
            if self._closed:
                raise InternalError(f"Session {self._spec.key} is closed.")
            self._messages.restore()
            return self._turn(request, on_event)
        finally:
            self.current = None
            self._one_turn.release()

    def cancel(self, reason: str) -> None:
        """Cancels the turn in flight, if any. `reason`: `client_gone`, `shutdown`, or any other word for a cancel."""
        turn = self.current
        if turn is not None:
            cause = _CAUSES.get(reason, StopCause.CANCELLED)
            turn.stop(cause, _CAUSE_TEXTS[cause])

    def snapshot(self) -> Conversation:
        """What has to be kept to go on later."""
        agent = self._parts.agent
        messages = self._messages.messages()
        return Conversation(
            messages=messages,
            todos=[dict(todo) for todo in agent.todo_tool.get_todos()],
            active_skills=tuple(agent.skill_manager.get_active_skills()),
            anchor=self._messages.anchor(messages),
        )

    def rest(self) -> bool:
        """Gives up what memory it can until the next turn; False: there was none worth it."""
        return not self.stuck and self._messages.compress(busy=self._one_turn.locked)

    def close(self, deadline: Deadline) -> None:
        """Ends agent, servers and shells in order; by force what is left at `deadline`. Blocks until then."""
        self._closed = True
        self.cancel("shutdown")
        has_children = self._has_servers()
        if has_children:
            # An MCP server that ignores end-of-input takes agentao 4 s and more.
            closer = threading.Thread(target=_close_agent, args=(self._parts,), name="close-agent", daemon=True)
            closer.start()
            closer.join(min(deadline.remaining_s(), threading.TIMEOUT_MAX))
        else:
            _close_agent(self._parts)
        self._parts.shell.sweep()
        if has_children:
            self._parts.tree.kill()

    def kill(self) -> None:
        """Ends the session's processes by force."""
        self._closed = True
        self.cancel("shutdown")
        self._kill_children()

    @property
    def stuck(self) -> bool:
        """Whether a thread was left behind and still runs: the session must not be reused."""
        abandoned = self._abandoned
        return (abandoned is not None and abandoned.is_alive()) or bool(self._parts.guard.left_behind())

    def process_ids(self) -> tuple[int, ...]:
        """Roots of the process trees this session owns."""
        if not self._has_servers() and not self._parts.shell.used:
            return ()
        members = {ref.pid for ref in self._parts.tree.members()}
        stats = procfs.stats(sorted(members))
        return tuple(sorted(stat.ref.pid for stat in stats if stat.ppid not in members))

    # ── one turn ──────────────────────────────────────────────────────────────────────────────────

    def _turn(self, request: TurnRequest, on_event: EventSink) -> TurnReport:
        parts, limits = self._parts, self._spec.profile.profile.limits
        started_at = self._clock.time()
        deadline = Deadline.after(limits.turn_timeout_s, self._clock)
        failure: GovError | None = None
        scopes: tuple[ScopeLimit, ...] = ()
        try:
            scopes = self._scopes(request)
        except GovError as error:
            failure = error
        turn = Turn(
            labels=self._labels(request),
            deadline=deadline if request.deadline is None else request.deadline,
            ledger=self._ledger,
            scopes=scopes,
            limits=CallLimits(limits.max_output_tokens, USEFUL_OUTPUT_TOKENS, limits.llm_retries),
            sink=on_event,
            observers=self._observers,
            clock=self._clock,
        )
        self._observers.tell(lambda observer: observer.turn_started(turn.labels))
        if failure is not None:
            unknown = Reason.of(failure).after("The turn's budgets could not be found: ")
            result = TurnResult(Outcome.INTERNAL_ERROR, detail=unknown)
        elif self.stuck:
            result = TurnResult(Outcome.STUCK, detail=Reason("An earlier turn of this session never came back."))
        else:
            result = self._run(turn, request, limits)
        report = write_report(
            turn,
            self._spec,
            request,
            result,
            started_at=started_at,
            limits=self._limits,
            warnings=(*map(Reason, self._spec.profile.adjustments), *parts.warnings, *parts.servers.warnings()),
        )
        self._observers.tell(lambda observer: observer.turn_ended(turn.labels, report))
        return report

    def _run(self, turn: Turn, request: TurnRequest, limits: Any) -> TurnResult:
        parts = self._parts
        log = ToolLog(turn)
        parts.transport.turn, parts.transport.log = turn, log
        self.current = turn
        if self._closed:
            # Closed between the lease and here: the canceller found no turn to cancel.
            self.cancel("shutdown")

        history = list(parts.agent.messages)

        def chat() -> str:
            parts.servers.try_again(parts.guard, turn.token, turn.deadline)
            answer: str = parts.agent.chat(request.message, limits.max_iterations, turn.token)
            return answer

        run = run_turn(turn, chat, grace_s=limits.cancel_grace_s, kill=self._kill_children)
        if run.returned:
            parts.shell.sweep()
        facts = self._facts(turn, run)
        log.close()
        turn.close()
        parts.transport.turn = parts.transport.log = None
        result = classify(facts)
        if run.returned and result.outcome in _UNDONE and not turn.meter.tool_calls():
            self._forget(history)
        return result

    def _forget(self, history: list[dict[str, Any]]) -> None:
        """Takes back what a turn that did nothing wrote into the conversation.

        Its caller will ask again: the question would stand there twice, with agentao's word for the failure between,
        and a session whose budget is spent would grow with every try. A compacted history is left as it is.
        """
        messages = self._parts.agent.messages
        if len(messages) >= len(history) and all(now is then for now, then in zip(messages, history, strict=False)):
            del messages[len(history) :]

    def _facts(self, turn: Turn, run: TurnRun) -> TurnFacts:
        facts = turn.facts()
        outcome = self._parts.agent.last_turn if run.returned and run.crash is None else None
        left = self._parts.guard.left_behind()
        if not run.returned:
            self._abandoned = run.thread
        if left:
            self._report_left(turn, left)
        if run.crash is not None and facts.stop is None:
            _log.error("Turn %s failed", turn.labels.turn_id, exc_info=run.crash)
        return dataclasses.replace(
            facts,
            status=outcome.status if outcome is not None else None,
            incomplete_reason=outcome.incomplete_reason if outcome is not None else None,
            text=run.text,
            abandoned=not run.returned or (bool(left) and facts.stop is not None),
            crash=_crash(run.crash) if run.crash is not None else None,
        )

    def _report_left(self, turn: Turn, left: tuple[threading.Thread, ...]) -> None:
        names = ", ".join(thread.name for thread in left)
        text = f"Still running after being cancelled: {names}. The session is quarantined until it returns."
        turn.warn(Reason(text))
        for thread in left:
            _log.error(
                "A tool of turn %s of session %s ignores its cancellation. Its stack:\n%s",
                turn.labels.turn_id,
                turn.labels.key,
                stack_of(thread),
            )

    def _has_servers(self) -> bool:
        return self._parts.agent.mcp_manager is not None or self._parts.servers.started_late

    def _kill_children(self) -> None:
        parts = self._parts
        if self._has_servers() or parts.shell.used:
            parts.tree.kill(within_s=0.5)

    def _labels(self, request: TurnRequest) -> TurnLabels:
        spec = self._spec
        return TurnLabels(
            spec.key, request.user, spec.profile.profile.name, spec.mode, request.turn_id, spec.model.name
        )

    def _on_host_event(self, event: Any) -> None:
        turn = self.current
        if turn is not None and event.event_type == "permission_decision":
            log = self._parts.transport.log
            if log is not None and event.outcome != "allow" and event.reason:
                log.decided(event.tool_call_id, event.reason)
            decision = PermissionEnd(event.tool_name, event.outcome, event.mode)
            self._observers.tell(lambda observer: observer.permission(turn.labels, decision))


def _crash(error: BaseException) -> Reason:
    return Reason("Something failed in the turn itself.", f"{type(error).__name__}: {error}")


def _close_agent(parts: AgentParts) -> None:
    try:
        parts.servers.close()
        parts.agent.close()
    except Exception:
        _log.exception("Closing an agent failed")
