"""A service of the native API that does exactly what a test says, as a process of its own.

    python -m tests.loadtest.stub '{"port": 0, "service_s": 0.05}'

Prints its port. Small and quick on purpose (asyncio streams, no framework): it is the truth that the load test is held
against, so it must not be what is slow.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass, field
from typing import Any

LEAK = b"x" * 50 * 1024


@dataclass
class Settings:
    """What the stub does. Seconds since the first turn where it says `at`."""

    port: int = 0
    #: How long a turn takes.
    service_s: float = 0.0
    first_token_s: float = 0.0
    #: Nothing is answered within [at, at + for].
    stall_at_s: float | None = None
    stall_for_s: float = 0.0
    #: `answer` | `hang` | `429` | `500` | `drop` | `die`
    behaviour: str = "answer"
    #: `die`: after so many turns.
    after: int = 0
    #: Turns at once; more wait, or get 429.
    limit: int | None = None
    overflow: str = "queue"
    tokens: int = 3
    #: Events leave in writes of so many bytes, each a packet of its own; None: whole.
    fragment: int | None = None
    #: Before the first text: a comment, an empty delta, `\\r\\n` as the line's end, and a text with a long character.
    quirks: bool = False
    leak_bytes: bool = False
    leak_fds: bool = False
    leak_children: bool = False


@dataclass
class State:
    settings: Settings
    slots: asyncio.Semaphore | None = None
    began: float | None = None
    turns: int = 0
    answered: int = 0
    busy: int = 0
    sessions: set[str] = field(default_factory=set)
    hoard: list[Any] = field(default_factory=list)
    children: list[subprocess.Popen[bytes]] = field(default_factory=list)
    #: Wall time at which the first text of each session was written, and how late the event loop ran, in ms.
    first_text: dict[str, float] = field(default_factory=dict)
    lags_ms: list[float] = field(default_factory=list)


async def handle(state: State, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while True:
            head = await reader.readuntil(b"\r\n\r\n")
            lines = head.decode("latin-1").split("\r\n")
            method, path, _ = lines[0].split(" ", 2)
            headers = dict(line.lower().split(": ", 1) for line in lines[1:] if ": " in line)
            body = await reader.readexactly(int(headers.get("content-length", 0)))
            await respond(state, writer, method, path, body)
    except (asyncio.IncompleteReadError, ConnectionError):
        pass
    finally:
        writer.close()


async def respond(state: State, writer: asyncio.StreamWriter, method: str, path: str, body: bytes) -> None:
    if path.endswith("/turns"):
        await turn(state, writer, path.split("/")[3], json.loads(body))
    elif path == "/metrics":
        counts = {"busy": state.busy, "idle": len(state.sessions)}
        text = "".join(f'agentao_gov_sessions{{state="{name}"}} {n}\n' for name, n in counts.items())
        send(writer, 200, text.encode(), "text/plain")
    elif path == "/truth":
        send(writer, 200, json.dumps(truth(state)).encode())
    elif method == "DELETE":
        state.sessions.discard(path.split("/")[3])
        send(writer, 204, b"")
    else:
        send(writer, 200, b"{}")
    await writer.drain()


async def turn(state: State, writer: asyncio.StreamWriter, session: str, body: dict[str, Any]) -> None:
    s = state.settings
    state.turns += 1
    if state.began is None:
        state.began = time.monotonic()
    leak(state, session)
    if s.behaviour == "die" and state.turns > s.after:
        os._exit(3)
    if s.behaviour == "hang":
        await asyncio.sleep(3600)
    if s.behaviour == "drop":
        writer.transport.abort()
        raise ConnectionError
    if s.behaviour in ("429", "500") or (state.slots and state.slots.locked() and s.overflow == "429"):
        code = "model_error" if s.behaviour == "500" else "queue_full"
        send(
            writer,
            500 if s.behaviour == "500" else 429,
            json.dumps({"error": {"code": code, "message": "no"}}).encode(),
        )
        return
    if state.slots is None:
        await answer(state, writer, session, body)
    else:
        async with state.slots:
            await answer(state, writer, session, body)


def leak(state: State, session: str) -> None:
    s = state.settings
    if s.leak_bytes:
        state.hoard.append(bytearray(LEAK))
    if session not in state.sessions:
        state.sessions.add(session)
        if s.leak_fds:
            state.hoard.append(os.open("/dev/null", os.O_RDONLY))
        if s.leak_children:
            state.children.append(subprocess.Popen(["sleep", "600"]))


async def answer(state: State, writer: asyncio.StreamWriter, session: str, body: dict[str, Any]) -> None:
    s = state.settings
    assert state.began is not None
    state.busy += 1
    try:
        if s.stall_at_s is not None:
            now = time.monotonic() - state.began
            end = s.stall_at_s + s.stall_for_s
            if s.stall_at_s <= now < end:
                await asyncio.sleep(end - now)
        start = time.monotonic()
        chunk(
            writer,
            b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n",
            raw=True,
        )
        if s.first_token_s:
            await writer.drain()
            await asyncio.sleep(s.first_token_s)
        await texts(state, writer, session)
        left = s.service_s - (time.monotonic() - start)
        if left > 0:
            await writer.drain()
            await asyncio.sleep(left)
        state.answered += 1
        report = {
            "outcome": "answered",
            "profile": body["profile"],
            "timing_ms": {"total": 1, "queued": 0, "model": s.service_s * 1000},
            "usage": {"prompt_tokens": 100, "completion_tokens": 10, "llm_calls": 1},
            "tool_calls": [],
        }
        chunk(writer, b"event: report\ndata: " + json.dumps(report).encode() + b"\n\n")
        chunk(writer, b"0\r\n\r\n", raw=True)
    finally:
        state.busy -= 1


async def texts(state: State, writer: asyncio.StreamWriter, session: str) -> None:
    s = state.settings
    end = b"\r\n" if s.quirks else b"\n"
    if s.quirks:
        await event(s, writer, b": still there" + 2 * end + b"event: text" + end + b'data: {"delta":""}' + 2 * end)
    word = "w\u00f6rd \U0001f642 ".encode() if s.quirks else b"word "
    for number in range(s.tokens):
        await event(s, writer, b"event: text" + end + b'data: {"delta":"' + word + b'"}' + 2 * end)
        if number == 0:
            state.first_text[session] = time.time()


async def event(s: Settings, writer: asyncio.StreamWriter, data: bytes) -> None:
    size = s.fragment or len(data)
    for at in range(0, len(data), size):
        chunk(writer, data[at : at + size])
        if s.fragment:
            # One write, one packet: the socket has TCP_NODELAY, and the loop turns before the next.
            await writer.drain()
            await asyncio.sleep(0)


async def watch(state: State) -> None:
    while True:
        before = time.monotonic()
        await asyncio.sleep(0.02)
        state.lags_ms.append((time.monotonic() - before - 0.02) * 1000)


def truth(state: State) -> dict[str, Any]:
    lags = sorted(state.lags_ms) or [0.0]
    lag_ms = {name: lags[int(share * (len(lags) - 1))] for name, share in (("p50", 0.5), ("p99", 0.99))}
    return {"turns": state.turns, "answered": state.answered, "lag_ms": lag_ms, "first_text": state.first_text}


def chunk(writer: asyncio.StreamWriter, data: bytes, *, raw: bool = False) -> None:
    writer.write(data if raw else b"%x\r\n%s\r\n" % (len(data), data))


def send(writer: asyncio.StreamWriter, status: int, body: bytes, kind: str = "application/json") -> None:
    head = f"HTTP/1.1 {status} X\r\ncontent-type: {kind}\r\ncontent-length: {len(body)}\r\n\r\n"
    writer.write(head.encode() + body)


async def main() -> None:
    settings = Settings(**json.loads(sys.argv[1]))
    state = State(settings, asyncio.Semaphore(settings.limit) if settings.limit else None)
    server = await asyncio.start_server(lambda r, w: handle(state, r, w), "127.0.0.1", settings.port, backlog=2048)
    watching = asyncio.create_task(watch(state))
    print(server.sockets[0].getsockname()[1], flush=True)
    # Ends with its parent, so that a test that dies leaves nothing.
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    watching.cancel()
    for child in state.children:
        child.kill()
    os._exit(0)


if __name__ == "__main__":
    asyncio.run(main())
