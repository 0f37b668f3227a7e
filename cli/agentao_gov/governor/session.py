"""One governed session: an agent, one turn at a time, each under its limits and each ending with one report."""

from __future__ import annotations

import dataclasses
import logging
import threading
from collections.abc import Callable
from typing import Any

from agentao_gov.budget.types import Ledger, ScopeLimit
from agentao_gov.clock import Clock, Deadline
from agentao_gov.errors import GovError, InternalError
from agentao_gov.governor.build import AgentParts
from agentao_gov.governor.classify import StopCause, TurnFacts, Verdict, classify
from agentao_gov.governor.observe import Observers, PermissionEnd, TurnLabels
from agentao_gov.governor.outcome import Outcome
from agentao_gov.governor.reason import Reason
from agentao_gov.governor.report import TurnReport
from agentao_gov.governor.reporting import limit_lines, write_report
from agentao_gov.governor.requests import Conversation, EventSink, SessionSpec, TurnRequest
from agentao_gov.governor.resting import RestingTalk
from agentao_gov.governor.runner import TurnRun, run_turn, stack_of
from agentao_gov.governor.toollog import ToolLog
from agentao_gov.governor.turn import CallLimits, Turn
from agentao_gov.process import procfs

__all__ = ["GovernedSession"]

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


class GovernedSession:
    """Satisfies `SessionHost` in this process. `cancel`, `kill` and the properties are safe from any thread."""

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
        self._talk = RestingTalk(parts)
        #: The turn in flight; written under `_one_turn`, read by the model client, the guard and cancellers.
        self.current: Turn | None = None
        self._closed = False
        # The thread of a turn that was left behind: while it runs, the agent is in unknown hands.
        self._abandoned: threading.Thread | None = None
        parts.agent.add_host_event_observer(self._on_host_event)

    # ── SessionHost ───────────────────────────────────────────────────────────────────────────────

    def turn(self, request: TurnRequest, on_event: EventSink) -> TurnReport:
        """Runs one turn; see SessionHost. Raises InternalError for a second turn beside the first, or after close."""
        if not self._one_turn.acquire(blocking=False):
            raise InternalError(f"Session {self._spec.key} already runs a turn.")
        try:
            if self._closed:
                raise InternalError(f"Session {self._spec.key} is closed.")
            self._talk.wake()
            return self._turn(request, on_event)
        finally:
            self.current = None
            self._one_turn.release()

    def cancel(self, reason: str) -> None:
        """Cancels the turn in flight, if any."""
        turn = self.current
        if turn is not None:
            cause = _CAUSES.get(reason, StopCause.CANCELLED)
            turn.stop(cause, _CAUSE_TEXTS[cause])

    def snapshot(self) -> Conversation:
        """What has to be kept to go on later."""
        agent = self._parts.agent
        messages = self._talk.messages()
        return Conversation(
            messages=messages,
            todos=[dict(todo) for todo in agent.todo_tool.get_todos()],
            active_skills=tuple(agent.skill_manager.get_active_skills()),
            anchor=self._talk.anchor(messages),
        )

    def rest(self) -> bool:
        """Gives up what memory it can until the next turn; False: there was none worth it."""
        return not self.stuck and self._talk.rest(busy=self._one_turn.locked)

    def close(self, deadline: Deadline) -> None:
        """Ends agent, MCP servers and shells in order; by force what is left at the deadline."""
        self._closed = True
        self.cancel("shutdown")
        agent = self._parts.agent
        has_children = agent.mcp_manager is not None
        if has_children:
            # An MCP server that ignores end-of-input takes agentao 4 s and more.
            closer = threading.Thread(target=_close_agent, args=(agent,), name="close-agent", daemon=True)
            closer.start()
            closer.join(min(deadline.remaining_s(), threading.TIMEOUT_MAX))
        else:
            _close_agent(agent)
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
        if self._parts.agent.mcp_manager is None and not self._parts.shell.used:
            return ()
        members = {ref.pid for ref in self._parts.tree.members()}
        stats = procfs.stats(sorted(members))
        return tuple(sorted(stat.ref.pid for stat in stats if stat.ppid not in members))

    # ── one turn ──────────────────────────────────────────────────────────────────────────────────

    def _turn(self, request: TurnRequest, on_event: EventSink) -> TurnReport:
        limits = self._spec.profile.profile.limits
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
            verdict = Verdict(Outcome.INTERNAL_ERROR, detail=unknown)
        elif self.stuck:
            verdict = Verdict(Outcome.STUCK, detail=Reason("An earlier turn of this session never came back."))
        else:
            verdict = self._run(turn, request, limits)
        report = write_report(
            turn,
            self._spec,
            request,
            verdict,
            started_at=started_at,
            limits=self._limits,
            warnings=(*map(Reason, self._spec.profile.adjustments), *self._parts.warnings),
        )
        self._observers.tell(lambda observer: observer.turn_ended(turn.labels, report))
        return report

    def _run(self, turn: Turn, request: TurnRequest, limits: Any) -> Verdict:
        parts = self._parts
        log = ToolLog(turn)
        parts.transport.turn, parts.transport.log = turn, log
        self.current = turn
        if self._closed:
            # Closed between the lease and here: the canceller found no turn to cancel.
            self.cancel("shutdown")

        history = list(parts.agent.messages)

        def chat() -> str:
            answer: str = parts.agent.chat(request.message, limits.max_iterations, turn.token)
            return answer

        run = run_turn(turn, chat, grace_s=limits.cancel_grace_s, kill=self._kill_children)
        if run.returned:
            parts.shell.sweep()
        facts = self._facts(turn, run)
        log.close()
        turn.close()
        parts.transport.turn = parts.transport.log = None
        verdict = classify(facts)
        if run.returned and verdict.outcome in _UNDONE and not turn.meter.tool_calls():
            self._forget(history)
        return verdict

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

    def _kill_children(self) -> None:
        parts = self._parts
        if parts.agent.mcp_manager is not None or parts.shell.used:
            parts.tree.kill(within_s=0.5)

    def _labels(self, request: TurnRequest) -> TurnLabels:
        spec = self._spec
        return TurnLabels(
            spec.key, request.user, spec.profile.profile.name, spec.mode, request.turn_id, spec.model.name
        )

    def _on_host_event(self, event: Any) -> None:
        turn = self.current
        if turn is not None and event.event_type == "permission_decision":
            decision = PermissionEnd(event.tool_name, event.outcome, event.mode)
            self._observers.tell(lambda observer: observer.permission(turn.labels, decision))


def _crash(error: BaseException) -> Reason:
    return Reason("Something failed in the turn itself.", f"{type(error).__name__}: {error}")


def _close_agent(agent: Any) -> None:
    try:
        agent.close()
    except Exception:
        _log.exception("Closing an agent failed")
