"""What child processes write to their standard error, read by one thread for all of them and handed on in pieces.

The service's own descriptor is not theirs to have: what they write would be in its log without a bound and without a
name, and once that file is larger than `session_file_size` a server's next line would end it (SIGXFSZ).
"""

from __future__ import annotations

import contextlib
import logging
import os
import selectors
import threading
from collections.abc import Callable

__all__ = ["StderrReader"]

_log = logging.getLogger(__name__)
#: One piece. A pipe holds 64 KiB; a writer is never kept waiting for longer than a piece takes to be handed on.
_PIECE_BYTES = 8_192


class StderrReader:
    """Reads pipes until their end and closes them. Thread-safe; its thread starts with the first pipe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        # All below under `_lock`; the selector itself is touched by the reading thread alone.
        self._new: list[tuple[int, Callable[[str], None]]] = []
        self._wake = -1
        self._closed = False

    def add(self, fd: int, sink: Callable[[str], None]) -> None:
        """Takes a descriptor over. `sink` gets its text on the reading thread and must not block.

        Raises OSError or RuntimeError where the thread cannot be started; the descriptor is closed then, too.
        """
        with self._lock:
            if self._closed:
                os.close(fd)
                return
            if self._wake < 0:
                try:
                    self._wake = self._begin()
                except BaseException:
                    os.close(fd)
                    raise
            self._new.append((fd, sink))
            os.write(self._wake, b".")

    def close(self) -> None:
        """Ends the thread; what was not read by now is lost. Idempotent."""
        with self._lock:
            self._closed = True
            if self._wake >= 0:
                os.close(self._wake)
                self._wake = -1

    def _begin(self) -> int:
        """Starts the reading thread; returns what it is woken with."""
        with contextlib.ExitStack() as undo:
            selector = undo.enter_context(selectors.DefaultSelector())
            wake_r, wake_w = os.pipe()
            undo.callback(os.close, wake_r)
            undo.callback(os.close, wake_w)
            selector.register(wake_r, selectors.EVENT_READ)
            threading.Thread(target=self._run, args=(wake_r, selector), name="gov-stderr", daemon=True).start()
            undo.pop_all()
        return wake_w

    def _run(self, wake: int, selector: selectors.BaseSelector) -> None:
        with selector:
            while True:
                for key, _ in selector.select():
                    if key.fd == wake:
                        if not self._admit(wake, selector):
                            return
                    elif not self._read(key.fd, key.data):
                        selector.unregister(key.fd)
                        os.close(key.fd)

    def _admit(self, wake: int, selector: selectors.BaseSelector) -> bool:
        """Takes in what is new. False, with everything closed, once nobody wants to hear more."""
        if os.read(wake, 512):
            with self._lock:
                new, self._new = self._new, []
            for fd, sink in new:
                selector.register(fd, selectors.EVENT_READ, sink)
            return True
        for key in list(selector.get_map().values()):
            os.close(key.fd)
        with self._lock:
            new, self._new = self._new, []
        for fd, _ in new:
            os.close(fd)
        return False

    @staticmethod
    def _read(fd: int, sink: Callable[[str], None]) -> bool:
        with contextlib.suppress(OSError):
            if piece := os.read(fd, _PIECE_BYTES):
                try:
                    sink(piece.decode(errors="replace"))
                except Exception:
                    _log.exception("What a child process wrote could not be handed on")
                return True
        return False
