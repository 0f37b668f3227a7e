"""MCP servers that several sessions share: one process a tenant, or one for all, instead of one a session.

A Python MCP server takes 46-67 MiB and a second to start, so sharing is the big saver. Shared servers carry a mark of
their own, not a session's: closing or killing a session leaves them alone; they end with the governor.
"""

from __future__ import annotations

import json
import logging
import threading
from dataclasses import dataclass, field
from typing import Any, Literal

from agentao_gov.process.tags import child_env, shared_tag
from agentao_gov.process.tree import kill_processes

__all__ = ["SharedServers"]

_log = logging.getLogger(__name__)

Share = Literal["tenant", "process"]


@dataclass(slots=True)
class _Entry:
    """One server. Its lock is held while it starts: the second session waits for the first one's start."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    manager: Any = None


class SharedServers:
    """All shared servers of a process. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        # Under `_lock`. Bounded by the servers that profiles name, times the tenants.
        self._entries: dict[tuple[str, str, str, str], _Entry] = {}
        self._tags: set[str] = set()

    def get(self, share: Share, tenant: str, name: str, config: dict[str, Any]) -> tuple[Any, str | None]:
        """The running server's manager, starting it where there is none; or why it is not available.

        A server that failed is tried again by the next session. Blocks while it starts.
        """
        owner = tenant if share == "tenant" else ""
        key = (share, owner, name, json.dumps(config, sort_keys=True, default=str))
        tag = shared_tag(share, owner)
        with self._lock:
            entry = self._entries.setdefault(key, _Entry())
            self._tags.add(str(tag))
        with entry.lock:
            if entry.manager is not None:
                return entry.manager, None
            manager, problem = _start(name, {**config, "env": {**config["env"], **child_env(tag, "mcp")}})
            entry.manager = manager
            return manager, problem

    def close(self) -> None:
        """Ends all of them; by force those that do not leave."""
        with self._lock:
            entries, self._entries = list(self._entries.values()), {}
            tags, self._tags = self._tags, set()
        for entry in entries:
            with entry.lock:
                if entry.manager is not None:
                    _stop(entry.manager)
                    entry.manager = None
        if tags:
            kill_processes(tags)


def _start(name: str, config: dict[str, Any]) -> tuple[Any, str | None]:
    # The MCP SDK takes a second and 30 MB to import; only profiles with servers pay.
    from agentao.mcp import McpClientManager

    manager = McpClientManager({name: config})
    try:
        manager.connect_all()
    except Exception as error:
        _stop(manager)
        return None, str(error)
    (status,) = manager.get_server_status()
    if status["status"] != "connected":
        _stop(manager)
        return None, str(status.get("error") or status["status"])
    return manager, None


def _stop(manager: Any) -> None:
    try:
        manager.disconnect_all()
    except Exception:
        _log.exception("Ending a shared MCP server failed")
