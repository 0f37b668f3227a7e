"""HTTP/1.1 with limits on both ends' time: for a request's head to come, and for an answer to be read.

A trickle of header bytes must not hold a connection, nor a client that reads a byte a second.
"""

from __future__ import annotations

import asyncio

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from agentao_gov.errors import BadRequestError
from agentao_gov.service.errors import failure_of_error

__all__ = ["BoundedHeadProtocol"]


class BoundedHeadProtocol(H11Protocol):
    """uvicorn's protocol, whose own time limit is for connections between requests and ends with the first byte."""

    #: From the connection, or the first byte of a further request, to the end of the head. As long as a body gets.
    head_s_max = 30.0

    #: How long a client with a full send buffer has to take `write_bytes_min` of it. Slower than 1.6 KB/s is not
    #: reading; a large answer over a slow line is.
    write_s_max = 30.0
    write_bytes_min = 48 * 1024

    _late: asyncio.TimerHandle | None = None
    _unread: asyncio.TimerHandle | None = None

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
        self._is_read()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        """The client has to read before more is sent. Aborted and not closed: a close would wait for it too."""
        super().pause_writing()
        self._is_read()
        self._await_reader()

    def resume_writing(self) -> None:
        """It did."""
        self._is_read()
        super().resume_writing()

    def send_400_response(self, msg: str) -> None:
        """What is no HTTP is refused as everything else is: in JSON. Once an answer was begun there is no other."""
        if self.cycle is not None and not self.cycle.response_complete:
            # A body that broke off: what its request answers would come after this, and h11 would raise.
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        if self.conn.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            self.transport.close()
            return
        body = failure_of_error(BadRequestError(msg)).response().body
        headers = [("Content-Type", "application/json"), ("Content-Length", str(len(body))), ("Connection", "close")]
        response = h11.Response(status_code=400, headers=headers, reason=b"Bad Request")
        for event in (response, h11.Data(data=bytes(body)), h11.EndOfMessage()):
            self.transport.write(self.conn.send(event) or b"")
        self.transport.close()

    def _await_head(self) -> None:
        if self.conn.their_state is not h11.IDLE or self.transport.is_closing():
            self._stop_waiting()
        elif self._late is None:
            self._late = self.loop.call_later(self.head_s_max, self.transport.close)

    def _await_reader(self) -> None:
        self._unread = self.loop.call_later(self.write_s_max, self._look, self.transport.get_write_buffer_size())

    def _look(self, before: int) -> None:
        if before - self.transport.get_write_buffer_size() < self.write_bytes_min:
            self.transport.abort()
        else:
            self._await_reader()

    def _is_read(self) -> None:
        if self._unread is not None:
            self._unread.cancel()
            self._unread = None

    def _stop_waiting(self) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None
