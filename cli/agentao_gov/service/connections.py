"""Accepts connections: no more than descriptors allow, and of one address no more than its share of them.

asyncio's own server accepts until the process has no descriptors left, which model calls and files then lack, and tells
each failure with a traceback: 126,000 of them in 25 s.
"""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import logging
import resource
import socket
from collections.abc import Callable, Sequence
from functools import partial
from typing import Protocol

from agentao_gov.clock import Allowance
from agentao_gov.errors import OverloadedError
from agentao_gov.monitor.logs import log_event
from agentao_gov.service.errors import failure_of_error
from agentao_gov.service.request_limits import FairShares, request_id

#: Part of the descriptors that connections may take; the rest is for model calls, children, files and the ledger.
DESCRIPTORS_SHARE = 0.5
#: Connections of one address that are accepted however many the others have, as long as there are descriptors.
GUARANTEED_CONNECTIONS = 8
#: Connections accepted in one go: then the event loop does what else there is to do.
ACCEPTS_MAX = 64
#: Until the next try where the process or the system has no descriptor left.
RETRY_S = 0.1
#: What accept() fails with when something has run out.
_RAN_OUT = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}


def connections_allowed(connections_max: int) -> int:
    """How many connections this process may hold: the setting `connections_max`, or what its descriptors allow."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return connections_max
    return max(1, min(connections_max, int(soft * DESCRIPTORS_SHARE)))


class ServedConnection(Protocol):
    """The protocol of one connection; says by `lost` that the connection has ended."""

    lost: Callable[[], None]


class Acceptor:
    """The listening sockets of one server. Used on the event loop alone; stands where uvicorn has asyncio's servers."""

    def __init__(
        self,
        listeners: Sequence[socket.socket],
        make: Callable[[], ServedConnection],
        connections_max: int,
        refused: Callable[[OverloadedError], None],
    ) -> None:
        """Accepts from now on.

        `listeners`: not blocking, and listening. `make`: the protocol of a new connection. `connections_max`: at once,
        on all listeners together. `refused`: hears of each connection that was turned away.
        """
        self._loop = asyncio.get_running_loop()
        self._listeners = list(listeners)
        self._make = make
        self._connections_max = connections_max
        self._refused = refused
        self._shares = FairShares(connections_max, GUARANTEED_CONNECTIONS)
        #: Open connections, those that are being set up included.
        self._open = 0
        self._paused = False
        self._closed = False
        self._setting_up: set[asyncio.Task[None]] = set()
        #: One line a second, however often it happens.
        self._told = Allowance(1, 1.0)
        self._listen()

    def close(self) -> None:
        """Accepts no more. Open connections go on."""
        self._pause()
        self._closed = True

    async def wait_closed(self) -> None:
        """Returns once the connections that are being set up are."""
        await asyncio.gather(*self._setting_up, return_exceptions=True)

    def _listen(self) -> None:
        self._paused = False
        for listener in self._listeners:
            self._loop.add_reader(listener.fileno(), self._accept, listener)

    def _pause(self) -> None:
        if not self._paused and not self._closed:
            self._paused = True
            for listener in self._listeners:
                self._loop.remove_reader(listener.fileno())

    def _resume(self) -> None:
        if self._paused and not self._closed:
            self._listen()

    def _accept(self, listener: socket.socket) -> None:
        for _ in range(ACCEPTS_MAX):
            if self._open >= self._connections_max:
                # The others wait in the system's own queue until a connection ends.
                self._tell("no more connections than descriptors allow", connections=self._open)
                self._pause()
                return
            try:
                connection, address = listener.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                if error.errno not in _RAN_OUT:
                    raise
                self._tell("out of descriptors, accepting later", reason=error.strerror, connections=self._open)
                self._pause()
                self._loop.call_later(RETRY_S, self._resume)
                return
            self._serve(connection, _origin(address))

    def _serve(self, connection: socket.socket, origin: str | None) -> None:
        connection.setblocking(False)
        if origin is not None and not self._shares.enter(origin):
            self._turn_away(connection, origin)
            return
        self._open += 1
        task = self._loop.create_task(self._set_up(connection, origin))
        self._setting_up.add(task)
        task.add_done_callback(self._setting_up.discard)

    async def _set_up(self, connection: socket.socket, origin: str | None) -> None:
        protocol = self._make()
        protocol.lost = partial(self._lost, origin)
        try:
            await self._loop.connect_accepted_socket(lambda: protocol, connection)  # type: ignore[type-var]
        except OSError:
            # There is no descriptor for the loop's own bookkeeping: the protocol has never seen the connection.
            connection.close()
            self._lost(origin)

    def _lost(self, origin: str | None) -> None:
        self._open -= 1
        if origin is not None:
            self._shares.leave(origin)
        self._resume()

    def _turn_away(self, connection: socket.socket, origin: str) -> None:
        """Answers 503 without waiting for a request: what is not read may cost the client the answer, and no more."""
        error = OverloadedError(
            f"{self._shares.of(origin)} connections from {origin} are open already.",
            outside="Too many connections from this address are open already.",
            retry_after_s=1.0,
        )
        self._refused(error)
        response = failure_of_error(error).response()
        head = [f"{name.decode()}: {value.decode()}" for name, value in response.raw_headers]
        lines = ["HTTP/1.1 503 Service Unavailable", *head, f"x-request-id: {request_id(None)}", "Connection: close"]
        try:
            connection.send("\r\n".join([*lines, "", ""]).encode() + bytes(response.body))
        except OSError:
            # The client is gone already.
            pass
        finally:
            connection.close()

    def _tell(self, event: str, **fields: object) -> None:
        _, allowed = self._told.admit()
        if allowed:
            log_event(event, logging.WARNING, **fields)


def _origin(address: object) -> str | None:
    """Whose share a connection counts against: an IPv4 address, an IPv6 network, or nobody's for another worker."""
    if not isinstance(address, tuple):
        return None
    ip = ipaddress.ip_address(str(address[0]).partition("%")[0])
    if ip.version == 6 and ip.ipv4_mapped is None:
        return str(ipaddress.ip_network((int(ip) >> 64 << 64, 64)))
    return str(ip)
