"""Combinations of a profile's limits that cannot work: refused inside one file, clamped where a flag caused them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from agentao_gov.config.findings import Finding
from agentao_gov.config.layers import RANK_DEFAULT, RANK_SET, Layers
from agentao_gov.config.profile import Profile
from agentao_gov.config.units import format_duration
from agentao_gov.config.validate import finding

__all__ = ["fit_tool_timeouts"]


def fit_tool_timeouts(profile: Profile, layers: Layers) -> tuple[Profile, list[Finding]]:
    """Clamps tool time-outs above the turn's where a flag, `--set` or a stronger layer set the turn's; else errors.

    Who lowers `turn_timeout` on the command line did not write the file's `tool_timeout`, and should not have to
    repeat it; who writes both into one file has made a mistake.
    """
    turn_s = profile.limits.turn_timeout_s
    findings: list[Finding] = []
    clamped: list[str] = []
    for key, seconds in _tool_time_limits(profile):
        if seconds <= turn_s:
            continue
        rank, turn_rank = layers.rank(key), layers.rank("limits.turn_timeout")
        if turn_rank < RANK_SET and rank >= turn_rank and rank > RANK_DEFAULT:
            text = f"{format_duration(seconds)} is longer than the turn_timeout of {format_duration(turn_s)}"
            findings.append(finding(layers, key, text, error=True))
            continue
        clamped.append(key)
        if rank > RANK_DEFAULT:
            text = f"lowered from {format_duration(seconds)} to the turn_timeout of {format_duration(turn_s)}"
            findings.append(replace(finding(layers, key, text, error=False), adjusted=True))
    return (_with_ceiling(profile, turn_s) if clamped else profile), findings


def _tool_time_limits(profile: Profile) -> Iterator[tuple[str, float]]:
    yield "limits.tool_timeout", profile.limits.tool_timeout_s
    for name, seconds in profile.limits.tool_timeouts_s.items():
        yield f"limits.tool_timeouts.{name}", seconds
    for name, server in profile.mcp.servers.items():
        yield f"mcp.servers.{name}.request_timeout", server.request_timeout_s


def _with_ceiling(profile: Profile, turn_s: float) -> Profile:
    limits = profile.limits
    lowered = limits.model_copy(
        update={
            "tool_timeout_s": min(limits.tool_timeout_s, turn_s),
            "tool_timeouts_s": {name: min(seconds, turn_s) for name, seconds in limits.tool_timeouts_s.items()},
        }
    )
    servers = {
        name: server.model_copy(update={"request_timeout_s": min(server.request_timeout_s, turn_s)})
        for name, server in profile.mcp.servers.items()
    }
    mcp = profile.mcp.model_copy(update={"servers": servers})
    return profile.model_copy(update={"limits": lowered, "mcp": mcp})
