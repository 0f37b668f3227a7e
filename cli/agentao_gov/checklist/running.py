"""What a walk has running, so that Ctrl-C ends it although other threads are in the middle of using it."""

from __future__ import annotations

import threading
from typing import Protocol

__all__ = ["Endable", "Running", "WalkOverError"]


class Endable(Protocol):
    """Something with processes or files."""

    def end(self) -> None:
        """Ends it; may be called again, from any thread. What has not begun by then never begins."""


class WalkOverError(Exception):
    """Raised in a lane when it wants to start something after the walk was ended; unwinds that lane."""


class Running:
    """Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        #: Everything that was started, ended or not; guarded by `_lock`. A dozen entries.
        self._things: list[Endable] = []
        #: Whether `end` was called; guarded by `_lock`.
        self._over = False

    def add(self, thing: Endable) -> None:
        """Before it starts. Raises WalkOverError once the walk is over."""
        with self._lock:
            over = self._over
            if not over:
                self._things.append(thing)
        if over:
            thing.end()
            raise WalkOverError

    def end(self) -> None:
        """Ends everything, now and for the future. Blocks until the processes are gone."""
        with self._lock:
            self._over = True
            things = list(self._things)
        for thing in reversed(things):
            thing.end()
