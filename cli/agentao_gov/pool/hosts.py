"""Sessions in this process, for the modes `fresh` and `in-process`: the governor opens them, the pool does the rest."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from agentao_gov.clock import Deadline
    from agentao_gov.governor import Governor
    from agentao_gov.governor.types import Conversation, SessionSpec
    from agentao_gov.pool.host import SessionHost

__all__ = ["GovernorHosts"]


class GovernorHosts:
    """A `HostFactory` over one governor. Fresh sessions differ in how long the pool keeps them, no more."""

    def __init__(self, governor: Governor) -> None:
        self._governor = governor

    def open(self, spec: SessionSpec, conversation: Conversation | None, deadline: Deadline) -> SessionHost:
        """Builds the agent in this process."""
        return self._governor.open(spec, conversation, deadline)

    def shutdown(self, deadline: Deadline) -> None:
        """Closes what the governor shares among its sessions."""
        del deadline  # closing sockets does not wait
        self._governor.close()
