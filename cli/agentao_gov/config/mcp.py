"""What is made of a profile's MCP servers: `${VAR}` and `~` get their values, and a program that is not there is told.

A secret stands in the environment of whoever runs the profile, and the file only names it. What is printed of a server
comes from `shown_value`, which repeats neither.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from agentao_gov.config.findings import Finding
from agentao_gov.config.layers import Layers
from agentao_gov.config.model import expand, shown_url
from agentao_gov.config.profile import McpServer, Profile
from agentao_gov.config.validate import finding

#: The fields in which references have values. `command` and `cwd` also know `~`.
_WITH_REFERENCES = ("command", "args", "env", "cwd", "url", "headers")
_WITH_HOME = frozenset({"command", "cwd"})
_HIDDEN = "***"
_FLAG = re.compile(r"--?[A-Za-z][A-Za-z0-9-]*")
#: Programs that start most servers, for "did you mean".
_USUAL = ("npx", "uvx", "node", "python", "python3", "docker", "deno", "bunx")


def resolve_servers(profile: Profile, layers: Layers, environ: Mapping[str, str]) -> tuple[Profile, list[Finding]]:
    """The profile with every reference in its MCP servers replaced by its value in `environ`.

    Findings: an error for each variable that is not set, a warning for a program that is not there.
    """
    findings: list[Finding] = []
    servers: dict[str, McpServer] = {}
    for name, server in profile.mcp.servers.items():
        missing: dict[str, list[str]] = {}
        values = {
            field: _resolved(value, environ, missing.setdefault(field, []), home=field in _WITH_HOME)
            for field in _WITH_REFERENCES
            if (value := getattr(server, field, None)) is not None
        }
        for field, variables in missing.items():
            for variable in dict.fromkeys(variables):
                text = f"names the environment variable {variable}, which is not set"
                findings.append(finding(layers, f"mcp.servers.{name}.{field}", text, error=True))
        servers[name] = server.model_copy(update=values)
        if not missing.get("command") and (problem := program_problem(servers[name], environ)):
            findings.append(finding(layers, f"mcp.servers.{name}.command", problem, error=False))
    mcp = profile.mcp.model_copy(update={"servers": servers})
    return profile.model_copy(update={"mcp": mcp}), findings


def _resolved(value: Any, environ: Mapping[str, str], missing: list[str], *, home: bool) -> Any:
    if isinstance(value, list):
        return [_resolved(item, environ, missing, home=home) for item in value]
    if isinstance(value, dict):
        return {name: _resolved(item, environ, missing, home=home) for name, item in value.items()}
    text = expand(value, environ, missing)
    return str(Path(text).expanduser()) if home and text.startswith("~") else text


def program_problem(server: McpServer, environ: Mapping[str, str]) -> str:
    """Why the server's program cannot be started; empty where it can, or where only its session will know."""
    command = server.command
    if "/" in command:
        # A relative path counts from the session's own directory, which is not there yet.
        found = not Path(command).is_absolute() or os.access(command, os.X_OK)
        return "" if found else f"there is no program {command!r} that may be run"
    if shutil.which(command, path=server.env.get("PATH", environ.get("PATH"))):
        return ""
    near = get_close_matches(command, _USUAL, n=1)
    return f"there is no program {command!r} on PATH" + (f"; did you mean {near[0]!r}?" if near else "")


def shown_value(field: str, value: Any) -> Any:
    """A server's value fit for a screen: names of flags and variables stay, everything that may be secret does not.

    `field` is the dotted key below the server: `args`, `env.TOKEN`, `headers.Authorization`, `url`.
    """
    hide = _HIDERS.get(field.partition(".")[0])
    return value if hide is None or value is None else hide(value)


def _shown_arguments(arguments: list[str]) -> list[str]:
    return [argument if _FLAG.fullmatch(argument) else _shown_flag(argument) for argument in arguments]


def _shown_flag(argument: str) -> str:
    flag, equals, _ = argument.partition("=")
    return f"{flag}={_HIDDEN}" if equals and _FLAG.fullmatch(flag) else _HIDDEN


def _shown_address(url: str) -> str:
    return re.sub(r"\?.*", f"?{_HIDDEN}", shown_url(url))


_HIDERS: dict[str, Callable[[Any], Any]] = {
    "args": _shown_arguments,
    "env": lambda _: _HIDDEN,
    "headers": lambda _: _HIDDEN,
    "url": _shown_address,
}
