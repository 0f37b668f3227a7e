"""The listening socket: what it takes, what it refuses, and that answers leave at once."""

from __future__ import annotations

import asyncio
import socket

import pytest

from agentao_gov.errors import ConfigError
from agentao_gov.service.server import bind


def test_answers_do_not_wait_for_the_clients_acknowledgement() -> None:
    """A connection accepted by asyncio on this listener sends small segments at once (TCP_NODELAY).

    Else an answer whose head and body are two writes takes 40 ms longer: the client's delayed acknowledgement.
    """

    async def accepted() -> int:
        loop = asyncio.get_running_loop()
        found: asyncio.Future[int] = loop.create_future()

        class Look(asyncio.Protocol):
            def connection_made(self, transport: asyncio.BaseTransport) -> None:
                taken: socket.socket = transport.get_extra_info("socket")
                found.set_result(taken.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
                transport.close()

        listener = bind("127.0.0.1", 0)
        server = await loop.create_server(Look, sock=listener)
        with socket.create_connection(listener.getsockname()[:2], timeout=10):
            nodelay = await asyncio.wait_for(found, 10)
        server.close()
        await server.wait_closed()
        return nodelay

    assert asyncio.run(accepted()) == 1


def test_an_address_that_is_taken_is_told_with_a_way_out() -> None:
    """Two services on one port."""
    with bind("127.0.0.1", 0) as first:
        port = first.getsockname()[1]

        with pytest.raises(ConfigError, match=f"cannot listen on 127.0.0.1:{port}") as caught:
            bind("127.0.0.1", port)

    assert "--port 0" in str(caught.value.hint)


def test_an_address_of_another_machine_is_told_as_that() -> None:
    """A free port would not help; 192.0.2.0/24 is nobody's."""
    with pytest.raises(ConfigError) as caught:
        bind("192.0.2.1", 0)

    assert "No interface of this machine has that address" in str(caught.value.hint)


def test_ipv6_is_written_in_brackets() -> None:
    """As in an address."""
    try:
        with bind("[::1]", 0) as listener:
            assert listener.family is socket.AF_INET6
    except ConfigError:
        pytest.skip("this machine has no IPv6")
