"""A client that does what none should: raw bytes on a socket, as slowly or as cut off as a test wants."""

from __future__ import annotations

import contextlib
import json
import socket
from collections.abc import Iterator, Mapping
from typing import Any

from tests.e2e.service import Client

__all__ = ["Raw", "raw"]


class Raw:
    """One connection to a service."""

    def __init__(self, service: Client, *, receive_bytes: int | None = None) -> None:
        self._service = service
        self.sock = socket.socket()
        if receive_bytes is not None:
            # Before connecting, or the window has been offered already.
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
        self.sock.settimeout(30)
        self.sock.connect(("127.0.0.1", service.port))

    def head(
        self, method: str, path: str, headers: Mapping[str, str] | None = None, *, key: str | None = None
    ) -> bytes:
        """A request's head, without the empty line that ends it."""
        use = key or self._service.key
        lines = [f"{method} {path} HTTP/1.1", f"Host: 127.0.0.1:{self._service.port}"]
        lines += [f"Authorization: Bearer {use}"] if use else []
        lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
        return ("\r\n".join(lines) + "\r\n").encode()

    def request(self, method: str, path: str, body: Any = None, headers: Mapping[str, str] | None = None) -> None:
        """Sends one whole request."""
        raw = b"" if body is None else json.dumps(body).encode()
        sent = {**(headers or {}), "Content-Length": str(len(raw))}
        self.sock.sendall(self.head(method, path, sent) + b"\r\n" + raw)

    def answer(self, size_max: int = 1 << 20) -> bytes:
        """What comes until the service closes, or nothing comes any more."""
        found = b""
        with contextlib.suppress(OSError):
            while len(found) < size_max and (chunk := self.sock.recv(65536)):
                found += chunk
        return found

    def status(self) -> int:
        """The status of the first answer; 0 when the connection was closed without one."""
        found = b""
        with contextlib.suppress(OSError):
            while b"\r\n" not in found and (chunk := self.sock.recv(65536)):
                found += chunk
        parts = found.split(b" ", 2)
        return int(parts[1]) if len(parts) > 1 else 0

    def close(self) -> None:
        self.sock.close()


@contextlib.contextmanager
def raw(service: Client, **more: Any) -> Iterator[Raw]:
    """A connection that is closed at the end."""
    made = Raw(service, **more)
    try:
        yield made
    finally:
        made.close()
