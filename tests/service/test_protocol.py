"""How long a client may take to say what it wants."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import uvicorn
from starlette.responses import PlainTextResponse
from starlette.types import Receive, Scope, Send
from uvicorn.server import ServerState

from agentao_gov.service.protocol import BoundedHeadProtocol

#: Nothing here takes long; a test that hangs ends.
GUARD_S = 20.0
HEAD_S = 0.3


class QuickProtocol(BoundedHeadProtocol):
    """With a limit that a test can wait for."""

    head_s_max = HEAD_S


async def slow_app(scope: Scope, receive: Receive, send: Send) -> None:
    """Answers after the head's limit."""
    await asyncio.sleep(2 * HEAD_S)
    await PlainTextResponse("done")(scope, receive, send)


def talk(say: Callable[[asyncio.StreamWriter], Awaitable[None]]) -> bytes:
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
                heard = await reader.read()
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
