"""A provider whose answers the test writes itself, byte by byte where it matters."""

from __future__ import annotations

import contextlib
import json
import socket
import struct
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

__all__ = ["DONE", "STOP", "TEXT", "Answer", "Handler", "Provide", "Provider", "chunk", "reset", "usage"]

Answer = Callable[["Handler", dict[str, Any]], None]


class Handler(BaseHTTPRequestHandler):
    """Answers as the test says."""

    protocol_version = "HTTP/1.1"
    answer: Answer

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.seen.append(body)  # type: ignore[attr-defined]
        with contextlib.suppress(OSError):
            type(self).answer(self, body)
        self.close_connection = True

    def send(self, status: int, kind: str, data: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def stream(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Connection", "close")
        self.end_headers()

    def event(self, delta: dict[str, Any], finish: str | None = None) -> None:
        choice = {"index": 0, "delta": delta, "finish_reason": finish}
        chunk = {"id": "1", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [choice]}
        self.wfile.write(b"data: " + json.dumps(chunk).encode() + b"\n\n")

    def log_message(self, *_: Any) -> None:
        """Keeps quiet."""


class Provider:
    """A running provider."""

    def __init__(self, answer: Answer) -> None:
        handler = type("Answering", (Handler,), {"answer": answer})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        self.seen: list[dict[str, Any]] = []
        self._server.seen = self.seen  # type: ignore[attr-defined]
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True)
        self._thread.start()

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}/v1"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


Provide = Callable[[Answer], Provider]


def chunk(delta: dict[str, Any] | None = None, finish: str | None = None, used: Any = None) -> bytes:
    """One event of a stream; without a `delta` it has no choice, as the last report has."""
    choices = [] if delta is None else [{"index": 0, "delta": delta, "finish_reason": finish}]
    body = {"id": "1", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": choices}
    return b"data: " + json.dumps(body | ({} if used is None else {"usage": used})).encode() + b"\n\n"


def usage(prompt: Any, completion: Any, **more: Any) -> dict[str, Any]:
    """A report, whatever its figures are."""
    return {"prompt_tokens": prompt, "completion_tokens": completion, **more}


DONE = b"data: [DONE]\n\n"
TEXT = chunk({"role": "assistant", "content": "fine"})
STOP = chunk({}, "stop")


def reset(handler: Handler) -> None:
    """Ends a connection as a crash does: what was written arrives, and then an error."""
    handler.wfile.flush()
    handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    handler.connection.close()
