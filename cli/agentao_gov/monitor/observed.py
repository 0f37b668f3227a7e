"""The picture that metrics, status and alerts share: pool, processes, budgets, alerts, rung, all of one moment."""

from __future__ import annotations

from dataclasses import dataclass

from agentao_gov.governor.report import BudgetLine
from agentao_gov.monitor.alerts import Alert
from agentao_gov.monitor.measure import Measurement
from agentao_gov.pool.types import PoolStats

__all__ = ["Observed"]


@dataclass(frozen=True, slots=True)
class Observed:
    """One moment of one process."""

    pool: PoolStats
    measurement: Measurement
    #: The rung's number, 0 is serving.
    rung: int
    threads_abandoned: int = 0
    budgets: tuple[BudgetLine, ...] = ()
    alerts: tuple[Alert, ...] = ()
