"""The watch over one of several workers: it is asked for a sign of life, and ended when none comes.

The warden above `serve` hears the parent alone, which serves nothing and never hangs. A worker whose interpreter lock
is held by a C call cannot answer its parent either, so the parent does for it what the warden does for a lone service.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
from multiprocessing.connection import Connection

from agentao_gov.monitor.logs import log_event
from agentao_gov.process.supervision import BEAT_S, WardenPlan

__all__ = ["Vigil"]

#: Before its first answer a worker has so many times the patience: it answers only when all is imported, which many
#: workers on few cores do at once. One that never gets there is ended in the end, and replaced.
_START_FACTOR = 10


class Vigil:
    """One worker's signs of life. Used by the parent's main thread alone; times are monotonic."""

    def __init__(self, number: int, pid: int, line: Connection, now: float, plan: WardenPlan | None = None) -> None:
        """`line`: where the worker answers each message with one."""
        self._number = number
        self._pid = pid
        self._line = line
        self._plan = plan or WardenPlan()
        self._heard_at = self._asked_at = self._looked_at = now
        self._asked = False
        #: How long it may be silent.
        self._patience_s = self._plan.stale_s * _START_FACTOR
        #: When it was told to dump its stacks; None while it is well.
        self._told_at: float | None = None

    def look(self, now: float) -> None:
        """Asks, listens, and ends a worker that has been silent for too long. Call it often; never waits."""
        if now - self._looked_at > BEAT_S:
            # This process did not run either, as in a paused container: nobody knows what it would have heard.
            self._heard_at += now - self._looked_at
        self._looked_at = now
        with contextlib.suppress(EOFError, OSError):  # it is dead: seen by its exit code
            self._exchange(now)
        if self._told_at is None and now - self._heard_at >= self._patience_s:
            self._told_at = now
            log_event("worker hung, ending it", logging.CRITICAL, worker=self._number, silent_s=self._patience_s)
            self._end(signal.SIGABRT)
        elif self._told_at is not None and now - self._told_at >= self._plan.dump_s:
            self._end(signal.SIGKILL)

    def _exchange(self, now: float) -> None:
        while self._line.poll(0):
            self._line.recv()
            self._heard_at, self._asked = now, False
            self._patience_s = self._plan.stale_s
        if not self._asked and now - self._asked_at >= BEAT_S:
            self._line.send(b"ping")
            self._asked, self._asked_at = True, now

    def _end(self, signum: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._pid, signum)
