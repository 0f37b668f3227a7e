"""The ordered way down as a pure machine: which rung is next, when, and how long it may last.

    serving → lame duck → draining → cancelling → closing → killing → gone

One budget for all. A rung ends when its time is over, when there is nothing left to wait for, or with another signal.
Time that the rungs before did not need goes to closing, which alone can use it: a polite MCP server takes 0.3 s to
end, a stubborn one 4 s. Nothing can take the last rung's time away.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

from agentao_gov.config.deployment import Server, Shutdown

_SERVER, _SHUTDOWN = Server(), Shutdown()
#: A zygote that is asked to end takes some milliseconds; it gets them also when the budget is used up.
_SHARED_S_MIN = 0.2


class Rung(IntEnum):
    """Where on the ladder; the number is the metric `shutdown_rung`."""

    SERVING = 0
    #: Not ready, still accepting: load balancers take the instance out.
    LAME_DUCK = 1
    #: New turns get 503, waiting ones are refused at once, idle sessions close, running turns may finish.
    DRAINING = 2
    #: Running turns are cancelled.
    CANCELLING = 3
    #: Sessions close.
    CLOSING = 4
    #: What is left is ended by force.
    KILLING = 5
    GONE = 6

    @property
    def label(self) -> str:
        """As it is written in status and log."""
        return self.name.lower()


@dataclass(frozen=True, slots=True)
class RungTimes:
    """Seconds of each rung; together at most `budget_s`."""

    lame_duck_s: float = _SHUTDOWN.lame_duck_s
    drain_s: float = _SHUTDOWN.drain_s
    cancel_s: float = _SHUTDOWN.cancel_s
    close_s: float = _SHUTDOWN.close_s
    kill_s: float = _SHUTDOWN.kill_s
    budget_s: float = _SERVER.shutdown_budget_s

    @property
    def total_s(self) -> float:
        """How long the way down may take."""
        steps_s = self.lame_duck_s + self.drain_s + self.cancel_s + self.close_s + self.kill_s
        return min(self.budget_s, steps_s)

    def of(self, rung: Rung) -> float:
        """A rung's own time."""
        return (0.0, self.lame_duck_s, self.drain_s, self.cancel_s, self.close_s, self.kill_s, 0.0)[rung]


class Ladder:
    """Steps down on signals and on time. Not thread-safe; every method returns the rungs entered, in order."""

    def __init__(self, times: RungTimes) -> None:
        self.times = times
        self.rung = Rung.SERVING
        #: When the first signal came; None while serving.
        self.started_at: float | None = None
        #: When the present rung ends by itself; None while serving and when gone.
        self.ends_at: float | None = None
        self.signals = 0

    def signal(self, now: float) -> list[Rung]:
        """A SIGTERM or SIGINT: one rung down, whatever the time."""
        self.signals += 1
        return self._enter(now) if self.rung is not Rung.GONE else []

    def tick(self, now: float, *, busy: int, resident: int) -> list[Rung]:
        """Time has passed. `busy`: turns that may still end by themselves; `resident`: sessions in memory."""
        entered: list[Rung] = []
        while self.ends_at is not None and (self.ends_at <= now or self._done(busy, resident)):
            entered += self._enter(now)
        return entered

    def shared_until(self, now: float) -> float:
        """Until when what the sessions share may take to end after the last rung: within the budget if any is left."""
        started_at = self.started_at if self.started_at is not None else now
        return max(now + _SHARED_S_MIN, min(now + self.times.kill_s, started_at + self.times.total_s))

    def _done(self, busy: int, resident: int) -> bool:
        """Whether the rung has nothing left to wait for. A lame duck waits for load balancers: only time ends it."""
        if self.rung in (Rung.DRAINING, Rung.CANCELLING):
            return busy == 0
        return self.rung in (Rung.CLOSING, Rung.KILLING) and resident == 0

    def _enter(self, now: float) -> list[Rung]:
        if self.started_at is None:
            self.started_at = now
        self.rung = Rung(self.rung + 1)
        self.ends_at = None if self.rung is Rung.GONE else self._end_of(self.rung, now, self.started_at)
        return [self.rung]

    def _end_of(self, rung: Rung, now: float, started_at: float) -> float:
        end = started_at + self.times.total_s
        later_s = sum(self.times.of(later) for later in Rung if later > rung)
        latest = max(now, end - later_s)
        if rung is Rung.CLOSING:
            return latest
        return min(now + self.times.of(rung), latest) if rung is not Rung.KILLING else now + self.times.of(rung)
