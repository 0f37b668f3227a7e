"""What a tool call may do without a person: the profile's rules first, then its permission mode. Nothing else decides.

agentao's own presets let `cat`, `ls` and `git` run with any path and with a repository's own configuration, which
names programs to run. Here a shell command runs without a person where a rule says so, in `full-access`, or in
`workspace-write` inside a sandbox, which holds whatever the command is.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from agentao.permissions import PermissionDecision, PermissionDecisionDetail, PermissionEngine, PermissionMode
from agentao.permissions_hardline import hardline_check
from agentao.runtime.tool_planning import pre_tool_hook_reason
from agentao.tools.base import SHELL_TOOL_NAME

if TYPE_CHECKING:
    from agentao_gov.config.profile import ToolRule, Tools

Action = Literal["allow", "ask", "deny"]

#: One argument of a process may not be longer than 128 KiB, and agentao's scan of a command takes time with the square
#: of a run of blanks: 40,000 of them held the interpreter lock for a second.
_COMMAND_CHARS_MAX = 65_536
_BLANKS = re.compile(r"\s{8,}")
#: What strings further commands together. A pattern that allows a command allows none of these unless it has them.
_OPERATORS = ";&|`$<>\n\r"
#: What runs or grants something later: a repository's hooks and configuration, agentao's own, keys.
_LATER = re.compile(r"(?i)(^|/)\.(git|agentao)(/|$)|(^|/)\.env(\.[^/]*)?$|\.(pem|key)$")
#: Arguments of agentao's tools that are paths.
_PATHS = frozenset({"file_path", "directory", "directory_path", "working_directory"})
_WRITERS = frozenset({"write_file", "replace"})
_WEB = frozenset({"web_fetch", "web_search"})


@dataclass(frozen=True, slots=True)
class Verdict:
    """What is to become of a call, and why, in words for the model, the report and the log."""

    action: Action
    reason: str


def decide(
    tools: Tools,
    name: str,
    arguments: Mapping[str, Any],
    places: Mapping[str, str] | None = None,
    *,
    sandboxed: bool,
    reads: bool,
) -> Verdict | None:
    """The verdict on one call; None leaves it to the tool's own setting.

    `tools` is the profile's table, `places` has where each path among the arguments leads, `sandboxed` is whether shell
    commands run in a sandbox, `reads` whether the tool only reads. Pure.
    """
    places = places or {}
    for number, rule in enumerate(tools.rules, 1):
        if _matches(rule, name, arguments, places):
            return Verdict(rule.action, f"rule {number} of [[tools.rules]], tool = {rule.tool!r}, says {rule.action}")
    mode = tools.permission_mode
    if mode == "full-access":
        return Verdict("allow", "permission_mode = full-access")
    if mode == "read-only":
        return None if reads else Verdict("deny", "permission_mode = read-only, and no rule allows it")
    if name == SHELL_TOOL_NAME:
        if sandboxed:
            return Verdict("allow", "permission_mode = workspace-write, and the command runs in the sandbox")
        return Verdict("ask", "a command that runs without a sandbox needs a person's consent, or a rule")
    if name in _WRITERS:
        path = str(arguments.get("file_path", ""))
        if _LATER.search(path) or _LATER.search(places.get("file_path", "")):
            return Verdict("ask", f"{path!r} holds keys, or is run or obeyed later")
        return Verdict("allow", "permission_mode = workspace-write")
    return Verdict("ask", "it reaches the network") if name in _WEB else None


def _matches(rule: ToolRule, name: str, arguments: Mapping[str, Any], places: Mapping[str, str]) -> bool:
    """Whether every pattern matches; an argument that was not given is empty."""
    if not fnmatch.fnmatchcase(name, rule.tool):
        return False
    for key, pattern in rule.when.items():
        value = str(arguments.get(key, ""))
        # `pytest *` is no consent to `pytest; curl ...`.
        strung = name == SHELL_TOOL_NAME and any(sign in value and sign not in pattern for sign in _OPERATORS)
        # `src/*` allows no `src/../.env`, and forbids also `./src/x`: a path is what it leads to.
        spellings = {places.get(key, value)} if rule.action == "allow" else {value, places.get(key, value)}
        if (strung and rule.action == "allow") or not any(fnmatch.fnmatchcase(one, pattern) for one in spellings):
            return False
    return True


class GovernedPermissions(PermissionEngine):
    """agentao's permission engine, deciding by `decide`. One per session; its state does not change."""

    def __init__(self, tools: Tools, project_root: Path, *, sandboxed: bool) -> None:
        """`tools` is the profile's table, `sandboxed` whether shell commands run in a sandbox."""
        # agentao's scan for the worst commands is done here, on a command of bounded length.
        super().__init__(project_root=project_root, rules=[], enable_hardline=False)
        self._tools = tools
        self._root = project_root.resolve()
        self._sandboxed = sandboxed
        #: The agent's tools by name, to ask which only read; set once the agent is built.
        self.registry: Mapping[str, Any] = {}
        # In read-only mode agentao refuses what writes before it asks here, rules or not.
        loosened = tools.permission_mode == "read-only" and any(rule.action != "deny" for rule in tools.rules)
        self.set_mode(PermissionMode.WORKSPACE_WRITE if loosened else PermissionMode(tools.permission_mode))

    def snapshot(self, *, project_root: Path) -> GovernedPermissions:  # noqa: ARG002
        """The same decisions, for a sub-agent."""
        other = GovernedPermissions(self._tools, self._root, sandboxed=self._sandboxed)
        other.registry = self.registry
        return other

    def decide_detail(
        self,
        tool_name: str,
        tool_args: dict[str, Any],
        *,
        shell_spec: Any = None,
        decided: Any = None,  # noqa: ARG002
    ) -> PermissionDecisionDetail | None:
        """agentao's question about one call, on the turn's thread."""
        verdict = _worst(tool_name, tool_args, shell_spec)
        if verdict is None:
            tool = self.registry.get(tool_name)
            verdict = decide(
                self._tools,
                tool_name,
                tool_args,
                self._places(tool_args),
                sandboxed=self._sandboxed,
                reads=tool is not None and bool(tool.is_read_only),
            )
        if verdict is None:
            return None
        if verdict.action == "deny":
            # The one kind of reason that agentao passes on to the model.
            return PermissionDecisionDetail(PermissionDecision.DENY, reason=pre_tool_hook_reason(verdict.reason))
        return PermissionDecisionDetail(PermissionDecision(verdict.action), reason=verdict.reason)

    def _places(self, arguments: Mapping[str, Any]) -> dict[str, str]:
        """Where the paths among the arguments lead: from the session's directory, or from the root where outside."""
        found = {}
        for key in _PATHS & set(arguments):
            try:
                place = (self._root / str(arguments[key])).resolve()
                found[key] = str(place.relative_to(self._root) if place.is_relative_to(self._root) else place)
            except (OSError, ValueError, RuntimeError):
                # No file is meant by it; the tool says so.
                continue
        return found


def _worst(name: str, arguments: Mapping[str, Any], shell_spec: Any) -> Verdict | None:
    """Refuses what no mode and no person may run, such as `rm -rf /`."""
    if name != SHELL_TOOL_NAME:
        return None
    command = str(arguments.get("command", ""))
    if len(command) > _COMMAND_CHARS_MAX:
        text = f"the command has {len(command):,} characters; {_COMMAND_CHARS_MAX:,} are allowed: write a script"
        return Verdict("deny", text)
    short = _BLANKS.sub(lambda found: "\n" if "\n" in found[0] else " ", command)
    reason = hardline_check(name, {"command": short}, shell_spec=shell_spec)
    return Verdict("deny", str(reason)) if reason is not None else None
