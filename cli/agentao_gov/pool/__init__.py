"""Sessions of many tenants in one process: who gets a turn, who stays in memory, who goes on from disk.

    pool = AgentPool(deployment, {"in-process": hosts, "fresh": hosts}, SessionArchive(state / "sessions"))
    report = pool.submit(TurnOrder(...), on_event).result()
    pool.close()

`core.py` decides, without threads or files; `engine.py` performs its decisions; `archive.py` keeps what must last;
`ladder.py` is the ordered way down.
"""

from agentao_gov.pool.archive import SessionArchive, SessionHead
from agentao_gov.pool.core import StaleLeaseError
from agentao_gov.pool.host import GovernorHosts, HostFactory, SessionHost
from agentao_gov.pool.ladder import Ladder, Rung, RungTimes
from agentao_gov.pool.limits import PoolLimits, TenantCaps
from agentao_gov.pool.pool import AgentPool
from agentao_gov.pool.tickets import HeldLease
from agentao_gov.pool.types import (
    CloseReason,
    PoolStats,
    SessionInfo,
    SessionState,
    SessionUsage,
    TenantStats,
    TurnOrder,
)

__all__ = [
    "AgentPool",
    "CloseReason",
    "GovernorHosts",
    "HeldLease",
    "HostFactory",
    "Ladder",
    "PoolLimits",
    "PoolStats",
    "Rung",
    "RungTimes",
    "SessionArchive",
    "SessionHead",
    "SessionHost",
    "SessionInfo",
    "SessionState",
    "SessionUsage",
    "StaleLeaseError",
    "TenantCaps",
    "TenantStats",
    "TurnOrder",
]
