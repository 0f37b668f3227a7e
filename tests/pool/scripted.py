"""A hosting mode whose sessions do what the message says: for what the pool does around a turn.

The contract suite holds it to the same promises as the real modes (`test_hosting_modes.py`).
"""

from __future__ import annotations

import threading
from collections import Counter, defaultdict
from datetime import UTC, datetime

from agentao_gov.clock import Deadline
from agentao_gov.endings import Outcome
from agentao_gov.errors import ModelError
from agentao_gov.governor.report import Timing, TurnReport, Usage
from agentao_gov.governor.types import Conversation, EventSink, SessionKey, SessionSpec, TextEvent, TurnRequest

#: No test waits longer: what is not there by then hangs.
HANG_S = 10.0


class ScriptedHosts:
    """Opens scripted sessions and counts what happens to them. `gates` hold turns, openings and closes back."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        #: Sessions with an agent; never two for one key.
        self.alive: set[SessionKey] = set()
        self.twice: list[SessionKey] = []
        self.opened: Counter[SessionKey] = Counter()
        self.closed: Counter[SessionKey] = Counter()
        self.killed: Counter[SessionKey] = Counter()
        self.rested: Counter[SessionKey] = Counter()
        self.specs: list[SessionSpec] = []
        #: Turns at once now, and the most there ever were, over all sessions and by session.
        self.running: Counter[SessionKey] = Counter()
        self.running_max = 0
        #: Named events: a turn `hold X` waits for `gates["X"]`; `open KEY` and `close KEY` hold those back.
        self.gates: dict[str, threading.Event] = defaultdict(threading.Event)
        self.held: set[str] = set()
        self.reached: dict[str, threading.Event] = defaultdict(threading.Event)
        self.open_error: BaseException | None = None
        self.close_error: BaseException | None = None
        self.shut_down = False
        #: How long each session's latest opening may take.
        self.open_s: dict[SessionKey, float] = {}
        #: Whether sessions have memory to give up when they rest.
        self.heavy = True
        #: Characters that the last `pour N` has told.
        self.poured = 0

    def open(self, spec: SessionSpec, conversation: Conversation | None, deadline: Deadline) -> ScriptedSession:
        self.open_s[spec.key] = deadline.remaining_s()
        self.pass_gate(f"open {spec.key.session}")
        if self.open_error is not None:
            raise self.open_error
        with self.lock:
            if spec.key in self.alive:
                self.twice.append(spec.key)
            self.alive.add(spec.key)
            self.opened[spec.key] += 1
            self.specs.append(spec)
        return ScriptedSession(self, spec, conversation)

    def shutdown(self, deadline: Deadline) -> None:
        self.shut_down = True

    def hold(self, *names: str) -> None:
        """Turns, openings or closes of these names stop until `release`."""
        self.held.update(names)

    def release(self, *names: str) -> None:
        for name in names:
            self.held.discard(name)
            self.gates[name].set()

    def pass_gate(self, name: str) -> None:
        self.reached[name].set()
        if name in self.held:
            assert self.gates[name].wait(HANG_S)

    def arrive(self, name: str) -> None:
        """Waits until a turn, an opening or a close has reached its gate."""
        assert self.reached[name].wait(HANG_S), name


class ScriptedSession:
    """One session: `remember X`, `recall`, `hold X`, `ignore X` (a cancel is not heard), `crash`, `raise`, `stick`."""

    def __init__(self, hosts: ScriptedHosts, spec: SessionSpec, conversation: Conversation | None) -> None:
        self.hosts = hosts
        self.spec = spec
        self.messages = [dict(message) for message in conversation.messages] if conversation is not None else []
        self.cancelled = threading.Event()
        self.reason: str | None = None
        self.is_stuck = False

    def turn(self, request: TurnRequest, on_event: EventSink) -> TurnReport:
        hosts, key = self.hosts, self.spec.key
        with hosts.lock:
            hosts.running[key] += 1
            assert hosts.running[key] == 1
            hosts.running_max = max(hosts.running_max, hosts.running.total())
        self.cancelled.clear()
        self.reason = None
        try:
            return self.act(request, on_event)
        finally:
            with hosts.lock:
                hosts.running[key] -= 1

    def act(self, request: TurnRequest, on_event: EventSink) -> TurnReport:
        verb, _, name = request.message.partition(" ")
        if verb == "hold":
            self.hosts.reached[name].set()
            if not self.wait_for(self.hosts.gates[name]):
                return self.report(request, Outcome.SHUTDOWN if self.reason == "shutdown" else Outcome.CANCELLED, None)
        elif verb == "ignore":
            self.hosts.reached[name].set()
            assert self.hosts.gates[name].wait(HANG_S)
        elif verb == "pour":
            return self.pour(request, on_event, int(name))
        elif verb == "crash":
            return self.report(request, Outcome.INTERNAL_ERROR, None)
        elif verb == "raise":
            raise ModelError("the scripted host raises")
        elif verb == "stick":
            self.is_stuck = True
            return self.report(request, Outcome.STUCK, None)
        recalled = " ".join(str(message["content"]) for message in self.messages)
        self.messages.append({"role": "user", "content": request.message})
        on_event(TextEvent(recalled))
        return self.report(request, Outcome.ANSWERED, recalled)

    def pour(self, request: TurnRequest, on_event: EventSink, size: int) -> TurnReport:
        """As much text as is asked for, or until it is cancelled."""
        for n in range(0, size, 10_000):
            on_event(TextEvent("x" * 10_000))
            self.hosts.poured = n
            if self.cancelled.wait(0.0005):
                return self.report(request, Outcome.CANCELLED, None)
        return self.report(request, Outcome.ANSWERED, "poured")

    def wait_for(self, gate: threading.Event) -> bool:
        deadline = Deadline.after(HANG_S)
        while not gate.wait(0.005):
            if self.cancelled.is_set():
                return False
            assert not deadline.passed
        return True

    def cancel(self, reason: str) -> None:
        self.reason = self.reason or reason
        self.cancelled.set()

    def snapshot(self) -> Conversation:
        return Conversation(messages=[dict(message) for message in self.messages])

    def rest(self) -> bool:
        self.hosts.rested[self.spec.key] += 1
        return self.hosts.heavy

    def close(self, deadline: Deadline) -> None:
        self.hosts.pass_gate(f"close {self.spec.key.session}")
        with self.hosts.lock:
            self.hosts.alive.discard(self.spec.key)
            self.hosts.closed[self.spec.key] += 1
        if self.hosts.close_error is not None:
            raise self.hosts.close_error

    def kill(self) -> None:
        with self.hosts.lock:
            self.hosts.killed[self.spec.key] += 1
        self.hosts.reached[f"kill {self.spec.key.session}"].set()

    @property
    def stuck(self) -> bool:
        return self.is_stuck

    def process_ids(self) -> tuple[int, ...]:
        return ()

    def report(self, request: TurnRequest, outcome: Outcome, answer: str | None) -> TurnReport:
        key = self.spec.key
        return TurnReport(
            turn_id=request.turn_id,
            id=request.id,
            tenant=key.tenant,
            user=request.user,
            session=key.session,
            profile=self.spec.profile.profile.name,
            mode=self.spec.mode,
            model=self.spec.model.name,
            outcome=outcome,
            answer=answer,
            exit_code=outcome.exit_code,
            started_at=datetime.now(UTC),
            timing_ms=Timing(queued=request.queued_ms),
            usage=Usage(prompt_tokens=10, completion_tokens=5, total_tokens=15, llm_calls=1),
        )
