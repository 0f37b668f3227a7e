"""Workers ask each other: a request lands on any of them, and its session may be in another one's memory.

Each worker also listens on a socket in `STATE/workers/` (0700), with the same application and the same keys. A request
that comes over such a socket is answered from this worker alone, so that questions never go in circles.
"""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import os
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from starlette.requests import Request

__all__ = ["NO_PEERS", "PeerAnswer", "Peers", "from_peer", "listen_for_peers"]

#: A worker that does not answer within this time is on its way down or hung; the answer is made without it.
_ASK_S = 2.0
#: Between looks for workers that are still starting.
_LOOK_S = 0.1


def from_peer(request: Request) -> bool:
    """Whether another worker asks. Only a connection over a Unix socket has no client address."""
    return request.scope.get("client") is None


def _path(directory: Path, worker: int) -> Path:
    return directory / f"{worker}.sock"


def listen_for_peers(directory: Path, worker: int) -> socket.socket:
    """This worker's own socket; replaces one that a worker before it left behind."""
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    path = _path(directory, worker)
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    # Relative to an open directory, because a Unix socket's path ends at 107 bytes and a state directory's need not.
    folder = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        listener.bind(f"/proc/self/fd/{folder}/{path.name}")
    finally:
        os.close(folder)
    path.chmod(0o600)
    listener.listen(128)
    listener.setblocking(False)
    return listener


@dataclass(frozen=True, slots=True)
class PeerAnswer:
    """What another worker said."""

    status: int
    body: bytes

    @property
    def json(self) -> Any:
        """The body, parsed."""
        return json.loads(self.body)


class _Connection(http.client.HTTPConnection):
    """HTTP over a Unix socket."""

    def __init__(self, directory: Path, name: str) -> None:
        super().__init__("worker", timeout=_ASK_S)
        self._directory = directory
        self._name = name

    def connect(self) -> None:
        folder = os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY)
        try:
            self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            self.sock.settimeout(_ASK_S)
            self.sock.connect(f"/proc/self/fd/{folder}/{self._name}")
        finally:
            os.close(folder)


@dataclass(frozen=True, slots=True)
class Peers:
    """The other workers of this service."""

    directory: Path
    worker: int
    workers: int

    async def ask(self, request: Request) -> list[PeerAnswer]:
        """Asks every other worker the same thing; those that do not answer are left out."""
        if from_peer(request) or self.workers == 1:
            return []
        others = [worker for worker in range(self.workers) if worker != self.worker]
        headers = {"Authorization": request.headers.get("authorization", "")}
        asked = [asyncio.to_thread(self._ask, worker, request.method, request.url.path, headers) for worker in others]
        return [answer for answer in await asyncio.gather(*asked) if answer is not None]

    async def await_all(self) -> None:
        """Returns once every other worker has answered."""
        missing = [worker for worker in range(self.workers) if worker != self.worker]
        while missing:
            answers = [await asyncio.to_thread(self._ask, worker, "GET", "/healthz", {}) for worker in missing]
            missing = [worker for worker, answer in zip(missing, answers, strict=True) if answer is None]
            if missing:
                await asyncio.sleep(_LOOK_S)

    def _ask(self, worker: int, method: str, path: str, headers: dict[str, str]) -> PeerAnswer | None:
        connection = _Connection(self.directory, _path(self.directory, worker).name)
        with contextlib.closing(connection), contextlib.suppress(OSError, http.client.HTTPException):
            connection.request(method, path, None, headers)
            response = connection.getresponse()
            return PeerAnswer(response.status, response.read())
        return None


NO_PEERS = Peers(Path(), 0, 1)
