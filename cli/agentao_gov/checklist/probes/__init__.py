"""The eight experiments, one file each. Each tries to break one limit of a running service."""

from __future__ import annotations

from collections.abc import Mapping

from agentao_gov.checklist.items import ItemId
from agentao_gov.checklist.probe import ProbeFunction
from agentao_gov.checklist.probes.daily_token_budget import probe_daily_token_budget
from agentao_gov.checklist.probes.graceful_shutdown import probe_graceful_shutdown
from agentao_gov.checklist.probes.max_iterations import probe_max_iterations
from agentao_gov.checklist.probes.monitoring import probe_monitoring
from agentao_gov.checklist.probes.pool_limits import probe_pool_limits
from agentao_gov.checklist.probes.session_caps import probe_session_caps
from agentao_gov.checklist.probes.tenant_isolation import probe_tenant_isolation
from agentao_gov.checklist.probes.turn_timeout import probe_turn_timeout

__all__ = ["PROBES"]

PROBES: Mapping[ItemId, ProbeFunction] = {
    "session_caps": probe_session_caps,
    "daily_token_budget": probe_daily_token_budget,
    "turn_timeout": probe_turn_timeout,
    "max_iterations": probe_max_iterations,
    "pool_limits": probe_pool_limits,
    "graceful_shutdown": probe_graceful_shutdown,
    "monitoring": probe_monitoring,
    "tenant_isolation": probe_tenant_isolation,
}
