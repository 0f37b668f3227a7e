"""Watches one process: takes the picture that metrics, status and alerts share, once a second and at every scrape."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections import deque
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Protocol

from agentao_gov.clock import SYSTEM_CLOCK, Clock
from agentao_gov.governor.report import BudgetLine
from agentao_gov.governor.types import SessionKey
from agentao_gov.monitor.alerts import Alert, AlertRule, AlertStates
from agentao_gov.monitor.budgets import BudgetWatch
from agentao_gov.monitor.logs import log_event
from agentao_gov.monitor.measure import Measurement, Measurer
from agentao_gov.pool.ladder import Rung
from agentao_gov.pool.types import PoolStats, SessionInfo, SessionState

#: The shutdown ladder, bottom rung first; `shutdown_rung` is the index.
RUNGS = tuple(rung.label for rung in Rung)
#: A picture this old is good enough for a second reader: a page, a scrape and the alerts share one measurement.
FRESH_S = 0.05
#: Between looks of the watch itself. A session takes longer to open than memory takes to grow past a line.
INTERVAL_S = 1.0
#: Five minutes of looks: what fits into a sparkline.
HISTORY_MAX = 300
#: Memory a session means something once this many share the growth.
PROJECTION_SESSIONS_MIN = 10
#: Evictions before their ghost hits say anything about the pool's size.
GHOSTS_EVICTIONS_MIN = 20


@dataclass(frozen=True, slots=True)
class Observed:
    """The picture that metrics, status and alerts share: one moment of one process."""

    pool: PoolStats
    measurement: Measurement
    #: The rung's number, 0 is serving.
    rung: int
    threads_abandoned: int = 0
    budgets: tuple[BudgetLine, ...] = ()
    alerts: tuple[Alert, ...] = ()


class PoolView(Protocol):
    """What the monitor needs of a pool."""

    def stats(self) -> PoolStats: ...

    def sessions(self, tenant: str | None = None) -> list[SessionInfo]: ...


class Monitor:
    """Thread-safe. `start` begins the watch, `close` ends it; `observe` works with and without."""

    def __init__(
        self,
        pool: PoolView,
        budgets: BudgetWatch,
        rules: Iterable[AlertRule],
        *,
        planned_sessions: int | None = None,
        clock: Clock = SYSTEM_CLOCK,
        on_memory: Callable[[int], None] | None = None,
        not_ours: Collection[int] = (),
    ) -> None:
        """Nothing is watched before `start`.

        `pool`, `budgets`: what is looked at. `rules`: when alerts fire. `planned_sessions`: of the capacity plan, to
        project memory on; None projects nothing. `on_memory`: hears the total memory in bytes at every look, so that a
        pool can react to pressure. `not_ours`: child processes that are no part of the service, like a local model.
        """
        self._pool = pool
        self.budgets = budgets
        self._planned_sessions = planned_sessions
        self._clock = clock
        self._on_memory = on_memory
        self.measurer = Measurer(not_ours)
        self._lock = threading.Lock()
        #: Guarded by `_lock`.
        self._alerts = AlertStates(rules)
        #: The last picture; guarded by `_lock`.
        self._last: Observed | None = None
        #: Busy, waiting, resident, bytes of the last looks, for a page that was just opened; guarded by `_lock`.
        self._history: deque[tuple[int, int, int, int]] = deque(maxlen=HISTORY_MAX)
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begins to look once a second, on a thread of its own."""
        self._thread = threading.Thread(target=self._watch, name="gov-monitor", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Ends the watch."""
        self._stopping.set()
        if self._thread is not None:
            self._thread.join(timeout=5)

    def _watch(self) -> None:
        while not self._stopping.wait(INTERVAL_S):
            try:
                seen = self.observe(fresh_s=0.0)
                stats = seen.pool
                with self._lock:
                    self._history.append((stats.busy, stats.queue_length, stats.resident, seen.measurement.total_bytes))
                if self._on_memory is not None:
                    self._on_memory(seen.measurement.total_bytes)
            except Exception:
                # A look that fails (a store gone, /proc unreadable) must not end the watch.
                log_event("monitor look failed", logging.ERROR)
                logging.getLogger(__name__).debug("monitor look failed", exc_info=True)

    def observe(self, *, fresh_s: float = FRESH_S) -> Observed:
        """The picture, taken anew when the last one is older than `fresh_s`. Reads /proc and the ledger: blocks."""
        with self._lock:
            now = self._clock.monotonic()
            if self._last is not None and now - self._last.measurement.at < fresh_s:
                return replace(self._last, pool=self._pool.stats())
            seen = self._look(now)
            self._last = seen
        return seen

    def _look(self, now: float) -> Observed:
        stats = self._pool.stats()
        resident = [info for info in self._pool.sessions() if info.state is not SessionState.HIBERNATED]
        if stats.resident == 0 and stats.openings == 0:
            self.measurer.set_baseline()
        measurement = self.measurer.take(now, resident)
        with contextlib.suppress(Exception):
            self.budgets.refresh()
        seen = Observed(
            pool=stats,
            measurement=measurement,
            rung=RUNGS.index(stats.rung) if stats.rung in RUNGS else 0,
            threads_abandoned=stats.sessions.get(SessionState.STUCK, 0),
            budgets=self.budgets.lines(),
        )
        for turned in self._alerts.update(self._readings(seen), self._clock.time()):
            _tell(turned)
        return replace(seen, alerts=self._alerts.alerts())

    def _readings(self, seen: Observed) -> dict[str, float]:
        stats, m = seen.pool, seen.measurement
        readings: dict[str, float] = {
            "sessions": stats.resident,
            "mcp_processes": m.mcp_processes,
            "memory": m.total_bytes,
            "threads_abandoned": seen.threads_abandoned,
            "unsaved_sessions": stats.unsaved,
            "ledger": 0.0 if self.budgets.store_ok else 1.0,
        }
        if self._planned_sessions and len(m.session_bytes) >= PROJECTION_SESSIONS_MIN:
            each = sum(m.session_bytes.values()) / len(m.session_bytes)
            readings["session_memory"] = self.measurer.baseline_bytes + each * self._planned_sessions
        evicted = sum(stats.evictions.values())
        if evicted >= GHOSTS_EVICTIONS_MIN:
            readings["pool_too_small"] = stats.ghost_hits / evicted
        return readings

    def history(self) -> list[tuple[int, int, int, int]]:
        """Busy, waiting, resident and bytes, one a second, the oldest first."""
        with self._lock:
            return list(self._history)

    def session_bytes(self, key: SessionKey) -> int | None:
        """Memory of one session at the last look."""
        with self._lock:
            last: Measurement | None = self._last.measurement if self._last else None
        return last.session_bytes.get(key) if last else None

    def session_processes(self, key: SessionKey) -> Mapping[str, int] | None:
        """Processes of one session by kind, at the last look."""
        with self._lock:
            last: Measurement | None = self._last.measurement if self._last else None
        return last.session_processes.get(key) if last else None


def _tell(alert: Alert) -> None:
    rule = alert.rule
    log_event(
        "alert fired" if alert.active else "alert cleared",
        logging.WARNING if alert.active else logging.INFO,
        alert=rule.name,
        value=alert.value,
        line=rule.line,
        limit=rule.limit,
        unit=rule.unit,
        remedy=rule.remedy if alert.active else None,
    )
