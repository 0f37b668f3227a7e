"""Carries a turn's events from its thread to the event loop, joined and bounded: a slow reader costs a fixed amount."""

from __future__ import annotations

import asyncio
import threading
from collections import deque

from agentao_gov.governor.types import TextEvent, TurnEvent

__all__ = ["EventFeed"]

#: Text a client may lag behind. An answer of 4,096 tokens is some 16 KiB, so only a reader that stopped gets here.
LAG_BYTES_MAX = 1 << 20
#: Tool and iteration events kept beside the text.
LAG_EVENTS_MAX = 10_000


class EventFeed:
    """One turn's events. `push` on the turn's thread never blocks; `take` on the loop waits for the next ones."""

    def __init__(self, loop: asyncio.AbstractEventLoop, *, lag_bytes_max: int = LAG_BYTES_MAX) -> None:
        self._loop = loop
        self._lag_bytes_max = lag_bytes_max
        self._lock = threading.Lock()
        #: Not yet taken, in order; guarded by `_lock`.
        self._events: deque[TurnEvent] = deque()
        #: Bytes of text in `_events`; guarded by `_lock`.
        self._lag_bytes = 0
        #: The reader fell too far behind: nothing is kept any more; guarded by `_lock`.
        self._overflowed = False
        self._ready = asyncio.Event()

    @property
    def overflowed(self) -> bool:
        """Whether the reader fell further behind than the limit; the stream cannot be told whole any more."""
        with self._lock:
            return self._overflowed

    def push(self, event: TurnEvent) -> None:
        """Takes one event; from any thread."""
        with self._lock:
            wake = not self._events
            if self._overflowed:
                return
            if isinstance(event, TextEvent):
                self._lag_bytes += len(event.delta)
            self._events.append(event)
            if self._lag_bytes > self._lag_bytes_max or len(self._events) > LAG_EVENTS_MAX:
                self._overflowed = True
                self._events.clear()
                wake = True
        if wake:
            self.wake()

    def wake(self) -> None:
        """Makes a waiting `take` return; from any thread, also after the loop has ended."""
        try:
            self._loop.call_soon_threadsafe(self._ready.set)
        except RuntimeError:  # the loop is closed: nobody is left to read
            return

    async def take(self, wait_s: float) -> list[TurnEvent] | None:
        """The events since the last call, neighbouring texts joined; [] when woken without one, None after `wait_s`."""
        if not self._has_events():
            try:
                async with asyncio.timeout(wait_s):
                    await self._ready.wait()
            except TimeoutError:
                return None
        self._ready.clear()
        return self.drain()

    def _has_events(self) -> bool:
        with self._lock:
            return bool(self._events)

    def drain(self) -> list[TurnEvent]:
        """Everything there is, now."""
        with self._lock:
            events, self._events = self._events, deque()
            self._lag_bytes = 0
        return _joined(events)


def _joined(events: deque[TurnEvent]) -> list[TurnEvent]:
    out: list[TurnEvent] = []
    texts: list[str] = []
    for event in events:
        if isinstance(event, TextEvent):
            texts.append(event.delta)
            continue
        if texts:
            out.append(TextEvent("".join(texts)))
            texts = []
        out.append(event)
    if texts:
        out.append(TextEvent("".join(texts)))
    return out
