"""Threads for calls that block, apart by what they are for, and shared fairly between tenants.

asyncio's own pool is one queue of a few threads without an end: 400 lists of one tenant kept every other tenant's
cancel waiting for a minute. Here no kind of call waits behind another kind, and no tenant behind another's queue.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TypeVar

from agentao_gov.errors import QueueFullError

_T = TypeVar("_T")

#: Calls of one tenant that run at once on each executor, so that one tenant never has all its threads.
RUNNING_MAX = 2
#: Calls of one tenant that wait for that; further ones are refused. Waiting costs nothing, and who waits asks no more.
WAITING_MAX = 256
#: How long a place rests after a call, in times of the processor time that the call took: then one tenant's calls, all
#: of which hold the interpreter's lock, take at most a fifth of it.
REST_FACTOR = 9.0
#: However little and however much it took. A request that asks for next to nothing costs the event loop 2 ms: with this
#: one tenant asks for a hundred of a kind in a second, and a page that polls never meets it.
REST_S_MIN, REST_S_MAX = 0.02, 2.0


@dataclass(slots=True)
class _Share:
    """One tenant's part. Used on the event loop alone."""

    running: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(RUNNING_MAX))
    waiting: int = 0


class TenantExecutor:
    """A few threads for one kind of call. Used on the event loop alone; its calls run on its threads."""

    def __init__(self, name: str, threads: int) -> None:
        """`name`: of the threads. `threads`: started as they are needed."""
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix=f"gov-{name}")
        #: By tenant: as many as have keys.
        self._shares: dict[str, _Share] = {}

    async def run(self, tenant: str, call: Callable[..., _T], *args: object) -> _T:
        """The answer of `call(*args)`; raises what it raises, or QueueFullError where the tenant asks too much at once.

        A caller that leaves does not end a call that runs: its thread is the tenant's until it returns.
        """
        share = self._shares.setdefault(tenant, _Share())
        if share.waiting >= WAITING_MAX:
            raise QueueFullError(
                f"{WAITING_MAX + RUNNING_MAX} such requests of tenant {tenant!r} are open already.",
                outside="Too many requests of this kind are open already.",
                retry_after_s=1.0,
            )
        share.waiting += 1
        try:
            await share.running.acquire()
        finally:
            share.waiting -= 1
        loop = asyncio.get_running_loop()

        def timed() -> _T:
            began_s = time.thread_time()
            try:
                return call(*args)
            finally:
                used_s = time.thread_time() - began_s
                rest_s = min(REST_S_MAX, max(REST_S_MIN, used_s * REST_FACTOR))
                with suppress(RuntimeError):  # the loop has ended before the call
                    loop.call_soon_threadsafe(loop.call_later, rest_s, share.running.release)

        try:
            work = self._threads.submit(timed)
        except BaseException:
            share.running.release()
            raise
        return await asyncio.shield(_seen(asyncio.wrap_future(work)))

    def close(self) -> None:
        """Forgets what waits and leaves what runs: nobody is left to hear of it."""
        self._threads.shutdown(wait=False, cancel_futures=True)


def _seen(work: asyncio.Future[_T]) -> asyncio.Future[_T]:
    """The same; the loop does not complain about an error that nobody waited for."""
    work.add_done_callback(lambda done: done.cancelled() or done.exception())
    return work


@dataclass(frozen=True, slots=True)
class Executors:
    """One for each kind of call that blocks."""

    #: Lists, and heads of sessions on disk.
    reads: TenantExecutor = field(default_factory=lambda: TenantExecutor("reads", 4))
    #: Cancels: some microseconds each, unless the pool itself is in trouble.
    cancels: TenantExecutor = field(default_factory=lambda: TenantExecutor("cancels", 4))
    #: A delete waits for the end of the session's turn, up to 5 s.
    deletes: TenantExecutor = field(default_factory=lambda: TenantExecutor("deletes", 4))
    #: Status and metrics, which measure processes and ask the ledger.
    observing: TenantExecutor = field(default_factory=lambda: TenantExecutor("observing", 4))

    def close(self) -> None:
        """Ends them all, without waiting."""
        for executor in (self.reads, self.cancels, self.deletes, self.observing):
            executor.close()
