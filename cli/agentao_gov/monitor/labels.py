"""Keeps label sets finite: names that come from outside (a model's tool names, tenants) are kept up to a number."""

from __future__ import annotations

import threading
from collections.abc import Iterable

__all__ = ["OTHER", "LabelSet"]

#: What every name past the limit is counted under.
OTHER = "other"


class LabelSet:
    """The first `limit` names keep their own series, later ones share `other`. Thread-safe."""

    def __init__(self, limit: int, known: Iterable[str] = ()) -> None:
        self._limit = limit
        self._lock = threading.Lock()
        #: Guarded by `_lock`; only grows, up to `limit`.
        self._names = set(known)

    def __call__(self, name: str) -> str:
        """The label to count `name` under."""
        with self._lock:
            if name in self._names:
                return name
            if len(self._names) >= self._limit or len(name) > 128:
                return OTHER
            self._names.add(name)
            return name
