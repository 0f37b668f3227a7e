"""Daemon threads of our own: a turn that hangs must neither keep the process alive nor take a shared pool's thread.

`concurrent.futures` joins its threads at exit, and `asyncio.to_thread` has min(32, cores + 4) of them for the whole
process: six hung turns would freeze a two-core machine.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable
from contextlib import suppress

_log = logging.getLogger(__name__)

#: An idle thread ends after this time; a burst must not leave its threads behind for ever.
_IDLE_S = 20.0


class DaemonThreads:
    """Runs jobs on up to `limit` daemon threads, first come first served."""

    def __init__(self, name: str, limit: int) -> None:
        self._name = name
        self._jobs: queue.SimpleQueue[Callable[[], object]] = queue.SimpleQueue()
        self._lock = threading.Lock()
        #: Under `_lock`.
        self._limit = limit
        #: Threads there are; under `_lock`.
        self._threads = 0
        #: Jobs queued or running; under `_lock`. More than threads: one more thread is due.
        self._pending = 0

    @property
    def threads(self) -> int:
        """How many threads there are now."""
        with self._lock:
            return self._threads

    def allow(self, limit: int) -> None:
        """Sets how many threads there may be, and starts those that are due."""
        with self._lock:
            self._limit = limit
            due = min(limit, self._pending) - self._threads
            self._threads += max(0, due)
        for _ in range(due):
            self._start()

    def submit(self, job: Callable[[], object]) -> None:
        """Queues a job; returns at once."""
        with self._lock:
            self._pending += 1
            grow = self._pending > self._threads and self._threads < self._limit
            self._threads += grow
        self._jobs.put(job)
        if grow:
            self._start()

    def _start(self) -> None:
        threading.Thread(target=self._work, name=self._name, daemon=True).start()

    def _work(self) -> None:
        while True:
            job = self._next()
            if job is None:
                return
            try:
                job()
            except Exception:
                _log.exception("A %s job failed", self._name)
            finally:
                with self._lock:
                    self._pending -= 1

    def _next(self) -> Callable[[], object] | None:
        with suppress(queue.Empty):
            return self._jobs.get(timeout=_IDLE_S)
        with self._lock:
            # A job may have come between the time-out and here: it counts as pending, and needs this thread.
            if self._pending < self._threads:
                self._threads -= 1
                return None
        return self._jobs.get()
