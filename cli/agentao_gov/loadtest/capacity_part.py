"""The report's `capacity`: what a search found, or what a plain run happened to reach."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from agentao_gov.loadtest.capacity import CapacityResult
from agentao_gov.loadtest.document import CapacityPart
from agentao_gov.loadtest.execution import Execution
from agentao_gov.loadtest.figures import rounded
from agentao_gov.loadtest.measure import Figures
from agentao_gov.loadtest.series import ServerRow

__all__ = ["capacity_end", "capacity_part", "capacity_plan"]


def capacity_end(execution: Execution | None) -> dict[str, str | None]:
    result = execution.capacity if execution is not None else None
    if result is None:
        return {}
    if result.outcome == "unattainable":
        return {"capacity_failed": f"not even {result.probes[0].load} session meets the objectives: {result.evidence}"}
    if result.outcome == "unclear":
        bound = "" if result.bottleneck == "none" else f"bound by {result.bottleneck}: "
        return {"capacity_unclear": f"no capacity is certain: {bound}{result.evidence}"}
    return {}


def capacity_part(execution: Execution | None, figures: Figures, rows: Sequence[ServerRow]) -> CapacityPart:
    result: CapacityResult | None = execution.capacity if execution is not None else None
    if result is None:
        seen = [row.resident for row in rows if row.resident is not None]
        return CapacityPart(
            sessions=max(seen, default=None),
            turns_per_s=rounded(figures.rates["turns_per_s"]),
            bottleneck=None,
            knee={"outcome": "not searched: this is what the run reached, not what the pool holds"},
        )
    return CapacityPart(
        sessions=result.sessions,
        turns_per_s=result.turns_per_s,
        bottleneck=result.bottleneck,
        knee=result.knee(),
        probes=[asdict(probe) for probe in result.probes],
        plan=capacity_plan(result),
    )


def capacity_plan(result: CapacityResult) -> dict[str, Any]:
    """What `--write` puts under `[capacity]`: what held, with the memory and the processes it took."""
    held = next((probe for probe in result.probes if probe.load == result.low), None)
    if held is None or result.sessions is None:
        return {}
    used = held.resources
    plan: dict[str, Any] = {"sessions": max(result.sessions, used.sessions or 0)}
    if used.mcp_processes:
        plan["mcp_processes"] = used.mcp_processes
    if used.memory_bytes:
        # A fifth on top: the plan is for alerts, and the measured peak must not raise one. But never beyond what binds.
        room = min(int(used.memory_bytes * 1.2), used.memory_max_bytes or math.inf)
        plan["memory"] = f"{-(-int(room) // 1024**2)}MiB"
    return plan
