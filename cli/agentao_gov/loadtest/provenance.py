"""Where a report comes from: what was asked for, and on which machine with which versions."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from dataclasses import asdict
from typing import Any

from agentao_gov.loadtest.execution import Played
from agentao_gov.loadtest.faults import load_faults
from agentao_gov.loadtest.findings import Findings
from agentao_gov.loadtest.options import Options
from agentao_gov.loadtest.plan import LoadPlan
from agentao_gov.loadtest.replay import span_s

__all__ = ["environment", "plan_part"]


def environment() -> dict[str, Any]:
    """The machine and the versions: what makes two runs comparable."""
    versions = {}
    for name in ("agentao-gov", "agentao", "locust"):
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = "unknown"
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "python": platform.python_version(),
        "system": platform.system(),
        "machine": platform.machine(),
        "cpus": os.cpu_count(),
        "memory_bytes": memory,
        "versions": versions,
    }


def plan_part(options: Options, plan: LoadPlan | None, main: Played | None, findings: Findings) -> dict[str, Any]:
    """The report's `plan`: what was asked for, and what makes two runs comparable."""
    recording = plan.recording if plan is not None else None
    return {
        "shape": options.shape,
        "loop": "open" if options.open_loop else "closed",
        "rate": options.level if options.open_loop and not recording else None,
        "users": options.users,
        "duration_s": round(span_s(recording, options.replay_speed), 2) if recording else options.duration_s,
        "replay": {"turns": len(recording), "speed": options.replay_speed} if recording else None,
        "faults": [f"{f.kind} at {f.at_s:g} s" for f in load_faults(options.faults)]
        if options.faults and plan
        else None,
        "victim": options.victim,
        "arrivals": options.process,
        "seed": options.seed,
        "mix": dict(options.mix),
        "workers": options.workers,
        "api": options.api,
        "tenants": list(main.phase.streams[0].tenants) if main else [],
        "turns_per_session": options.turns_per_session,
        "think_scale": plan.think_scale if plan else options.think_scale,
        "simulated": bool(plan and plan.directives),
        "model_pace_s": {"first_token": options.first_token_s, "per_token": options.per_token_s},
        "timeouts_s": plan.timeouts_s if plan else {},
        "max_turns": plan.max_turns if plan else None,
        "max_tokens": plan.max_tokens if plan else None,
        "target": "own" if options.target is None else options.target,
        #: Wall time of the samples' second 0: what aligns them with other records.
        "start_epoch": main.start_epoch if main else None,
        "segments": [asdict(part) for part in main.phase.streams[0].segments] if main else [],
        "differences": list(findings.differences),
    }
