"""Walks the shutdown ladder of `pool/ladder.py`: performs each rung as it is entered, and tells the log."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from agentao_gov.clock import SYSTEM_CLOCK, Clock
from agentao_gov.monitor.logs import log_event
from agentao_gov.pool.ladder import Ladder, Rung, RungTimes
from agentao_gov.pool.types import PoolStats, SessionState
from agentao_gov.process.supervision import RESTART_EXIT, is_guarded

if TYPE_CHECKING:
    from agentao_gov.service.gateway import Gateway

__all__ = ["ShutdownWalk"]

#: Between looks at whether a rung's work is done: short against every rung, long against a look (some 10 µs).
_LOOK_S = 0.02
#: Between looks at how many turns are stuck.
_STUCK_LOOK_S = 1.0


class ShutdownWalk:
    """The way down of one process. On the event loop; `signalled` is its signal handler."""

    def __init__(self, gateway: Gateway, times: RungTimes, clock: Clock = SYSTEM_CLOCK) -> None:
        pool = gateway.pool
        self._gateway = gateway
        # Without a warden nobody would start it again; then `/readyz` alone asks for a replacement.
        self._guarded = is_guarded()
        self._clock = clock
        self._ladder = Ladder(times)
        self._enter: dict[Rung, Callable[[], Any]] = {
            Rung.LAME_DUCK: pool.begin_lame_duck,
            Rung.DRAINING: pool.begin_drain,
            Rung.CANCELLING: pool.cancel_running,
            Rung.CLOSING: pool.close_all,
            Rung.KILLING: pool.kill_all,
        }
        #: Rungs entered and not yet performed, in order.
        self._due: asyncio.Queue[Rung] = asyncio.Queue()
        self._first_signal: int | None = None
        #: The way down began because too many turns are stuck: whoever supervises starts a fresh process.
        self._restart = False
        self._begun = asyncio.Event()

    @property
    def exit_code(self) -> int:
        """130 or 143, by the first signal; `RESTART_EXIT` when the service replaces itself; else 0."""
        if self._first_signal is not None:
            return 128 + self._first_signal
        return RESTART_EXIT if self._restart else 0

    def signalled(self, signum: int) -> None:
        """The first signal begins the way down, each further one ends the present rung."""
        self._first_signal = self._first_signal or signum
        log_event("signal", logging.WARNING, signal=signal.Signals(signum).name, count=self._ladder.signals + 1)
        self._note(self._ladder.signal(self._clock.monotonic()))
        self._begun.set()

    def replace_itself(self, stuck: int) -> None:
        """Begins the way down because each stuck turn holds a thread and a slot that only a new process gives back."""
        if self._ladder.rung is not Rung.SERVING:
            return
        log_event("too many turns are stuck, restarting", logging.ERROR, stuck=stuck)
        self._restart = True
        self._note(self._ladder.signal(self._clock.monotonic()))
        self._begun.set()

    def _note(self, entered: list[Rung]) -> None:
        for rung in entered:
            self._due.put_nowait(rung)

    async def walk(self) -> None:
        """Waits for the first signal, then goes down to the end."""
        while not self._begun.is_set():
            stuck = self._gateway.pool.stats().sessions[SessionState.STUCK]
            if self._guarded and stuck >= self._gateway.deployment.pool.max_stuck:
                self.replace_itself(stuck)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._begun.wait(), _STUCK_LOOK_S)
        while True:
            while not self._due.empty():
                await self._perform(self._due.get_nowait())
            if self._ladder.rung is Rung.GONE:
                return
            await asyncio.sleep(_LOOK_S)
            if self._due.empty():
                busy, resident = _left(self._gateway.pool.stats())
                self._note(self._ladder.tick(self._clock.monotonic(), busy=busy, resident=resident))

    async def _perform(self, rung: Rung) -> None:
        stats = self._gateway.pool.stats()
        log_event(
            "shutdown rung", logging.WARNING, rung=rung.label, seconds=self._ladder.times.of(rung), busy=stats.busy,
            waiting=stats.queue_length, resident=stats.resident,
        )  # fmt: skip
        enter = self._enter.get(rung)
        if enter is None:
            return
        try:
            told = await asyncio.to_thread(enter)
        except Exception:
            # The way down goes on: the next rung is harder than this one.
            logging.getLogger(__name__).exception("rung %s failed", rung.label)
            return
        for what in told if isinstance(told, (list, tuple, set, frozenset)) else ():
            log_event("ended by shutdown", logging.WARNING, rung=rung.label, what=str(what))


def _left(stats: PoolStats) -> tuple[int, int]:
    """What may still end by itself: running turns, and sessions in memory. A stuck one never does."""
    opening = stats.sessions[SessionState.OPENING]
    return stats.busy + opening + stats.queue_length, stats.resident - stats.sessions[SessionState.STUCK]
