"""Names of tools in a profile that no tool has: a misspelt one would silently leave the agent without it."""

from __future__ import annotations

import difflib
from collections.abc import Iterator

from agentao_gov.config.findings import Finding
from agentao_gov.config.layers import Layers
from agentao_gov.config.profile import Profile
from agentao_gov.config.validate import finding

__all__ = ["BUILT_IN", "tool_name_findings"]

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
