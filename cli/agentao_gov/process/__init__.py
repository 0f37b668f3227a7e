"""Child processes: their marks and trees, the warden above them, the sweep at start, and sessions in processes."""

from __future__ import annotations

from agentao_gov.process.census import Census, take_census
from agentao_gov.process.sweep import SweepResult, sweep
from agentao_gov.process.tags import Kind, Owner, Tag, child_env, session_tag, shared_tag
from agentao_gov.process.tree import KillResult, SessionTree, kill_processes

__all__ = [
    "Census",
    "KillResult",
    "Kind",
    "Owner",
    "SessionTree",
    "SweepResult",
    "Tag",
    "child_env",
    "kill_processes",
    "session_tag",
    "shared_tag",
    "sweep",
    "take_census",
]
