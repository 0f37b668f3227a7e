"""Child processes: their marks and trees, the warden above them, the sweep at start, and sessions in processes."""

from __future__ import annotations

from agentao_gov.process.census import Census, take_census
from agentao_gov.process.layers import Layer, survey_layers
from agentao_gov.process.owner import Owner
from agentao_gov.process.supervision import Heartbeat, WardenPlan, is_guarded, run_below_warden
from agentao_gov.process.sweep import SweepResult, sweep
from agentao_gov.process.tags import Kind, Tag, child_env, session_tag, shared_tag
from agentao_gov.process.tree import ORPHANS_KILLED, KillResult, SessionTree, kill_processes

__all__ = [
    "ORPHANS_KILLED",
    "Census",
    "Heartbeat",
    "KillResult",
    "Kind",
    "Layer",
    "Owner",
    "SessionTree",
    "SweepResult",
    "Tag",
    "WardenPlan",
    "child_env",
    "is_guarded",
    "kill_processes",
    "run_below_warden",
    "session_tag",
    "shared_tag",
    "survey_layers",
    "sweep",
    "take_census",
]
