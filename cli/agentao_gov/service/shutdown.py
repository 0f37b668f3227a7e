"""When the service goes down, and what it ends with: the pool walks the shutdown ladder, this begins and steps it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import threading
from typing import TYPE_CHECKING

from agentao_gov.monitor.logs import log_event
from agentao_gov.pool.ladder import RungTimes
from agentao_gov.process.supervision import RESTART_EXIT, is_guarded

if TYPE_CHECKING:
    from agentao_gov.service.gateway import Gateway

#: Between looks at how many turns are stuck.
_STUCK_LOOK_S = 1.0


class ShutdownWalk:
    """The way down of one process. On the event loop; `signalled` is its signal handler."""

    def __init__(self, gateway: Gateway, times: RungTimes) -> None:
        """`times`: the seconds of each rung, and of all together."""
        self._gateway = gateway
        self._times = times
        # Without a warden nobody would start it again; then `/readyz` alone asks for a replacement.
        self._guarded = is_guarded()
        self._signals = 0
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
        self._signals += 1
        log_event("signal", logging.WARNING, signal=signal.Signals(signum).name, count=self._signals)
        if self._begun.is_set():
            self._gateway.pool.next_rung()
        self._begun.set()

    async def walk(self) -> None:
        """Waits for the first signal, or for too many stuck turns; returns when the pool has gone down to the end."""
        while not self._begun.is_set():
            self._look_at_stuck_turns()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._begun.wait(), _STUCK_LOOK_S)
        gone = asyncio.Event()
        loop = asyncio.get_running_loop()

        def go_down() -> None:
            try:
                self._gateway.pool.close(self._times)
            finally:
                with contextlib.suppress(RuntimeError):  # the loop has ended before the ladder
                    loop.call_soon_threadsafe(gone.set)

        # On a thread of its own: the way down must not wait behind requests for one of asyncio's few threads.
        threading.Thread(target=go_down, name="gov-shutdown", daemon=True).start()
        await gone.wait()

    def _look_at_stuck_turns(self) -> None:
        stats = self._gateway.pool.stats()
        stuck_max = self._gateway.deployment.pool.max_stuck
        if self._guarded and (stats.needs_replacement(stuck_max) or stats.is_replaced_unnoticed):
            stuck = {name: tenant.stuck for name, tenant in stats.tenants.items() if tenant.stuck}
            log_event("too many turns are stuck, restarting", logging.ERROR, stuck=sum(stuck.values()), tenants=stuck)
            self._restart = True
            self._begun.set()
