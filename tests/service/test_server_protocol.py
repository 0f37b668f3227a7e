"""How long a client may take to say what it wants."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import uvicorn
from starlette.responses import PlainTextResponse
from starlette.types import Receive, Scope, Send
from uvicorn.server import ServerState

from agentao_gov.service.server import BoundedHeadProtocol

#: Nothing here takes long; a test that hangs ends.
GUARD_S = 20.0
HEAD_S = 0.3
WRITE_S = 0.2
#: More than the system's own buffers hold, so that the rest waits in the server.
LARGE = 12 << 20


class QuickProtocol(BoundedHeadProtocol):
    """With a limit that a test can wait for."""

    head_s_max = HEAD_S
    write_s_max = WRITE_S


async def slow_app(scope: Scope, receive: Receive, send: Send) -> None:
    """Answers after the head's limit; at `/large` with much."""
    if scope["path"] == "/large":
        await PlainTextResponse("x" * LARGE)(scope, receive, send)
        return
    await asyncio.sleep(2 * HEAD_S)
    await PlainTextResponse("done")(scope, receive, send)


async def all_of_it(reader: asyncio.StreamReader) -> bytes:
    """Reads as fast as it comes."""
    return await reader.read()


def talk(
    say: Callable[[asyncio.StreamWriter], Awaitable[None]],
    hear: Callable[[asyncio.StreamReader], Awaitable[bytes]] = all_of_it,
) -> bytes:
    """Everything a server sends to a client until it closes the connection."""

    async def exchange() -> bytes:
        config = uvicorn.Config(slow_app, http=QuickProtocol, lifespan="off", log_config=None)
        config.load()
        state = ServerState()
        loop = asyncio.get_running_loop()
        server = await loop.create_server(lambda: QuickProtocol(config, state, {}), "127.0.0.1", 0)
        async with server, asyncio.timeout(GUARD_S):
            reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
            await say(writer)
            try:
                heard = await hear(reader)
            except ConnectionResetError:
                # Bytes crossed the close: the system answers them with a reset.
                heard = b""
            writer.close()
            return heard

    return asyncio.run(exchange())


def test_a_client_that_says_nothing_is_left() -> None:
    """The connection is closed."""

    async def nothing(_: asyncio.StreamWriter) -> None:
        return

    assert talk(nothing) == b""


def test_a_trickle_of_header_bytes_does_not_buy_time() -> None:
    """Each byte comes well within the limit, the head never."""

    async def trickle(writer: asyncio.StreamWriter) -> None:
        async def drip() -> None:
            while not writer.is_closing():
                writer.write(b"X")
                await asyncio.sleep(HEAD_S / 10)

        writer.write(b"GET / HTTP/1.1\r\nHost: x\r\nX-Slow: ")
        task = asyncio.create_task(drip())
        asyncio.get_running_loop().call_later(GUARD_S, task.cancel)

    assert talk(trickle) == b""


def test_a_whole_request_may_take_its_time() -> None:
    """The limit is the head's alone."""

    async def ask(writer: asyncio.StreamWriter) -> None:
        writer.write(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")

    heard = talk(ask)

    assert heard.startswith(b"HTTP/1.1 200")
    assert heard.endswith(b"done")


async def ask_for_much(writer: asyncio.StreamWriter) -> None:
    writer.write(b"GET /large HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")


def test_a_large_answer_may_take_longer_than_the_limit_while_it_is_read() -> None:
    """The limit asks for a pace, not for the whole of what was sent at once."""
    took: list[float] = []

    async def slowly(reader: asyncio.StreamReader) -> bytes:
        heard, begun = bytearray(), asyncio.get_running_loop().time()
        while piece := await reader.read(1 << 20):
            heard += piece
            await asyncio.sleep(WRITE_S / 8)
        took.append(asyncio.get_running_loop().time() - begun)
        return bytes(heard)

    heard = talk(ask_for_much, slowly)

    assert took[0] > 2 * WRITE_S  # else this shows nothing
    assert heard.endswith(b"\r\n\r\n" + b"x" * LARGE)


def test_a_large_answer_that_nobody_reads_is_dropped() -> None:
    """The connection ends by a reset, with the most of it unsent."""

    async def not_at_all(reader: asyncio.StreamReader) -> bytes:
        first = await reader.read(100)
        await asyncio.sleep(5 * WRITE_S)
        return first + await reader.read()

    assert len(talk(ask_for_much, not_at_all)) < LARGE
