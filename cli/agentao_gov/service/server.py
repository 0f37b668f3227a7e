"""Runs the application on uvicorn under the shutdown ladder: the listener stays open until the pool is gone."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import resource
import signal
import socket
from collections.abc import Callable, Iterator

import h11
import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from agentao_gov.errors import BadRequestError, ConfigError, OverloadedError
from agentao_gov.monitor.logs import RefusalLog, log_event
from agentao_gov.pool.limits import rung_times
from agentao_gov.service.connections import Acceptor, connections_allowed
from agentao_gov.service.errors import failure_of_error
from agentao_gov.service.gateway import Gateway
from agentao_gov.service.request_limits import HEADER_BYTES_MAX, request_id
from agentao_gov.service.shutdown import ShutdownWalk

#: Open connections that speak no request: a browser's spare ones, clients' pools.
BACKLOG = 2048
#: Why a service with several workers is not ready yet.
_STARTING = "other workers are starting"
#: After the pool is gone answers in flight get this long to reach their clients.
_ANSWERS_S = 2


_HINTS = {
    errno.EADDRINUSE: "Is another one running? `--port 0` takes a free port.",
    errno.EADDRNOTAVAIL: "No interface of this machine has that address; 0.0.0.0 stands for all of them.",
    errno.EACCES: "Ports below 1024 are for root; choose another one.",
}


class BoundedHeadProtocol(H11Protocol):
    """HTTP/1.1 with limits on both ends' time: for a request's head to come, and for an answer to be read.

    uvicorn's own limit is for connections between requests and ends with the first byte. A trickle of header bytes must
    not hold a connection, nor a client that reads a byte a second.
    """

    #: Called once, when the connection has ended: the `Acceptor`'s.
    lost: Callable[[], None] = staticmethod(lambda: None)

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
        self.lost()

    def pause_writing(self) -> None:
        """The client has to read before more is sent. Aborted and not closed: a close would wait for it too."""
        super().pause_writing()
        self._is_read()
        self._await_reader()

    def resume_writing(self) -> None:
        """The client has read."""
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
        headers = [
            ("Content-Type", "application/json"),
            ("Content-Length", str(len(body))),
            ("Connection", "close"),
            ("x-request-id", request_id(None)),
        ]
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


def bind(host: str, port: int) -> socket.socket:
    """A listening socket; port 0 takes a free one. Raises ConfigError where it cannot be had."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # With the protocol named: asyncio sets TCP_NODELAY only where accepted sockets carry it, and without that each
    # answer's body waits 40 ms for the client's delayed acknowledgement of its head.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host.strip("[]"), port))
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        raise ConfigError(
            f"The service cannot listen on {host}:{port}: {error.strerror or error}.", hint=_HINTS.get(error.errno or 0)
        ) from None
    listener.setblocking(False)
    return listener


def raise_descriptor_limit() -> None:
    """Takes all descriptors the system grants: a busy turn needs three, and the soft limit is often 1,024."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def ending_signals() -> tuple[signal.Signals, ...]:
    """What ends the service in order; not SIGHUP where it is ignored, as below `nohup`."""
    deaf = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    return (signal.SIGTERM, signal.SIGINT) if deaf else (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class GovServer(uvicorn.Server):
    """uvicorn with the ladder in place of its own signal handling."""

    def __init__(self, app: ASGIApp, gateway: Gateway) -> None:
        config = uvicorn.Config(
            app,
            # h11 bounds the header's size; its cost is lost beside a turn's.
            http=BoundedHeadProtocol,
            h11_max_incomplete_event_size=HEADER_BYTES_MAX,
            ws="none",
            lifespan="off",
            access_log=False,
            log_config=None,
            server_header=False,
            proxy_headers=False,
            timeout_graceful_shutdown=_ANSWERS_S,
            timeout_keep_alive=30,
        )
        super().__init__(config)
        self._gateway = gateway
        self.exit_code = 0

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begins to accept on `sockets`."""
        await super().startup(sockets=[])

        def make() -> BoundedHeadProtocol:
            return BoundedHeadProtocol(self.config, self.server_state, self.lifespan.state)

        refusals = RefusalLog()

        def refused(error: OverloadedError) -> None:
            self._gateway.metrics.rejected(error.code)
            refusals.tell(error)

        allowed = connections_allowed(self._gateway.deployment.server.max_connections)
        # What uvicorn asks of a server is to close.
        self.servers = [Acceptor(sockets or [], make, allowed, refused)]  # type: ignore[list-item]

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Begins the way down at the first SIGTERM, SIGINT or SIGHUP; each further one steps it.

        A terminal that closes sends SIGHUP: turns in flight must not be lost by it. `nohup` keeps the service running.
        """
        loop = asyncio.get_running_loop()
        shutdown = ShutdownWalk(self._gateway, rung_times(self._gateway.deployment))
        for signum in ending_signals():
            loop.add_signal_handler(signum, shutdown.signalled, signum)
        tasks = [
            loop.create_task(self._shut_down(shutdown), name="shutdown ladder"),
            loop.create_task(self._meet_peers(), name="other workers"),
        ]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            self.exit_code = shutdown.exit_code

    async def _meet_peers(self) -> None:
        """Not ready before all workers are: what one of them tells of the whole would lack the others.

        Once only: a worker that dies later is started again, and the others serve meanwhile.
        """
        if self._gateway.peers.workers > 1:
            self._gateway.unready.add(_STARTING)
            await self._gateway.peers.await_all()
            self._gateway.unready.discard(_STARTING)

    async def _shut_down(self, shutdown: ShutdownWalk) -> None:
        try:
            await shutdown.walk()
        finally:
            self.should_exit = True


def serve(app: ASGIApp, gateway: Gateway, listener: socket.socket, *more: socket.socket) -> int:
    """Serves until the ladder is walked; returns the exit code. Blocks; call on the main thread.

    `more`: further listening sockets of the same application, for the other workers.
    """
    raise_descriptor_limit()
    server = GovServer(app, gateway)
    host, port = listener.getsockname()[:2]
    log_event("listening", address=f"http://{f'[{host}]' if ':' in host else host}:{port}", worker=gateway.worker)
    server.run(sockets=[listener, *more])
    logging.getLogger(__name__).debug("server ended")
    return server.exit_code
