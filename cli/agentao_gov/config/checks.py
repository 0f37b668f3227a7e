"""Judges a profile: limits that cannot work together, values outside the recommended ranges, tools that are not."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from dataclasses import replace

from agentao_gov.config.findings import Finding
from agentao_gov.config.layers import RANK_DEFAULT, RANK_SET, Layers
from agentao_gov.config.model import known_model
from agentao_gov.config.profile import Profile, Task, Tier
from agentao_gov.config.units import format_duration
from agentao_gov.config.validate import finding

# ── time limits longer than the turn's: refused inside one file, clamped where a flag made them so


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
        if server.request_timeout_s is not None:
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
        name: server.model_copy(update={"request_timeout_s": min(own, turn_s) if own is not None else None})
        for name, server in profile.mcp.servers.items()
        for own in [server.request_timeout_s]
    }
    mcp = profile.mcp.model_copy(update={"servers": servers})
    return profile.model_copy(update={"limits": lowered, "mcp": mcp})


# ── what the published tables recommend ───────────────────────────────────────────────────────────

#: LLM calls per turn by task. For a task of one's own the whole span of the table is sensible.
ITERATIONS: dict[Task, tuple[int, int]] = {
    "qa": (20, 30),
    "code": (80, 150),
    "research": (200, 500),
    "custom": (1, 500),
}
#: Seconds by tier. After two minutes a person who waits has left; a batch is set per task, up to a day.
TURN_TIMEOUT_S: dict[Tier, tuple[float, float]] = {
    "interactive": (60.0, 120.0),
    "background": (300.0, 1800.0),
    "batch": (1.0, 86400.0),
}


def recommendations(profile: Profile, layers: Layers, model_name: str | None) -> Iterator[Finding]:
    """A warning for each value outside the range for its task, tier or model."""
    limits = profile.limits
    low, high = ITERATIONS[profile.task]
    if not low <= limits.max_iterations <= high:
        text = f"{limits.max_iterations} is outside {low}-{high}, recommended for task {profile.task!r}"
        yield finding(layers, "limits.max_iterations", text, error=False)
    first, last = TURN_TIMEOUT_S[profile.tier]
    if not first <= limits.turn_timeout_s <= last:
        span = f"{format_duration(first)}-{format_duration(last)}"
        text = f"{format_duration(limits.turn_timeout_s)} is outside {span}, recommended for tier {profile.tier!r}"
        yield finding(layers, "limits.turn_timeout", text, error=False)
    if limits.turn_tokens < limits.max_output_tokens:
        text = f"{limits.turn_tokens} is less than one call's max_output_tokens of {limits.max_output_tokens}"
        yield finding(layers, "limits.turn_tokens", text, error=False)
    known = known_model(model_name) if model_name else None
    if known and not known.recommended_min <= limits.max_context_tokens <= known.recommended_max:
        text = (
            f"{limits.max_context_tokens:,} is outside {known.recommended_min:,}-{known.recommended_max:,}, "
            f"recommended for {model_name!r} ({known.model_class})"
        )
        yield finding(layers, "limits.max_context_tokens", text, error=False)


def sandbox_findings(profile: Profile, layers: Layers) -> Iterator[Finding]:
    """An error for each MCP server that has a sandbox and no session whose directory it could be confined to."""
    for name, server in profile.mcp.servers.items():
        if server.sandbox and server.share != "session":
            text = 'a server in a sandbox sees one session\'s directory: it needs share = "session"'
            yield finding(layers, f"mcp.servers.{name}.sandbox", text, error=True)


# ── names that no tool has: a misspelt one would silently leave the agent without it ──────────────

#: agentao 0.5.17's tools, those of its extra `web` included. A test holds this list against agentao itself.
BUILT_IN = (
    "activate_skill",
    "ask_user",
    "glob",
    "list_directory",
    "read_file",
    "replace",
    "run_shell_command",
    "save_memory",
    "search_file_content",
    "todo_write",
    "web_fetch",
    "web_search",
    "write_file",
)


#: Arguments of the tools that rules are likely about. The same test holds them against agentao.
ARGUMENTS: dict[str, frozenset[str]] = {
    "glob": frozenset({"pattern", "directory"}),
    "list_directory": frozenset({"directory_path", "recursive"}),
    "read_file": frozenset({"file_path", "offset", "limit"}),
    "replace": frozenset({"file_path", "old_text", "new_text", "replace_all"}),
    "run_shell_command": frozenset({"command", "description", "working_directory", "timeout", "is_background"}),
    "search_file_content": frozenset({"pattern", "file_pattern", "directory", "case_sensitive", "regex"}),
    "write_file": frozenset({"file_path", "content", "append"}),
}


def rule_findings(profile: Profile, layers: Layers) -> Iterator[Finding]:
    """An error for each rule over an argument that its tool does not have: it would never match, and never deny."""
    for number, rule in enumerate(profile.tools.rules, 1):
        for argument in rule.when:
            known = ARGUMENTS.get(rule.tool)
            if known is not None and argument not in known:
                near = difflib.get_close_matches(argument, known, n=1)
                meant = f"; did you mean {near[0]!r}?" if near else f"; it has: {', '.join(sorted(known))}"
                text = f"rule {number}: {rule.tool} has no argument {argument!r}{meant}"
                yield finding(layers, "tools.rules", text, error=True)
        pattern = set("*?[") & set(rule.tool) or rule.tool.startswith(("mcp_", "agent_"))
        if not pattern and rule.tool not in (*BUILT_IN, *profile.tools.allow):
            yield finding(layers, "tools.rules", f"rule {number}: {_unknown(rule.tool)}", error=False)


def tool_name_findings(profile: Profile, layers: Layers) -> Iterator[Finding]:
    """A warning for each name that is no built-in tool's: it may be a custom tool of whoever embeds the library."""
    for name in profile.tools.allow:
        if name not in BUILT_IN:
            yield finding(layers, "tools.allow", _unknown(name), error=False)
    for name in profile.limits.tool_timeouts_s:
        # An MCP server's tools are named mcp_SERVER_TOOL, a sub-agent's agent_NAME.
        if name not in BUILT_IN and name not in profile.tools.allow and not name.startswith(("mcp_", "agent_")):
            yield finding(layers, f"limits.tool_timeouts.{name}", _unknown(name), error=False)


def _unknown(name: str) -> str:
    near = difflib.get_close_matches(name.lower(), BUILT_IN, n=1)
    meant = f"; did you mean {near[0]!r}?" if near else f"; there are: {', '.join(BUILT_IN)}"
    return f"there is no built-in tool {name!r}{meant}"
