"""The governor's end of agentao's transport: events in, answers to its questions out."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

from agentao.cancellation import current_turn
from agentao.transport import AgentEvent, EventType
from agentao.transport.broadcast import EventBroadcaster

from agentao_gov.governor.tools import ToolLog
from agentao_gov.governor.turn import Turn
from agentao_gov.governor.types import TextEvent

#: Asks a person whether a tool may run: name, description, arguments.
ConfirmTool = Callable[[str, str, dict[str, Any]], bool]
#: Asks a person a question of the model's.
AskUser = Callable[[str], str]

_WRAP_UP = (
    "You have used all {count} model calls of this turn, and no tools are left. "
    "Give your best answer to my request now, from what you have found so far; say briefly what is still open."
)
_NOBODY = "[nobody can be asked: this session has no person at a terminal; decide with what you know]"


class GovernedTransport:
    """agentao's `CoreTransport`. One per session; the turn in flight is set by the session."""

    def __init__(self, *, wrap_up: bool, confirm: ConfirmTool | None = None, ask: AskUser | None = None) -> None:
        self._wrap_up = wrap_up
        self._confirm = confirm
        self._ask = ask
        self._broadcast = EventBroadcaster()
        # Set by the session before a turn and cleared after it, on the thread that runs the turn.
        self.turn: Turn | None = None
        self.log: ToolLog | None = None
        #: The session's agent: sub-agents forward their events here, and only the main loop's rounds count.
        self.agent: Any = None

    def emit(self, event: AgentEvent) -> None:
        """An event of the runtime, on the thread it happens on."""
        turn, log = self.turn, self.log
        if turn is not None and log is not None:
            self._govern(event, turn, log)
        self._broadcast.notify(event)

    def subscribe(self, listener: Callable[[AgentEvent], None]) -> Callable[[], None]:
        """Lets another listener see the raw events."""
        forget: Callable[[], None] = self._broadcast.subscribe(listener)
        return forget

    def _govern(self, event: AgentEvent, turn: Turn, log: ToolLog) -> None:
        data = event.data
        match event.type:
            case EventType.LLM_TEXT:
                turn.emit(TextEvent(str(data.get("chunk", ""))))
            case EventType.TURN_START if not data.get("display_reset") and self._is_main():
                turn.begin_round()
            case EventType.TOOL_START:
                # A sub-agent's calls come labelled "[name 1/15] tool".
                log.started(str(data.get("call_id")), str(data.get("tool", "")).rsplit("] ", 1)[-1])
            case EventType.TOOL_COMPLETE:
                log.ended(str(data.get("call_id")), str(data.get("status")))

    def _is_main(self) -> bool:
        current = current_turn()
        return current is None or current[0] is self.agent

    def confirm_tool(self, tool_name: str, description: str, args: dict[str, Any]) -> bool:
        """No, unless there is a person to ask. agentao's own transports say yes."""
        confirm = self._confirm
        return confirm is not None and bool(self._person(lambda: confirm(tool_name, description, args), False))

    def ask_user(self, question: str, **_hints: Any) -> str:
        """A person's answer, or the word that there is none."""
        ask = self._ask
        return _NOBODY if ask is None else str(self._person(lambda: ask(question), _NOBODY))

    def _person(self, question: Callable[[], Any], otherwise: Any) -> Any:
        """Waits for a person, but not beyond the turn: a prompt at a terminal cannot be interrupted, so it is left."""
        turn = self.turn
        if turn is None:
            return otherwise
        answers: list[Any] = []
        answered = threading.Event()

        def body() -> None:
            try:
                answers.append(question())
            finally:
                answered.set()

        forget = turn.token.add_done_callback(answered.set)
        try:
            threading.Thread(target=body, name="ask-person", daemon=True).start()
            answered.wait()
        finally:
            forget()
        return answers[0] if answers and not turn.stopped else otherwise

    def on_max_iterations(self, count: int, messages: Sequence[Any]) -> dict[str, Any]:  # noqa: ARG002
        """The cap is reached: end here, or ask once more without tools. Never grants another round."""
        turn = self.turn
        if turn is None or turn.wrapping_up:
            return {"action": "stop"}
        turn.reach_cap()
        if not self._wrap_up or turn.stopped:
            return {"action": "stop"}
        return {"action": "new_instruction", "message": _WRAP_UP.format(count=count)}
