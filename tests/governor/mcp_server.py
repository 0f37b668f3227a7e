"""A stdio MCP server for tests: answers, sleeps, tells its pid, starts a helper."""

from __future__ import annotations

import asyncio
import os
import subprocess
from pathlib import Path

from mcp.server import MCPServer

server = MCPServer("lab")


@server.tool()
def add(a: int, b: int) -> int:
    """Adds two numbers."""
    return a + b


@server.tool()
async def slow(seconds: float = 60.0) -> str:
    """Sleeps, then answers."""
    await asyncio.sleep(seconds)
    return "done"


@server.tool()
def helper() -> str:
    """Starts a process that outlives a polite server, and tells both pids."""
    child = subprocess.Popen(["sleep", "300"], start_new_session=True)
    return f"{os.getpid()} {child.pid}"


@server.tool()
def read(path: str) -> str:
    """Reads a file."""
    return Path(path).read_text()


if __name__ == "__main__":
    server.run("stdio")
