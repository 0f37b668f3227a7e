"""Events cross from the turn's thread to the loop: whole, in order, and never without bound."""

from __future__ import annotations

import asyncio
import threading

from agentao_gov.governor.types import TextEvent, ToolEvent
from agentao_gov.service.turns import EventFeed


def test_events_arrive_in_order_with_neighbouring_texts_joined() -> None:
    """A reader that was away gets one text, not a thousand."""

    async def scenario() -> list[object]:
        feed = EventFeed(asyncio.get_running_loop())
        for event in (TextEvent("a"), TextEvent("b"), ToolEvent("t", "ok", 1), TextEvent("c")):
            feed.push(event)
        return list(await feed.take(1) or ())

    assert asyncio.run(scenario()) == [TextEvent("ab"), ToolEvent("t", "ok", 1), TextEvent("c")]


def test_nothing_is_lost_between_a_busy_thread_and_the_loop() -> None:
    """Ten thousand events from another thread all arrive."""

    async def scenario() -> str:
        feed = EventFeed(asyncio.get_running_loop())
        words = [f"{n}," for n in range(10_000)]

        def push() -> None:
            for word in words:
                feed.push(TextEvent(word))

        thread = threading.Thread(target=push)
        thread.start()
        seen = ""
        async with asyncio.timeout(10):
            while seen.count(",") < len(words):
                seen += "".join(event.delta for event in await feed.take(1) or () if isinstance(event, TextEvent))
        thread.join()
        return seen

    assert asyncio.run(scenario()) == "".join(f"{n}," for n in range(10_000))


def test_a_reader_that_stopped_costs_a_bounded_amount() -> None:
    """Past the limit everything is dropped and the feed says so."""

    async def scenario() -> tuple[bool, int]:
        feed = EventFeed(asyncio.get_running_loop(), lag_bytes_max=100)
        for _ in range(1000):
            feed.push(TextEvent("x" * 10))
        return feed.overflowed, len(feed.drain())

    assert asyncio.run(scenario()) == (True, 0)


def test_a_push_after_the_loop_ended_is_harmless() -> None:
    """A turn may outlive the server's loop during shutdown."""

    async def scenario() -> EventFeed:
        return EventFeed(asyncio.get_running_loop())

    feed = asyncio.run(scenario())
    feed.push(TextEvent("late"))

    assert feed.drain() == [TextEvent("late")]
