"""The seam between the pool and the places a session's agent can live: fresh, in-process, subprocess."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from agentao_gov.clock import Deadline
from agentao_gov.governor.report import TurnReport
from agentao_gov.governor.types import Conversation, EventSink, SessionSpec, TurnRequest

if TYPE_CHECKING:
    from agentao_gov.governor import Governor


class SessionHost(Protocol):
    """One session's agent, wherever it lives.

    `turn` and `close` block and are called on threads of the pool's own, never on an event loop.
    One turn at a time; `cancel` and `kill` may be called from any thread at any time, and are idempotent.
    """

    def turn(self, request: TurnRequest, on_event: EventSink) -> TurnReport:
        """Runs one turn. Returns within its deadline plus `cancel_grace`, and never raises for what a turn can meet."""
        ...

    def cancel(self, reason: str) -> None:
        """Cancels the turn in flight, if any. `reason`: `cancelled`, `client_gone`, `shutdown`."""
        ...

    def snapshot(self) -> Conversation:
        """What has to be kept to go on later. Only between turns."""
        ...

    def rest(self) -> bool:
        """Nobody has asked for a while: gives up what memory it can until the next turn. Any thread, any time.

        False: there was none worth it.
        """
        ...

    def close(self, deadline: Deadline) -> None:
        """Ends agent, MCP servers and shells in order. May take seconds; returns by the deadline."""
        ...

    def kill(self) -> None:
        """Ends the session's processes by force, at once."""
        ...

    @property
    def stuck(self) -> bool:
        """Whether a turn was abandoned: its thread or process never came back, and the session must not be reused."""
        ...

    def process_ids(self) -> tuple[int, ...]:
        """Roots of the process trees this session owns, for accounting."""
        ...


class HostFactory(Protocol):
    """Opens sessions of one mode."""

    def open(self, spec: SessionSpec, conversation: Conversation | None, deadline: Deadline) -> SessionHost:
        """Builds the agent, starting from the conversation if there is one. Blocks; raises GovError when it fails."""
        ...

    def shutdown(self, deadline: Deadline) -> None:
        """Ends what the sessions of this mode share."""
        ...


class GovernorHosts:
    """The `HostFactory` of the modes `fresh` and `in-process`, over one governor.

    Fresh sessions differ in how long the pool keeps them, no more.
    """

    def __init__(self, governor: Governor) -> None:
        self._governor = governor

    def open(self, spec: SessionSpec, conversation: Conversation | None, deadline: Deadline) -> SessionHost:
        """Builds the agent in this process."""
        return self._governor.open(spec, conversation, deadline)

    def shutdown(self, deadline: Deadline) -> None:
        """Closes what the governor shares among its sessions."""
        del deadline  # closing sockets does not wait
        self._governor.close()
