"""Lets sessions rest a moment after their last turn: their hosts keep less memory, and are found as quickly."""

from __future__ import annotations

import functools
import logging
from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from agentao_gov.pool.types import SessionState

if TYPE_CHECKING:
    from agentao_gov.pool.engine import Engine
    from agentao_gov.pool.entries import Entry
    from agentao_gov.pool.keeper import Resident

__all__ = ["Rests"]

_log = logging.getLogger(__name__)

#: After the end of a turn. A conversation whose next message comes sooner pays nothing.
REST_AFTER_S = 1.0
#: Sessions that stay awake at once, however little time has passed: when 500 of 200 KB each came in two seconds the
#: process grew to 268 MB, with this to 181. As many as may be busy by default, so that those asked over and over do.
AWAKE_MAX = 64
#: So many more, and they are brought down: memory is given back once for all of them, at a millisecond or two.
AWAKE_SLACK = 16
#: Sessions that one job lets rest, 3 ms each with 200 KB: closes wait behind a job.
_BATCH = 32


class Rests:
    """Who is due when. Each session in memory stands here once at most, however many turns it has."""

    def __init__(self, engine: Engine, give_back: Callable[[], object]) -> None:
        """`give_back` returns freed pages to the machine."""
        self._engine = engine
        self._give_back = give_back
        #: Sessions that had a turn, about in the order in which they are due; under the engine's lock.
        self._due: deque[tuple[float, Resident]] = deque()
        #: Those among them that may have memory to give up; under the engine's lock.
        self._heavy = 0
        #: A job that brings them down to `AWAKE_MAX` is under way; under the engine's lock.
        self._relieving = False
        #: Sessions on their way to rest; under the engine's lock.
        self._going = 0

    @property
    def awake(self) -> int:
        """How many keep their messages ready, or their memory has not been given back yet. Under the engine's lock."""
        return len(self._due) + self._going

    def note(self, resident: Resident, now: float) -> None:
        """A turn of the session has ended. Under the engine's lock; takes a fraction of a microsecond."""
        if not resident.awaits_rest:
            self._put(resident, now + REST_AFTER_S)
            if self._heavy > AWAKE_MAX + AWAKE_SLACK and not self._relieving:
                self._relieving = True
                self._engine.closers.submit(self._relieve)

    def look(self, now: float) -> None:
        """Lets those rest that nobody has asked since; the work is done on the closers' threads."""
        engine = self._engine
        tired: list[Resident] = []
        with engine.lock:
            while self._due and self._due[0][0] <= now:
                resident = self._pop()
                entry = self._idle_entry(resident)
                if entry is None:
                    continue  # it is closing, or its turn's end will note it again
                if entry.idle_since + REST_AFTER_S > now:
                    self._put(resident, entry.idle_since + REST_AFTER_S)
                else:
                    tired.append(resident)
            self._going += len(tired)
        for n in range(0, len(tired), _BATCH):
            engine.closers.submit(functools.partial(self._rest, tired[n : n + _BATCH]))

    def _relieve(self) -> None:
        """Lets the longest idle ones rest, one after the other, until no more than `AWAKE_MAX` are awake."""
        try:
            while (batch := self._excess()) is not None:
                self._rest(batch)
        except BaseException:
            with self._engine.lock:
                self._relieving = False  # or nobody would ever be asked to again
            raise

    def _excess(self) -> list[Resident] | None:
        """Who is to rest before its time; None: there are few enough."""
        with self._engine.lock:
            if self._heavy <= AWAKE_MAX:
                self._relieving = False
                return None
            batch: list[Resident] = []
            while self._heavy > AWAKE_MAX and len(batch) < _BATCH:
                resident = self._pop()
                if self._idle_entry(resident) is not None:
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

    def _idle_entry(self, resident: Resident) -> Entry | None:
        entry = self._engine.core.table.entries.get(resident.spec.key)
        return entry if entry is not None and entry.state is SessionState.IDLE else None

    def _rest(self, residents: Sequence[Resident]) -> None:
        gave_up = [self._gave_up(resident) for resident in residents]
        try:
            if any(gave_up):
                self._give_back()
        finally:
            with self._engine.lock:
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
