"""A small HTTP/1.1 server protocol on httptools: a framework's cost per request would be the simulator's limit."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from http import HTTPStatus

import httptools

BODY_BYTES_MAX = 32 * 1024 * 1024

Handler = Callable[["Exchange"], None]


class Exchange:
    """One request and its answer. Used on the server's loop alone."""

    __slots__ = ("_chunked", "_protocol", "_started", "body", "ended", "headers", "method", "on_gone", "target")

    def __init__(self, protocol: HttpProtocol) -> None:
        self._protocol = protocol
        self._chunked = False
        self._started = False
        self.method = ""
        self.target = ""
        self.headers: dict[str, str] = {}
        self.body = b""
        self.ended = False
        #: Called when the client goes away before the answer has ended.
        self.on_gone: Callable[[], None] | None = None

    def start(
        self,
        status: int,
        content_type: str,
        *,
        length: int | None,
        headers: tuple[tuple[str, str], ...] = (),
    ) -> bytes:
        """The head, for writing together with the first data. `length` None: chunked."""
        self._started = True
        self._chunked = length is None
        lines = [f"HTTP/1.1 {status} {_phrase(status)}", f"content-type: {content_type}"]
        lines.append("transfer-encoding: chunked" if length is None else f"content-length: {length}")
        lines.extend(f"{name}: {value}" for name, value in headers)
        return ("\r\n".join(lines) + "\r\n\r\n").encode()

    def frame(self, data: bytes) -> bytes:
        """Data as it goes on the wire after `start`."""
        return b"%x\r\n%s\r\n" % (len(data), data) if self._chunked and data else data

    def send(self, data: bytes) -> None:
        """Writes bytes that are already framed."""
        self._protocol.transport.write(data)

    def finish(self, data: bytes = b"") -> None:
        """Writes framed bytes and ends the answer."""
        self.ended = True
        self._protocol.transport.write(data + b"0\r\n\r\n" if self._chunked else data)
        self._protocol.next_exchange()

    def reply(self, status: int, body: bytes, content_type: str = "application/json") -> None:
        """A whole answer."""
        self.finish(self.start(status, content_type, length=len(body)) + body)

    def drop(self) -> None:
        """Resets the connection."""
        self.ended = True
        self._protocol.transport.abort()


def _phrase(status: int) -> str:
    """The status in words; Cloudflare's and Anthropic's own (520, 529) are in no list."""
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "Unknown"


class HttpProtocol(asyncio.Protocol):
    """Parses requests of one connection and hands them on one at a time."""

    transport: asyncio.Transport

    def __init__(self, handler: Handler) -> None:
        self._handler = handler
        self._parser = httptools.HttpRequestParser(self)
        self._parts: list[bytes] = []
        self._bytes = 0
        self._exchange = Exchange(self)
        #: The request being answered; None when the connection is idle.
        self._current: Exchange | None = None
        #: Pipelined requests that came while one was being answered.
        self._waiting: deque[Exchange] = deque()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self.transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio's signature
        current, self._current = self._current, None
        self._waiting.clear()
        if current is not None and not current.ended:
            current.ended = True
            if current.on_gone is not None:
                current.on_gone()

    def on_message_begin(self) -> None:
        self._exchange = Exchange(self)
        self._parts, self._bytes = [], 0

    def on_url(self, url: bytes) -> None:
        self._exchange.target += url.decode("latin-1")

    def on_header(self, name: bytes, value: bytes) -> None:
        self._exchange.headers[name.decode("latin-1").lower()] = value.decode("latin-1")
        if name.lower() == b"expect":
            self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def on_body(self, body: bytes) -> None:
        self._bytes += len(body)
        if self._bytes > BODY_BYTES_MAX:
            self.transport.abort()
            return
        self._parts.append(body)

    def on_message_complete(self) -> None:
        exchange = self._exchange
        exchange.method = self._parser.get_method().decode("latin-1")
        exchange.body = b"".join(self._parts)
        if self._current is None:
            self._begin(exchange)
        else:
            self._waiting.append(exchange)

    def next_exchange(self) -> None:
        """The current answer has ended; go on with what waits."""
        self._current = None
        if self._waiting and not self.transport.is_closing():
            self._begin(self._waiting.popleft())

    def _begin(self, exchange: Exchange) -> None:
        self._current = exchange
        self._handler(exchange)
