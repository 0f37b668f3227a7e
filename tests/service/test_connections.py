"""Connections: as many as there is room for, none lost, and of one address its share."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable

from agentao_gov.errors import OverloadedError
from agentao_gov.service.connections import Acceptor
from agentao_gov.service.server import bind

#: A hang guard.
HANG_S = 10.0


class Echo(asyncio.Protocol):
    """Says hello, and ends with its client."""

    def __init__(self) -> None:
        self.lost: Callable[[], None] = lambda: None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        transport.write(b"hello")

    def connection_lost(self, exc: Exception | None) -> None:
        del exc
        self.lost()


class Client:
    """One connection to the acceptor."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self.said: asyncio.Task[bytes] = asyncio.ensure_future(reader.read(65536))

    async def leave(self) -> None:
        self.writer.close()
        with contextlib.suppress(OSError):
            await self.writer.wait_closed()


@contextlib.asynccontextmanager
async def accepting(
    connections_max: int,
) -> AsyncIterator[tuple[Callable[..., Awaitable[Client]], list[OverloadedError]]]:
    """An acceptor, and what opens connections to it: from 127.0.0.1 if not from elsewhere on loopback."""
    listener = bind("127.0.0.1", 0)
    port = listener.getsockname()[1]
    refused: list[OverloadedError] = []
    acceptor = Acceptor([listener], Echo, connections_max, refused.append)
    clients: list[Client] = []

    async def connect(host: str = "127.0.0.1") -> Client:
        clients.append(Client(*await asyncio.open_connection("127.0.0.1", port, local_addr=(host, 0))))
        return clients[-1]

    try:
        yield connect, refused
    finally:
        for client in clients:
            client.said.cancel()
            await client.leave()
        acceptor.close()
        await acceptor.wait_closed()
        listener.close()


def run(scenario: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        await asyncio.wait_for(scenario(), HANG_S)

    asyncio.run(bounded())


def test_what_there_is_no_room_for_waits_until_there_is() -> None:
    """No connection is lost, and none is taken before another one ends."""

    async def scenario() -> None:
        async with accepting(2) as (connect, refused):
            first, second, third = [await connect() for _ in range(3)]
            await asyncio.gather(first.said, second.said)
            waited = not third.said.done()
            await first.leave()

            assert await third.said == b"hello"
            assert waited
            assert refused == []

    run(scenario)


def test_an_address_that_has_its_share_is_told_and_another_one_is_served() -> None:
    """In HTTP, with the time to wait; as long as it holds what it has."""

    async def scenario() -> None:
        async with accepting(40) as (connect, refused):
            held = [await connect() for _ in range(20)]
            await asyncio.gather(*(client.said for client in held))
            over = await connect()
            elsewhere = await connect("127.0.0.2")

            answer = await over.said
            assert answer.startswith(b"HTTP/1.1 503 ")
            assert b"retry-after: 1" in answer.lower()
            assert b'"code":"overloaded"' in answer
            assert await elsewhere.said == b"hello"
            assert [error.code for error in refused] == ["overloaded"]
            await held[0].leave()
            again = await connect()
            assert await again.said == b"hello"

    run(scenario)
