"""The owner's end of a session process's wire: JSON-RPC 2.0, a line a message, both sides may call.

What comes up the wire was written by a process that runs a tenant's tools, so it is data: parsed as JSON, bounded in
length, and every request it makes goes through handlers that check it.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import logging
import select
import socket
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from typing import Any

_log = logging.getLogger(__name__)
#: One line. A conversation of a million tokens is some 5 MB; beyond this the worker is not ours any more.
LINE_BYTES_MAX = 64 << 20
#: Written and not read by the other end; who is told more then does not listen. A message of 1 MiB may be six as JSON.
_UNSENT_BYTES_MAX = 8 << 20
#: How often a thread that waits for room looks whether the wire was closed meanwhile.
_ROOM_MS = 1_000

Handler = Callable[[Mapping[str, Any]], Any]


class WireClosed(Exception):
    """The process at the other end is gone."""


class WireError(Exception):
    """The other end answered with an error."""

    def __init__(self, code: int, message: str, data: Mapping[str, Any] | None) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.data = data or {}


class WirePeer:
    """One wire. Thread-safe: any thread may call, and none of them ever waits for the other end to read.

    Handlers run on the reader's thread and must not block.
    """

    def __init__(
        self,
        sock: socket.socket,
        *,
        notifications: Mapping[str, Handler],
        requests: Mapping[str, Callable[[Mapping[str, Any], Callable[[Any], None]], None]],
        on_close: Callable[[], None],
        name: str,
    ) -> None:
        """`requests` handlers get the parameters and a function to answer with, at once or later, from any thread.

        They answer with a JSON value, or with `{"error": ...}` built by `error_result`.
        """
        self._sock = sock
        self._notifications = notifications
        self._requests = requests
        self._on_close = on_close
        self._ids = itertools.count(1)
        self._lock = threading.Lock()
        #: Calls not answered yet, by id; under `_lock`. Emptied once when the wire closes.
        self._waiting: dict[int, Future[Any]] = {}
        self._closed = False
        self._write_lock = threading.Lock()
        # Under `_write_lock`: what the socket had no room for, and whether a thread waits to write it.
        self._unsent = bytearray()
        self._flushing = False
        self._thread = threading.Thread(target=self._read, name=f"gov-wire-{name}", daemon=True)

    def start(self) -> None:
        """Begins to read."""
        self._thread.start()

    @property
    def closed(self) -> bool:
        """Whether the other end is gone."""
        with self._lock:
            return self._closed

    def call(self, method: str, params: Mapping[str, Any]) -> Future[Any]:
        """Asks the other end. The future fails with WireError, or with WireClosed when the process dies."""
        future: Future[Any] = Future()
        number = next(self._ids)
        with self._lock:
            if self._closed:
                future.set_exception(WireClosed())
                return future
            self._waiting[number] = future
        self._send({"jsonrpc": "2.0", "id": number, "method": method, "params": params})
        return future

    def notify(self, method: str, params: Mapping[str, Any]) -> None:
        """Tells the other end; no answer, and no error if it is gone."""
        self._send({"jsonrpc": "2.0", "method": method, "params": params})

    def close(self) -> None:
        """Ends the wire: the process sees end-of-file."""
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)

    def _send(self, message: Mapping[str, Any]) -> None:
        line = json.dumps(message, separators=(",", ":")).encode() + b"\n"
        with self._write_lock:
            if len(self._unsent) > _UNSENT_BYTES_MAX:
                _log.warning("a session process does not read what it is told; closing its wire")
                self._give_up()
                return
            self._unsent += line
            if not self._flushing:
                self._push()
                if self._unsent:
                    self._flushing = True
                    threading.Thread(target=self._flush, name="gov-wire-flush", daemon=True).start()

    def _push(self) -> None:
        """Writes what the socket has room for. Under `_write_lock`."""
        try:
            while self._unsent:
                del self._unsent[: self._sock.send(self._unsent, socket.MSG_DONTWAIT)]
        except BlockingIOError:
            pass
        except OSError:
            self._give_up()

    def _give_up(self) -> None:
        self._unsent.clear()
        self.close()  # the reader sees the end, and fails every waiting call

    def _flush(self) -> None:
        """Writes the rest as the other end reads, on a thread of its own: it may be stopped, or hold its own lock."""
        try:
            with self._sock.dup() as watched:
                room = select.poll()
                room.register(watched, select.POLLOUT)
                while True:
                    room.poll(_ROOM_MS)
                    with self._write_lock:
                        self._push()
                        if not self._unsent:
                            # Under the same lock: what is sent from now on is pushed by whoever sends it.
                            self._flushing = False
                            return
        except OSError:  # closed before it began
            with self._write_lock:
                self._unsent.clear()
                self._flushing = False

    def _read(self) -> None:
        try:
            with self._sock.makefile("rb") as lines:
                while line := lines.readline(LINE_BYTES_MAX):
                    if not line.endswith(b"\n"):
                        _log.warning("a session process sent a line without end; closing its wire")
                        break
                    self._dispatch(line)
        except OSError as error:
            _log.debug("wire ended: %s", error)
        except Exception as error:  # whatever a stranger's line does to a handler, it ends this wire and no more
            _log.warning("a session process sent what cannot be understood; closing its wire: %r", error)
        finally:
            with self._lock:
                self._closed = True
                waiting, self._waiting = self._waiting, {}
            self.close()
            self._sock.close()
            for future in waiting.values():
                future.set_exception(WireClosed())
            self._on_close()

    def _dispatch(self, line: bytes) -> None:
        message = json.loads(line)
        if not isinstance(message, dict):
            raise TypeError("not an object")
        method, number = message.get("method"), message.get("id")
        params = message.get("params") or {}
        if not isinstance(params, dict):
            raise TypeError("parameters that are no object")
        if method is None:
            self._answered(message)
        elif number is None:
            notification = self._notifications.get(method)
            if notification is not None:
                notification(params)
        elif method in self._requests:
            self._requests[method](params, lambda result: self._answer(number, result))
        else:
            error = {"code": -32601, "message": "Method not found"}
            self._send({"jsonrpc": "2.0", "id": number, "error": error})

    def _answer(self, number: Any, result: Any) -> None:
        if isinstance(result, WireError):
            error = {"code": result.code, "message": result.message, "data": result.data}
            self._send({"jsonrpc": "2.0", "id": number, "error": error})
        else:
            self._send({"jsonrpc": "2.0", "id": number, "result": result})

    def _answered(self, message: Mapping[str, Any]) -> None:
        number, error = message.get("id"), message.get("error")
        failure = None if error is None else _failure(error)
        with self._lock:
            future = self._waiting.pop(number, None) if isinstance(number, int) else None
        if future is None:
            return
        if failure is None:
            future.set_result(message.get("result"))
        else:
            future.set_exception(failure)


def _failure(error: Any) -> WireError:
    """The error of an answer. Raises for one without its shape, before anybody is told."""
    code, data = error["code"], error.get("data") or {}
    if not (isinstance(code, int) and isinstance(data, dict)):
        raise TypeError("an error that is none")
    return WireError(code, str(error.get("message")), data)
