"""Runs one turn for one HTTP request: its stream, its deadline, and its end when the client leaves."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import deque
from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from typing import TYPE_CHECKING, Protocol

from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from agentao_gov.endings import Outcome
from agentao_gov.errors import GovError, InternalError, TurnCancelledError, TurnTimeoutError
from agentao_gov.governor.report import TurnReport
from agentao_gov.governor.types import TextEvent, TurnEvent
from agentao_gov.monitor.logs import log_event
from agentao_gov.service.errors import Failure, failure_of_error, failure_of_report
from agentao_gov.service.sse import KEEP_ALIVE

if TYPE_CHECKING:
    from agentao_gov.pool.types import TurnOrder
    from agentao_gov.service.gateway import Gateway

#: Text a client may lag behind. An answer of 4,096 tokens is some 16 KiB, so only a reader that stopped gets here.
LAG_BYTES_MAX = 1 << 20
#: Tool and iteration events kept beside the text.
LAG_EVENTS_MAX = 10_000
#: Silence after which a stream says that it lives; proxies cut idle connections at 30-60 s.
KEEP_ALIVE_S = 15.0
#: How long one write to a reader that does not read may wait before the turn is given up.
WRITE_S_MAX = 30.0
#: Past wait, opening, turn and grace together the pool itself must be hung; the client is answered all the same.
GUARD_S = 10.0


class EventFeed:
    """Carries one turn's events from its thread to the event loop, joined and bounded.

    A slow reader costs a fixed amount. `push` on the turn's thread never blocks; `take` on the loop waits.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, *, lag_bytes_max: int = LAG_BYTES_MAX) -> None:
        """`loop`: where `take` is awaited. `lag_bytes_max`: text that the reader may lag behind."""
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
        """The events since the last call, neighbouring texts joined; [] when woken without one.

        None when `wait_s` seconds have passed without either.
        """
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


class StreamWriter(Protocol):
    """Writes one kind of event stream; each method gives the bytes to send."""

    def event(self, event: TurnEvent) -> bytes:
        """What a client is told of an event: nothing where the stream has no word for it."""
        ...

    def report(self, report: TurnReport) -> bytes:
        """The end of a turn with an answer."""
        ...

    def failure(self, failure: Failure) -> bytes:
        """The end of any other, once the stream has begun."""
        ...


class _Gone(Exception):
    """The client left, or reads so slowly that it might as well have."""

    def __init__(self, why: str) -> None:
        super().__init__(why)
        self.why = why


