"""Calls that block wait behind their own kind and their own tenant's alone."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator

import pytest

from agentao_gov.errors import QueueFullError
from agentao_gov.service.executors import RUNNING_MAX, WAITING_MAX, TenantExecutor

#: A hang guard.
HANG_S = 20.0


@pytest.fixture
def executor() -> Iterator[TenantExecutor]:
    made = TenantExecutor("test", 4)
    yield made
    made.close()


def test_a_tenant_that_holds_all_it_may_keeps_no_other_tenant_waiting(executor: TenantExecutor) -> None:
    """Its calls run two at a time, whatever it asks; another's runs at once."""
    hold = threading.Event()
    running = threading.Semaphore(0)

    def hang() -> bool:
        running.release()
        return hold.wait(HANG_S)

    async def scenario() -> tuple[str, int]:
        asked = [asyncio.ensure_future(executor.run("evil", hang)) for _ in range(20)]
        for _ in range(RUNNING_MAX):
            await asyncio.to_thread(running.acquire)
        answer = await executor.run("acme", lambda: "at once")
        more = running.acquire(blocking=False)
        hold.set()
        assert all(await asyncio.gather(*asked))
        return answer, more

    assert asyncio.run(asyncio.wait_for(scenario(), HANG_S)) == ("at once", False)


def test_a_tenant_that_asks_too_much_at_once_is_refused(executor: TenantExecutor) -> None:
    """Its queue has an end, and it is told nothing of threads."""
    hold = threading.Event()

    async def scenario() -> list[object]:
        asked = [asyncio.ensure_future(executor.run("evil", hold.wait, HANG_S)) for _ in range(WAITING_MAX + 50)]
        refused, _ = await asyncio.wait(asked, return_when=asyncio.FIRST_EXCEPTION)
        hold.set()
        del refused
        return list(await asyncio.gather(*asked, return_exceptions=True))

    answers = asyncio.run(asyncio.wait_for(scenario(), HANG_S))
    refusals = [answer for answer in answers if isinstance(answer, QueueFullError)]

    assert len(answers) - len(refusals) <= RUNNING_MAX + WAITING_MAX
    assert {error.public_message for error in refusals} == {"Too many requests of this kind are open already."}


def test_a_caller_that_leaves_does_not_buy_its_tenant_another_thread(executor: TenantExecutor) -> None:
    """Or whoever asks and hangs up in a loop would have them all."""
    hold = threading.Event()
    running = threading.Semaphore(0)

    def hang() -> bool:
        running.release()
        return hold.wait(HANG_S)

    async def scenario() -> bool:
        for _ in range(RUNNING_MAX):
            asked = asyncio.ensure_future(executor.run("evil", hang))
            await asyncio.to_thread(running.acquire)
            asked.cancel()
            await asyncio.gather(asked, return_exceptions=True)
        late = asyncio.ensure_future(executor.run("evil", lambda: "late"))
        await executor.run("acme", lambda: None)
        began = late.done()
        hold.set()
        assert await late == "late"
        return began

    assert asyncio.run(asyncio.wait_for(scenario(), HANG_S)) is False


def test_what_a_call_raises_is_its_callers(executor: TenantExecutor) -> None:
    """As it is, and the next call is served."""

    async def scenario() -> int:
        with pytest.raises(ZeroDivisionError):
            await executor.run("acme", lambda: 1 // 0)
        return await executor.run("acme", lambda: 1)

    assert asyncio.run(scenario()) == 1
