"""What child processes write to their standard error: read by one thread for all, bounded, made harmless and named.

The service's own descriptor is not theirs to have: what they write would be in its log without a bound and without a
name, and once that file is larger than `session_file_size` a server's next line would end it (SIGXFSZ).
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import selectors
import sys
import threading
from collections.abc import Callable, Mapping
from typing import Any

from agentao_gov.clock import SYSTEM_CLOCK, Allowance, Clock

_log = logging.getLogger(__name__)
#: One piece. A pipe holds 64 KiB; a writer is never kept waiting for longer than a piece takes to be handed on.
_PIECE_BYTES = 8_192
#: A traceback is some thousand characters.
_CHARS_MAX = 8_000
#: Records a minute: one failing turn after the other stays readable, a flood does not fill the disk.
_RECORDS_MAX, _PERIOD_S = 60, 60.0
#: What steers a terminal or begins a line for some reader: everything of that kind but tab and line feed.
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


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


def _somebody_logs() -> bool:
    """Whether a service's log is set up; a command at a terminal has none."""
    logger: logging.Logger | None = _log
    while logger is not None:
        if any(not isinstance(handler, logging.NullHandler) for handler in logger.handlers):
            return True
        logger = logger.parent
    return False


def _harmless(text: str) -> str:
    return _CONTROL.sub("\N{REPLACEMENT CHARACTER}", text.replace("\r\n", "\n"))


class RelayedLog:
    """Passes on what one child process writes and logs, at most 60 records a minute. Thread-safe.

    `writer` says who that is: "the process of session acme/s1", "MCP server files".
    """

    def __init__(self, writer: str, clock: Clock = SYSTEM_CLOCK) -> None:
        self._writer = writer
        self._allowance = Allowance(_RECORDS_MAX, _PERIOD_S, clock)

    def error_output(self, text: str) -> None:
        """Passes on a piece of its standard error. Where nobody logs, it goes to our own."""
        if _somebody_logs():
            if text.strip():
                self.handle({"level": logging.WARNING, "text": text.strip("\n")})
            return
        dropped, allowed = self._allowance.admit()
        if dropped:
            sys.stderr.write(f"In {self._writer}: {dropped} pieces more were not shown\n")
        if allowed:
            sys.stderr.write(_harmless(text))
            sys.stderr.flush()

    def handle(self, params: Mapping[str, Any]) -> None:
        """Passes on a record with a `level` and a `text`. Raises KeyError, TypeError or ValueError for what is none."""
        level = max(logging.WARNING, min(logging.ERROR, int(params["level"])))
        # Lines after the first are set off: none can pass for a record of the service itself.
        text = _harmless(str(params["text"])[:_CHARS_MAX]).replace("\n", "\n    ")
        dropped, allowed = self._allowance.admit()
        if dropped:
            _log.warning("In %s: %d records more were not logged", self._writer, dropped)
        if allowed:
            _log.log(level, "In %s: %s", self._writer, text)
