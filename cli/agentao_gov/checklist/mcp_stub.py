"""A tiny MCP server over stdio for the probes: `python -I mcp_stub.py [MIB]`. Stdlib only: it starts in 50 ms.

It offers a tool that sleeps, and holds so many MiB of memory (a tool changes how many), so that probes can see
time-outs, processes and memory without the user's own servers.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from typing import Any

TOOLS = [
    {
        "name": "sleep",
        "description": "Sleeps, then answers.",
        "inputSchema": {"type": "object", "properties": {"seconds": {"type": "number"}}, "required": ["seconds"]},
    },
    {
        "name": "ping",
        "description": "Answers with its process id.",
        "inputSchema": {"type": "object", "properties": {"n": {"type": "string"}}},
    },
    {
        "name": "hold",
        "description": "Holds so many MiB of memory from now on.",
        "inputSchema": {"type": "object", "properties": {"mib": {"type": "number"}}, "required": ["mib"]},
    },
]
#: What is held for its weight.
_ballast: list[bytearray] = []
_write_lock = threading.Lock()


def main() -> None:
    """Serves until standard input ends."""
    _hold(int(sys.argv[1]) if len(sys.argv) > 1 else 0)
    for line in sys.stdin:
        if line.strip():
            _handle(json.loads(line))


def _hold(mib: int) -> None:
    _ballast.clear()
    pages = bytearray(mib * 2**20)
    # Touched page by page, so that it is resident and not only promised.
    pages[::4096] = b"\x01" * len(pages[::4096])
    _ballast.append(pages)


def _handle(message: dict[str, Any]) -> None:
    method, number = message.get("method"), message.get("id")
    if number is None:
        return
    if method == "tools/call":
        # On a thread, so that a sleeping call does not keep the server from hearing that its client has gone.
        threading.Thread(target=_call, args=(number, message.get("params") or {}), daemon=True).start()
    elif method == "initialize":
        version = (message.get("params") or {}).get("protocolVersion", "2025-06-18")
        info = {"name": "checklist-stub", "version": "1"}
        _answer(number, {"protocolVersion": version, "capabilities": {"tools": {}}, "serverInfo": info})
    elif method == "tools/list":
        _answer(number, {"tools": TOOLS})
    elif method == "ping":
        _answer(number, {})
    else:
        _send({"jsonrpc": "2.0", "id": number, "error": {"code": -32601, "message": f"no {method}"}})


def _call(number: Any, params: dict[str, Any]) -> None:
    arguments = params.get("arguments") or {}
    if params.get("name") == "sleep":
        time.sleep(float(arguments.get("seconds", 0)))
    elif params.get("name") == "hold":
        _hold(int(arguments.get("mib", 0)))
    _answer(number, {"content": [{"type": "text", "text": str(os.getpid())}], "isError": False})


def _answer(number: Any, result: dict[str, Any]) -> None:
    _send({"jsonrpc": "2.0", "id": number, "result": result})


def _send(message: dict[str, Any]) -> None:
    with _write_lock:
        sys.stdout.write(json.dumps(message) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
