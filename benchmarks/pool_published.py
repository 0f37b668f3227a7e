"""The session pool that agentao's developer guide publishes (chapter 6.7, "Pattern B"), rebuilt from its description.

Written anew from what the guide says of it, with its decisions kept: one dictionary by session id, one lock around
everything, eviction before the look-up, idle time counted from `get`, agents built and closed under the lock.
`benchmarks/pool.py` measures beside it; `tests/pool/test_pool_published_sample.py` shows what it does wrong.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

__all__ = ["PublishedPool"]


class Closable(Protocol):
    """An agent, as far as this pool is concerned."""

    def close(self) -> None: ...


A = TypeVar("A", bound=Closable)


@dataclass
class _Entry(Generic[A]):
    agent: A
    last_used: float
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)


class PublishedPool(Generic[A]):
    """`get` a session's agent and its lock, run the turn yourself."""

    def __init__(self, build: Callable[[str], A], *, max_sessions: int, ttl_s: float) -> None:
        self._build = build
        self._max_sessions = max_sessions
        self._ttl_s = ttl_s
        self._lock = asyncio.Lock()
        self.entries: dict[str, _Entry[A]] = {}

    def entry(self, agent: A) -> _Entry[A]:
        """An entry used just now."""
        return _Entry(agent, time.monotonic())

    async def get(self, session_id: str) -> tuple[A, asyncio.Lock]:
        """The session's agent, built when there is none."""
        async with self._lock:
            now = time.monotonic()
            for key in [key for key, entry in self.entries.items() if now - entry.last_used > self._ttl_s]:
                self.entries.pop(key).agent.close()
            while len(self.entries) >= self._max_sessions:
                oldest = min(self.entries, key=lambda key: self.entries[key].last_used)
                self.entries.pop(oldest).agent.close()
            if session_id not in self.entries:
                self.entries[session_id] = self.entry(self._build(session_id))
            entry = self.entries[session_id]
            entry.last_used = now
            return entry.agent, entry.lock