class TurnResponse(Response):
    """The answer of a turn. Submits it when the answer is asked for, and cancels it when the client leaves."""

    def __init__(
        self,
        gateway: Gateway,
        order: TurnOrder,
        *,
        answer: Callable[[TurnReport], Response],
        writer: StreamWriter | None = None,
    ) -> None:
        """Prepares the answer; nothing runs yet.

        `order`: the turn. `answer`: makes the response of a turn with text. `writer`: streams the turn instead; None
        answers it whole.
        """
        super().__init__()
        self._gateway = gateway
        self._order = order
        self._answer = answer
        self._writer = writer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        loop = asyncio.get_running_loop()
        feed = EventFeed(loop)
        try:
            future = self._gateway.submit(self._order, feed.push if self._writer else _ignore)
        except GovError as error:
            await self._refuse(error)(scope, receive, send)
            return
        work = asyncio.wrap_future(future)
        leaving = asyncio.create_task(_disconnected(receive))
        run = self._stream(work, feed, send) if self._writer else self._whole(work, scope, receive, send)
        running = asyncio.create_task(run)
        try:
            await asyncio.wait({running, leaving}, return_when=asyncio.FIRST_COMPLETED)
            if running.done():
                running.result()
            else:
                self._give_up(future, "disconnected")
        except _Gone as gone:
            self._give_up(future, gone.why)
        except asyncio.CancelledError:
            self._give_up(future, "connection ended")
            raise
        finally:
            for task in (running, leaving):
                task.cancel()
            await asyncio.gather(running, leaving, return_exceptions=True)
            if work.done() and not work.cancelled():
                work.exception()  # seen, so that the loop does not complain about it

    def _give_up(self, future: Future[TurnReport], why: str) -> None:
        log_event(
            "client gone, turn cancelled", tenant=self._order.key.tenant, session=self._order.key.session,
            turn_id=self._order.turn_id, why=why,
        )  # fmt: skip
        self._gateway.abandon(self._order, future)

    def _refuse(self, error: GovError) -> Response:
        return self._with_ids(failure_of_error(error).response())

    def _with_ids(self, response: Response) -> Response:
        response.headers["X-Turn-Id"] = self._order.turn_id
        response.headers["X-Session-Id"] = self._order.key.session
        return response

    async def _outcome(self, work: asyncio.Future[TurnReport]) -> TurnReport | GovError:
        """The turn's end, whichever it is."""
        guard_s = self._gateway.turn_s_max(self._order) + self._order.open_s_max + GUARD_S
        try:
            async with asyncio.timeout(guard_s):
                return await asyncio.shield(work)
        except TimeoutError:
            return TurnTimeoutError(f"The turn gave no sign of life for {guard_s:.0f} s and was given up.")
        except GovError as error:
            return error
        except asyncio.CancelledError:
            if work.cancelled():
                return TurnCancelledError("The turn was cancelled before it began.")
            raise
        except Exception as error:
            logging.getLogger(__name__).exception("turn failed")
            return InternalError(f"The turn failed inside the service ({type(error).__name__}).")

    async def _whole(self, work: asyncio.Future[TurnReport], scope: Scope, receive: Receive, send: Send) -> None:
        end = await self._outcome(work)
        if isinstance(end, GovError):
            response = self._refuse(end)
        elif end.has_answer:
            response = self._with_ids(self._answer(end))
        else:
            response = self._with_ids(failure_of_report(end).response())
        await _bounded(response(scope, receive, send))

    async def _stream(self, work: asyncio.Future[TurnReport], feed: EventFeed, send: Send) -> None:
        """Sends events as they come. Headers wait for the first of them, so that a refusal keeps its status."""
        assert self._writer is not None
        end = asyncio.ensure_future(self._outcome(work))
        end.add_done_callback(lambda _: feed.wake())
        stream = _EventStream(send, self._order)
        try:
            while not end.done():
                events = await feed.take(KEEP_ALIVE_S)
                if feed.overflowed:
                    raise _Gone("reads too slowly")
                data = KEEP_ALIVE if events is None else b"".join(self._writer.event(event) for event in events)
                if data:
                    await stream.write(data)
            await self._finish(stream, end.result(), feed)
        finally:
            end.cancel()

    async def _finish(self, stream: _EventStream, end: TurnReport | GovError, feed: EventFeed) -> None:
        assert self._writer is not None
        rest = b"".join(self._writer.event(event) for event in feed.drain())
        if rest:
            await stream.write(rest)
        failure: Failure | None = None
        if isinstance(end, GovError):
            failure = failure_of_error(end)
        elif not end.has_answer and end.outcome is not Outcome.ANSWERED:
            failure = failure_of_report(end)
        if failure is not None and not stream.started:
            await stream.answer(self._with_ids(failure.response()))
            return
        if failure is not None:
            await stream.write(self._writer.failure(failure))
        else:
            assert isinstance(end, TurnReport)
            await stream.write(self._writer.report(end))
        await stream.close()


class _EventStream:
    """The sending half of one `text/event-stream` response."""

    def __init__(self, send: Send, order: TurnOrder) -> None:
        self._send = send
        self._order = order
        self.started = False

    async def write(self, data: bytes) -> None:
        """Sends, starting the response with the first bytes."""
        if not self.started:
            self.started = True
            headers = {
                "content-type": "text/event-stream; charset=utf-8",
                "cache-control": "no-store",
                "x-accel-buffering": "no",
                "x-turn-id": self._order.turn_id,
                "x-session-id": self._order.key.session,
            }
            raw = [(key.encode(), value.encode()) for key, value in headers.items()]
            await _bounded(self._send({"type": "http.response.start", "status": 200, "headers": raw}))
        await _bounded(self._send({"type": "http.response.body", "body": data, "more_body": True}))

    async def close(self) -> None:
        """Ends the body."""
        await _bounded(self._send({"type": "http.response.body", "body": b"", "more_body": False}))

    async def answer(self, response: Response) -> None:
        """Sends an ordinary response instead of a stream."""

        async def nothing() -> Message:
            return {"type": "http.disconnect"}

        await _bounded(response({"type": "http"}, nothing, self._send))


async def _bounded(sending: Awaitable[None]) -> None:
    try:
        async with asyncio.timeout(WRITE_S_MAX):
            await sending
    except TimeoutError:
        raise _Gone("does not read") from None


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _ignore(event: TurnEvent) -> None:
    del event
