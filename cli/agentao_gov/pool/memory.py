"""What idle sessions weigh: they rest a moment after their last turn, and what they free is the machine's again.

A session at rest keeps its place in memory with its messages compressed. 500 sessions of 200 KB that come at once stay
below 200 MB in this way (`tests/pool/test_memory.py`).
"""

from __future__ import annotations

import ctypes
import functools
import gc
import logging
import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from agentao_gov.pool.residents import Resident

_log = logging.getLogger(__name__)

#: From the end of a turn to its session's rest. A conversation whose next message comes sooner pays nothing.
REST_AFTER_S = 1.0
#: Sessions that stay awake at once, however little time has passed: when 500 of 200 KB each came in two seconds the
#: process grew to 268 MB, with this to 181. As many as may be busy by default, so that those asked over and over do.
AWAKE_MAX = 64
#: With this many above `AWAKE_MAX` the longest idle rest: memory is given back once for all, at a millisecond or two.
AWAKE_SLACK = 16
#: Sessions that one job lets rest, 3 ms each with 200 KB: closes wait behind a job.
_BATCH = 32
#: A full collection with 500 filled sessions stops the interpreter for some 100 ms: not more often than this.
_COLLECT_APART_S = 15.0


class RestQueue:
    """Which session is to rest when. Each session in memory stands here once at most, however many turns it has."""

    def __init__(
        self,
        lock: threading.Lock,
        submit: Callable[[Callable[[], object]], None],
        idle_since: Callable[[Resident], float | None],
        give_back: Callable[[], object],
    ) -> None:
        """`lock`: the engine's; `submit` runs a job on a thread; `give_back` returns freed pages to the machine.

        `idle_since`: when the session's last turn ended, None while it is not idle; called under the lock.
        """
        self._lock = lock
        self._submit = submit
        self._idle_since = idle_since
        self._give_back = give_back
        #: Sessions that had a turn, about in the order in which they are due; under the lock.
        self._due: deque[tuple[float, Resident]] = deque()
        #: Those among them that may have memory to give up; under the lock.
        self._heavy = 0
        #: A job that brings them down to `AWAKE_MAX` is under way; under the lock.
        self._relieving = False
        #: Sessions on their way to rest; under the lock.
        self._going = 0

    @property
    def awake(self) -> int:
        """How many sessions do not rest, or rest with memory not yet given back. Call it under the lock."""
        return len(self._due) + self._going

    def note(self, resident: Resident, now: float) -> None:
        """Notes at `now` (monotonic seconds) that a turn of `resident` has ended. Call it under the lock."""
        if not resident.awaits_rest:
            self._put(resident, now + REST_AFTER_S)
            if self._heavy > AWAKE_MAX + AWAKE_SLACK and not self._relieving:
                self._relieving = True
                self._submit(self._relieve)

    def look(self, now: float) -> None:
        """Lets those sessions rest whose time has come at `now`; the work is done on the closers' threads."""
        tired: list[Resident] = []
        with self._lock:
            while self._due and self._due[0][0] <= now:
                resident = self._pop()
                idle_since = self._idle_since(resident)
                if idle_since is None:
                    continue  # it is closing, or its turn's end will note it again
                if idle_since + REST_AFTER_S > now:
                    self._put(resident, idle_since + REST_AFTER_S)
                else:
                    tired.append(resident)
            self._going += len(tired)
        for n in range(0, len(tired), _BATCH):
            self._submit(functools.partial(self._rest, tired[n : n + _BATCH]))

    def _relieve(self) -> None:
        """Lets the longest idle ones rest, one after the other, until no more than `AWAKE_MAX` are awake."""
        try:
            while (batch := self._excess()) is not None:
                self._rest(batch)
        except BaseException:
            with self._lock:
                self._relieving = False  # or nobody would ever be asked to again
            raise

    def _excess(self) -> list[Resident] | None:
        """Who is to rest before its time; None: there are few enough."""
        with self._lock:
            if self._heavy <= AWAKE_MAX:
                self._relieving = False
                return None
            batch: list[Resident] = []
            while self._heavy > AWAKE_MAX and len(batch) < _BATCH:
                resident = self._pop()
                if self._idle_since(resident) is not None:
                    batch.append(resident)
            self._going += len(batch)
            return batch

    def _put(self, resident: Resident, due_at: float) -> None:
        resident.awaits_rest = True
        self._heavy += not resident.light
        self._due.append((due_at, resident))

    def _pop(self) -> Resident:
        resident = self._due.popleft()[1]
        resident.awaits_rest = False
        self._heavy -= not resident.light
        return resident

    def _rest(self, residents: Sequence[Resident]) -> None:
        gave_up = [self._gave_up(resident) for resident in residents]
        try:
            if any(gave_up):
                self._give_back()
        finally:
            with self._lock:
                self._going -= len(residents)
                for resident, heavy in zip(residents, gave_up, strict=True):
                    # One that has been noted again meanwhile is counted as what it was.
                    if not resident.awaits_rest:
                        resident.light = not heavy

    def _gave_up(self, resident: Resident) -> bool:
        try:
            return resident.host.rest()
        except Exception:
            _log.exception("Session %s could not rest", resident.spec.key)
            return False


class Trimmer:
    """Gives the memory of evicted sessions back to the machine, at most every fifteen seconds. Thread-safe.

    Agents are cyclic garbage, and glibc keeps freed pages: 50 closed agents were all alive until a collection, and
    144 MB stayed in use until `malloc_trim`, which left 61 (agentao 0.5.17).
    """

    def __init__(self, monotonic: Callable[[], float]) -> None:
        self._monotonic = monotonic
        self._lock = threading.Lock()
        self._last_at = float("-inf")
        self._trim = _malloc_trim()

    def __call__(self) -> bool:
        """Collects and trims. False, and nothing done, within fifteen seconds of the last time."""
        with self._lock:
            now = self._monotonic()
            if now - self._last_at < _COLLECT_APART_S:
                return False
            self._last_at = now
        gc.collect()
        self.give_back()
        return True

    def give_back(self) -> None:
        """Trims without a collection, which suffices for conversations that were compressed. Takes 1-2 ms."""
        if self._trim is not None:
            self._trim(0)


def _malloc_trim() -> Callable[[int], Any] | None:
    """Returns glibc's function; other C libraries have none. ctypes gives the interpreter lock back during the call."""
    try:
        return ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError):
        return None
