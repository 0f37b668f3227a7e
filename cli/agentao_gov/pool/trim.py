"""Gives the memory of evicted sessions back to the machine: without this an eviction for memory frees nothing.

Agents are cyclic garbage, and glibc keeps freed pages: 50 closed agents were all alive until a collection, and 144 MB
stayed in use until `malloc_trim`, which left 61 (agentao 0.5.17).
"""

from __future__ import annotations

import ctypes
import gc
import threading
from collections.abc import Callable
from typing import Any

__all__ = ["Trimmer"]

#: A full collection with 500 filled sessions stops the interpreter for some 100 ms: not more often than this.
_APART_S = 15.0


class Trimmer:
    """Collects and trims, at most every fifteen seconds. Thread-safe."""

    def __init__(self, monotonic: Callable[[], float]) -> None:
        self._monotonic = monotonic
        self._lock = threading.Lock()
        self._last_at = float("-inf")
        self._trim = _malloc_trim()

    def __call__(self) -> bool:
        """True if it did; False if it did not long ago."""
        with self._lock:
            now = self._monotonic()
            if now - self._last_at < _APART_S:
                return False
            self._last_at = now
        gc.collect()
        self.give_back()
        return True

    def give_back(self) -> None:
        """Trims alone: what was freed without cycles, as compressed conversations were. Takes a millisecond or two."""
        if self._trim is not None:
            self._trim(0)


def _malloc_trim() -> Callable[[int], Any] | None:
    """glibc's; other C libraries have none. ctypes gives the interpreter lock back during the call."""
    try:
        return ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError):
        return None
