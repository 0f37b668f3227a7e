"""Plays a plan to one client on the loop's clock, and knows when the client has gone."""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from collections.abc import Callable

from agentao_gov.simulator.plan import Plan
from agentao_gov.simulator.protocol import Exchange
from agentao_gov.simulator.truth import GroundTruth, RequestRecord


class Gate:
    """The simulated provider's capacity: so many at once, the rest wait in order."""

    def __init__(self, concurrency: int | None, queue_limit: int) -> None:
        self._free = math.inf if concurrency is None else concurrency
        self._queue_limit = queue_limit
        self._waiting: deque[Playback] = deque()

    @property
    def queued(self) -> int:
        return len(self._waiting)

    def enter(self, playback: Playback) -> bool:
        """Starts the playback now or later; False: no room to wait either."""
        if self._free >= 1:
            self._free -= 1
            playback.admitted()
        elif len(self._waiting) < self._queue_limit:
            self._waiting.append(playback)
        else:
            return False
        return True

    def leave(self, playback: Playback) -> None:
        """Gives the place back, or leaves the queue."""
        if not playback.has_place:
            if playback in self._waiting:
                self._waiting.remove(playback)
            return
        self._free += 1
        if self._waiting:
            self._free -= 1
            self._waiting.popleft().admitted()


class Playback:
    """One answer under way."""

    def __init__(self, exchange: Exchange, plan: Plan, record: RequestRecord, truth: GroundTruth, gate: Gate) -> None:
        self._exchange = exchange
        self.plan = plan
        self.record = record
        self._truth = truth
        self._gate = gate
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._index = 0
        self._head_sent = False
        self._over = False
        self.has_place = False
        #: Called once at the end, however it came.
        self.on_over: Callable[[Playback], None] = lambda _: None
        #: Called when the place is won; the server decides whether the plan is on hold first.
        self.on_admitted: Callable[[Playback], None] = lambda playback: playback.play()
        exchange.on_gone = self._gone

    def admitted(self) -> None:
        self.has_place = True
        self.on_admitted(self)

    def play(self) -> None:
        """Begins, now that nothing holds it."""
        if self._over:
            return
        if math.isinf(self.plan.hold_s):
            return
        self._at(self._loop.time() + self.plan.hold_s, self._write)

    def abort(self) -> None:
        """Resets the connection from our side."""
        if not self._over:
            self._exchange.drop()
            self._finish(gone=False)

    def _at(self, when: float, action: Callable[[float], None]) -> None:
        if when <= self._loop.time():
            action(when)
        else:
            self._timer = self._loop.call_at(when, action, when)

    def _write(self, now: float) -> None:
        """Writes every step that is due; absolute times, so that delays do not drift."""
        steps = self.plan.steps
        due = bytearray(b"" if self._head_sent or self._bare() else self._head())
        while self._index < len(steps):
            step = steps[self._index]
            if step.delay_s > 0:
                steps[self._index] = type(step)(0.0, step.data, step.tokens)
                if due:
                    self._exchange.send(bytes(due))
                self._timer = self._loop.call_at(now + step.delay_s, self._write, now + step.delay_s)
                return
            due += self._exchange.frame(step.data)
            self.record.completion_tokens += step.tokens
            self._index += 1
        self._last(bytes(due), now)

    def _last(self, due: bytes, now: float) -> None:
        match self.plan.end:
            case "end":
                self._exchange.finish(due)
                self._finish(gone=False)
            case "silence":
                self._exchange.send(due)
            case "drip":
                self._exchange.send(due)
                self._index = 0
                self._drip(now)
            case "drop":
                self._exchange.send(due)
                # A reset would overtake what is still in the send buffer: the client must see the tokens first.
                self._timer = self._loop.call_later(0.02 if due else 0.0, self.abort)

    def _drip(self, now: float) -> None:
        data = self.plan.drip_data
        self._exchange.send(self._exchange.frame(data[self._index : self._index + 1]))
        self._index = (self._index + 1) % len(data)
        when = now + self.plan.drip_interval_s
        self._timer = self._loop.call_at(when, self._drip, when)

    def _bare(self) -> bool:
        """A connection that is reset before the first byte has no head either."""
        return self.plan.end == "drop" and not self.plan.steps

    def _head(self) -> bytes:
        # The head of a delayed answer comes with its first data, as providers do it.
        steps = self.plan.steps
        if steps and steps[0].delay_s > 0 and self._index == 0:
            return b""
        plan = self.plan
        whole = len(steps) == 1 and plan.end == "end" and not plan.chunked
        self._head_sent = True
        self.record.first_byte_at = time.time()
        return self._exchange.start(
            plan.status, plan.content_type, length=len(steps[0].data) if whole else None, headers=plan.extra_headers
        )

    def _gone(self) -> None:
        self._finish(gone=True)

    def _finish(self, *, gone: bool) -> None:
        if self._over:
            return
        self._over = True
        if self._timer is not None:
            self._timer.cancel()
        self._truth.end(self.record, time.time(), plan=self.plan, gone=gone)
        self._gate.leave(self)
        self.on_over(self)
