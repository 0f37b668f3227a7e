"""HTTP/1.1 with a limit on how long a request's head may take: a trickle of header bytes must not hold a connection."""

from __future__ import annotations

import asyncio

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

__all__ = ["BoundedHeadProtocol"]


class BoundedHeadProtocol(H11Protocol):
    """uvicorn's protocol, whose own time limit is for connections between requests and ends with the first byte."""

    #: From the connection, or the first byte of a further request, to the end of the head. As long as a body gets.
    head_s_max = 30.0

    _late: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begins to wait for a head."""
        super().connection_made(transport)
        self._await_head()

    def data_received(self, data: bytes) -> None:
        """Goes on waiting while the head is not whole. More bytes do not buy more time."""
        super().data_received(data)
        self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """Ends the waiting."""
        self._stop_waiting()
        super().connection_lost(exc)

    def _await_head(self) -> None:
        if self.conn.their_state is not h11.IDLE or self.transport.is_closing():
            self._stop_waiting()
        elif self._late is None:
            self._late = self.loop.call_later(self.head_s_max, self.transport.close)

    def _stop_waiting(self) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None
