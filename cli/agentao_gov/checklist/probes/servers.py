"""The users' own MCP servers: all take part in one probe, and those that do not start are named with the reason.

A session opens without a server that does not start, so nobody would miss it until a model wants its tools.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import tempfile
from pathlib import Path
from typing import IO, Any

from agentao_gov.checklist.facts import Facts
from agentao_gov.checklist.probe import Context
from agentao_gov.checklist.remedy import Remedy
from agentao_gov.config.mcp import program_problem
from agentao_gov.config.profile import McpServer
from agentao_gov.governor.report import redact
from agentao_gov.testrig.client import HttpAnswer
from agentao_gov.testrig.guarded import Guarded

#: What a TurnReport says of a server that a session had to do without.
_MISSING = re.compile(r"^MCP server (?P<name>\S+) is not available")
#: How long a server that does not start may take to say why.
WORDS_S_MAX = 3.0
LINE_CHARS_MAX = 200
#: What the MCP SDK passes on to a server.
_INHERITED = ("HOME", "LOGNAME", "PATH", "SHELL", "TERM", "USER")
_HELLO = {
    "jsonrpc": "2.0",
    "id": 0,
    "method": "initialize",
    "params": {
        "protocolVersion": "2025-06-18",
        "capabilities": {},
        "clientInfo": {"name": "agentao-gov-checklist", "version": "1"},
    },
}


def _servers(facts: Facts) -> dict[str, McpServer]:
    """Every server of every offered profile; two of one name that differ are told apart by their profile."""
    found: dict[str, McpServer] = {}
    for profile in facts.offered:
        for name, server in profile.mcp.servers.items():
            found[name if found.get(name, server) == server else f"{name}-{profile.name}"] = server
    return found


def offered_servers(facts: Facts) -> dict[str, Any]:
    """The servers of every offered profile as TOML-ready tables, by name."""
    return {
        name: server.model_dump(mode="json", by_alias=True, exclude_none=True)
        for name, server in _servers(facts).items()
    }


def warn_of_missing(context: Context, answer: HttpAnswer) -> None:
    """Adds a warning to `context` for each server that the session of this `answer` had to do without."""
    known = _servers(context.facts)
    for warning in answer.report.get("warnings") or ():
        match = _MISSING.match(str(warning))
        if match is None or match["name"] not in known:
            continue
        name, server = match["name"], known[match["name"]]
        context.say(f"asking the MCP server {name} why it does not start")
        text = f"it does not; {_reason(server)}"
        note = f"Let the MCP server {name} start as the service's user: see its command, args, env and cwd"
        context.warn(f"the MCP server {name} starts", text, Remedy(note=note))


def _reason(server: McpServer) -> str:
    """Starts the server alone, as a session would, for the last line it writes to standard error."""
    if problem := program_problem(server, os.environ):
        return problem
    inherited = {name: os.environ[name] for name in _INHERITED if name in os.environ}
    with tempfile.TemporaryDirectory(prefix="agentao-gov-checklist-") as folder, tempfile.TemporaryFile() as words:
        cwd = Path(server.cwd) if server.cwd else Path(folder)
        try:
            program = Guarded(
                [server.command, *server.args],
                cwd=cwd,
                env={**inherited, **server.env},
                output=words,
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
            )
        except OSError as error:
            return f"it cannot be started: {error.strerror or error}"
        try:
            _greet(program)
            program.wait(min(WORDS_S_MAX, server.startup_timeout_s))
        finally:
            program.end()
        line = _last_line(words, server)
        return f"the last line of its standard error: {line}" if line else "it says nothing on standard error"


def _greet(program: Guarded) -> None:
    """Some servers only fail once they are spoken to."""
    pipe = program.process.stdin
    assert pipe is not None
    try:
        pipe.write(json.dumps(_HELLO).encode() + b"\n")
        pipe.flush()
    except OSError:
        # Gone already; what it said is in its standard error.
        return


def _last_line(words: IO[bytes], server: McpServer) -> str:
    words.seek(0, os.SEEK_END)
    words.seek(max(0, words.tell() - 8_192))
    lines = [line.strip() for line in words.read().decode("utf-8", "replace").splitlines() if line.strip()]
    return _one_line(lines[-1], server) if lines else ""


def _one_line(text: str, server: McpServer) -> str:
    """Without line breaks and without secrets: everything in a server's `env` may be one, and so may an argument."""
    clean = redact(" ".join(text.split()), *server.env.values())
    return clean if len(clean) <= LINE_CHARS_MAX else clean[: LINE_CHARS_MAX - 1] + "…"
