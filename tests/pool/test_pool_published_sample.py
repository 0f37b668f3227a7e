"""What the pool published in agentao's guide does wrong, each shown on a rendition of it, and done right by ours."""

from __future__ import annotations

import asyncio
import threading
import time

import pytest
from benchmarks.pool_published import PublishedPool

from agentao_gov.endings import Outcome
from agentao_gov.errors import CapacityError
from agentao_gov.governor.types import SessionKey
from tests.pool.bench import eventually
from tests.pool.conftest import MakePool
from tests.pool.scripted import HANG_S, ScriptedHosts


class Agent:
    """As much of an agent as the published pool looks at."""

    def __init__(self, close_s: float = 0.0) -> None:
        self.history: list[str] = []
        self.closed = False
        self.close_s = close_s

    def close(self) -> None:
        time.sleep(self.close_s)
        self.closed = True


def test_a_full_pool_does_not_evict_the_session_it_was_asked_for(make_pool: MakePool, hosts: ScriptedHosts) -> None:
    """Theirs makes room before it looks: the session that is asked for goes, and its history with it."""

    async def published() -> list[str]:
        pool = PublishedPool(lambda _: Agent(), max_sessions=1, ttl_s=60)
        agent, _ = await pool.get("s")
        agent.history.append("remember it")
        again, _ = await pool.get("s")
        return again.history

    assert asyncio.run(published()) == []

    pool = make_pool(max_sessions=1)
    pool.ask("s", "remember it")

    assert pool.ask("s", "recall").answer == "remember it"
    assert hosts.closed.total() == 0


def test_a_busy_session_is_not_closed_by_its_idle_time_out(make_pool: MakePool, hosts: ScriptedHosts) -> None:
    """Theirs counts from the beginning of the turn; ours from its end."""

    async def published() -> bool:
        pool = PublishedPool(lambda _: Agent(), max_sessions=9, ttl_s=0.0)
        agent, turn = await pool.get("long")
        async with turn:
            await asyncio.sleep(0.001)
            await pool.get("other")
            return agent.closed

    assert asyncio.run(published())

    pool = make_pool(session_ttl=0.02)
    running = pool.submit("long", "hold g")
    hosts.arrive("g")
    pool.ask("other")
    eventually(lambda: hosts.closed[SessionKey("acme", "other")] == 1)

    assert hosts.closed[SessionKey("acme", "long")] == 0
    hosts.release("g")
    assert running.result(HANG_S).outcome is Outcome.ANSWERED


def test_a_slow_close_does_not_stop_the_event_loop(make_pool: MakePool, hosts: ScriptedHosts) -> None:
    """Theirs closes under its lock on the loop; with ours the loop goes on beating, and others are served."""

    async def longest_pause(work: asyncio.Task[object]) -> float:
        longest, last = 0.0, time.monotonic()
        while not work.done():
            await asyncio.sleep(0.001)
            longest, last = max(longest, time.monotonic() - last), time.monotonic()
        await work
        return longest

    async def published() -> float:
        pool = PublishedPool(lambda _: Agent(close_s=0.3), max_sessions=1, ttl_s=60)
        await pool.get("a")
        return await longest_pause(asyncio.create_task(pool.get("b")))

    assert asyncio.run(published()) >= 0.3

    pool = make_pool(max_sessions=1)
    hosts.hold("close a")
    pool.ask("a")

    async def ours() -> bool:
        future = asyncio.wrap_future(pool.submit("b"))
        hosts.arrive("close a")
        # The close hangs now, and the loop is free to notice that the turn is not there yet.
        await asyncio.sleep(0.02)
        waited = not future.done()
        hosts.release("close a")
        await asyncio.wait_for(future, HANG_S)
        return waited

    assert asyncio.run(ours())


def test_tenants_are_part_of_the_key(make_pool: MakePool) -> None:
    """Theirs hands one tenant's agent to whoever knows the session id."""

    async def published() -> bool:
        pool = PublishedPool(lambda _: Agent(), max_sessions=9, ttl_s=60)
        acme, _ = await pool.get("s")
        globex, _ = await pool.get("s")
        return acme is globex

    assert asyncio.run(published())

    pool = make_pool()
    pool.ask("s", "remember acme's", tenant="acme")

    assert pool.ask("s", "recall", tenant="globex").answer == ""


def test_a_pool_of_busy_sessions_gives_an_answer(make_pool: MakePool, hosts: ScriptedHosts) -> None:
    """Theirs has no limit on turns, and closes a busy session to make room; ours waits, then refuses."""

    async def published() -> bool:
        pool = PublishedPool(lambda _: Agent(), max_sessions=1, ttl_s=60)
        agent, turn = await pool.get("busy")
        async with turn:
            await pool.get("other")
            return agent.closed

    assert asyncio.run(published())

    pool = make_pool(max_sessions=1, queue_timeout=0.05)
    running = pool.submit("busy", "hold g")
    hosts.arrive("g")

    with pytest.raises(CapacityError) as refused:
        pool.ask("other")

    assert refused.value.retry_after_s
    assert hosts.closed.total() == 0
    hosts.release("g")
    assert running.result(HANG_S).outcome is Outcome.ANSWERED


def test_a_slow_opening_does_not_stop_other_sessions(make_pool: MakePool, hosts: ScriptedHosts) -> None:
    """Theirs builds agents under its one lock; with ours a session that is in memory is served meanwhile."""
    building = threading.Event()

    def build(name: str) -> Agent:
        if name == "slow":
            building.set()
            time.sleep(0.3)
        return Agent()

    async def published() -> float:
        pool = PublishedPool(build, max_sessions=9, ttl_s=60)
        await pool.get("quick")
        slow = asyncio.create_task(pool.get("slow"))
        began = time.monotonic()
        await asyncio.sleep(0)
        await pool.get("quick")
        waited_s = time.monotonic() - began
        await slow
        return waited_s

    assert asyncio.run(published()) >= 0.3

    pool = make_pool()
    pool.ask("quick")
    hosts.hold("open slow")
    slow = pool.submit("slow")
    hosts.arrive("open slow")

    assert pool.ask("quick").outcome is Outcome.ANSWERED
    assert not slow.done()
    hosts.release("open slow")
    slow.result(HANG_S)
