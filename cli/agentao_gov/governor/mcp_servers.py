"""The MCP servers of a session: started, shared or its own, tried again, each heard under its name.

A Python MCP server takes 46-67 MiB and a second to start, so sharing is the big saver. What a server writes to its
standard error never reaches the service's own: an endless writer made 6 GB of log in 70 s, with forged lines in it.
"""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import os
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from agentao.cancellation import CancellationToken, bind_cancellation_token
from agentao.tooling.mcp_tools import register_mcp_tools

from agentao_gov.clock import SYSTEM_CLOCK, Allowance, Clock, Deadline
from agentao_gov.governor.confine import confined_server
from agentao_gov.governor.report import Reason
from agentao_gov.governor.tools import ToolGuard
from agentao_gov.governor.types import SessionSpec
from agentao_gov.process.sandbox import SandboxLayers
from agentao_gov.process.stderr import RelayedLog, StderrReader
from agentao_gov.process.tags import child_env, shared_tag
from agentao_gov.process.tree import SessionTree, kill_processes

if TYPE_CHECKING:
    from agentao_gov.config.profile import McpServer

_log = logging.getLogger(__name__)
#: The MCP client's own limit of a call. The guard's, which knows how to name a time-out, always comes first: no turn is
#: as long as this.
_REQUEST_S_MAX = 7 * 86_400.0
#: Until a server that did not start is tried again; doubled each time. A cold `npx` needs a minute.
_PAUSE_S, _PAUSE_S_MAX = 5.0, 300.0
#: An entry of a server's environment that says whom it is heard as. It is taken out before the server starts.
_NAME_VARIABLE = "AGENTAO_GOV_HEARD_AS"
#: A server may write one line after another that is no JSON: sixty of them a minute are worth a record.
_JUNK_RECORDS_MAX, _JUNK_PERIOD_S = 60, 60.0


# ── what servers write that is no answer ───────────────────────────────────────────────────────────


@functools.lru_cache(maxsize=1)
def _reader() -> StderrReader:
    """The one of this process. A fork gets another: it has no thread of its parent's."""
    return StderrReader()


os.register_at_fork(after_in_child=_reader.cache_clear)


@functools.lru_cache(maxsize=4_096)
def _relay(name: str) -> RelayedLog:
    """One for each name, so that a server that restarts all the time is bounded, too."""
    return RelayedLog(name)


class _JunkFilter(logging.Filter):
    """Makes one bounded line of the MCP SDK's traceback for each line that is no JSON-RPC message."""

    def __init__(self) -> None:
        super().__init__()
        self._allowance = Allowance(_JUNK_RECORDS_MAX, _JUNK_PERIOD_S)

    def filter(self, record: logging.LogRecord) -> bool:
        """Rewrites the record in place; False for one too many."""
        if record.exc_info is None or "JSONRPC" not in str(record.msg):
            return True
        _, allowed = self._allowance.admit()
        record.msg = "An MCP server wrote a line to its standard output that is no JSON-RPC message; it is ignored."
        record.args, record.exc_info, record.exc_text = (), None, None
        record.levelno, record.levelname = logging.WARNING, "WARNING"
        return allowed


_HEARING = threading.Lock()


def _hear_servers() -> None:
    """Gives every stdio server of this process a standard error of its own. Idempotent.

    Not at import: the SDK takes a second and 30 MB, and only profiles with servers pay.
    """
    with _HEARING:
        import agentao.mcp.client

        names = vars(agentao.mcp.client)
        if names["stdio_client"].__module__ != __name__:
            names["stdio_client"] = _heard(names["stdio_client"])
            logging.getLogger("mcp.client.stdio").addFilter(_JunkFilter())


def _heard(plain: Any) -> Any:
    """The SDK's `stdio_client` with the server's standard error read here."""

    @contextlib.asynccontextmanager
    async def heard(server: Any) -> AsyncIterator[Any]:
        name = (server.env or {}).pop(_NAME_VARIABLE, "an MCP server")
        async with contextlib.AsyncExitStack() as stack:
            read, write = os.pipe()
            # Closed once the server has it: the reader ends with the last writer.
            with os.fdopen(write, "w") as errlog:
                _reader().add(read, _relay(name).error_output)
                streams = await stack.enter_async_context(plain(server, errlog))
            yield streams

    return heard


# ── starting ───────────────────────────────────────────────────────────────────────────────────────


class _Pause:
    """Whether a server that did not start may be tried again. Guarded by whoever owns it."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._next_s, self._pause_s = 0.0, _PAUSE_S

    @property
    def over(self) -> bool:
        return self._clock.monotonic() >= self._next_s

    def failed(self) -> None:
        self._next_s = self._clock.monotonic() + self._pause_s
        self._pause_s = min(self._pause_s * 2, _PAUSE_S_MAX)


def _config(server: McpServer, heard_as: str) -> dict[str, Any]:
    """A server in agentao's form, both time limits set."""
    return {
        "command": server.command,
        "args": list(server.args),
        "env": {**server.env, _NAME_VARIABLE: heard_as},
        "trust": True,
        "timeout": {"startup": server.startup_timeout_s, "request": _REQUEST_S_MAX},
        **({"cwd": server.cwd} if server.cwd else {}),
    }


def _within(config: dict[str, Any], remaining_s: float) -> dict[str, Any]:
    """The same with no more time to start than there is."""
    timeout = config["timeout"]
    return {**config, "timeout": {**timeout, "startup": max(0.1, min(timeout["startup"], remaining_s))}}


def _start(name: str, config: dict[str, Any]) -> tuple[Any, str | None]:
    """A manager whose one server runs, or None and why it does not."""
    _hear_servers()
    from agentao.mcp import McpClientManager

    manager = McpClientManager({name: config})
    try:
        manager.connect_all()
    except BaseException as error:
        _stop(manager)
        if not isinstance(error, Exception):
            raise
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
        _log.exception("Ending an MCP server failed")


# ── servers that sessions share ────────────────────────────────────────────────────────────────────


@dataclass(slots=True)
class _Entry:
    """One server. Its lock is held while it starts: the second session waits for the first one's start."""

    pause: _Pause
    lock: threading.Lock = field(default_factory=threading.Lock)
    manager: Any = None
    problem: str | None = None


class SharedServers:
    """MCP servers that several sessions share: one process a tenant, or one for all. Thread-safe.

    They carry a tag of their own, not a session's: closing or killing a session leaves them alone; they end with the
    governor.
    """

    def __init__(self, clock: Clock = SYSTEM_CLOCK) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        # Under `_lock`. Bounded by the servers that profiles name, times the tenants.
        self._entries: dict[tuple[str, str, str], _Entry] = {}
        self._tags: set[str] = set()

    def get(self, name: str, server: McpServer, tenant: str, remaining_s: float) -> tuple[Any, str | None]:
        """The running server's manager, or None and why it is not available. Starts it where there is none.

        One that did not start is tried again after a pause, whichever session asks. Blocks while it starts.
        """
        share: Literal["process", "tenant"] = "tenant" if server.share == "tenant" else "process"
        owner = tenant if share == "tenant" else ""
        config = _config(server, f"the shared MCP server {name}" + (f" of tenant {owner}" if owner else ""))
        tag = shared_tag(share, owner)
        with self._lock:
            entry = self._entries.setdefault(
                (owner, name, json.dumps(config, sort_keys=True)), _Entry(_Pause(self._clock))
            )
            self._tags.add(str(tag))
        with entry.lock:
            if entry.manager is None and entry.pause.over:
                config["env"] |= child_env(tag, "mcp")
                entry.manager, entry.problem = _start(name, _within(config, remaining_s))
                if entry.problem is not None:
                    entry.pause.failed()
            return entry.manager, entry.problem

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


# ── the servers of one session ─────────────────────────────────────────────────────────────────────


class SessionServers:
    """The MCP servers of one session's profile and what the agent has of them. One thread at a time uses it."""

    def __init__(
        self,
        spec: SessionSpec,
        tree: SessionTree,
        shared: SharedServers,
        clock: Clock,
        layers: Callable[[], SandboxLayers],
    ) -> None:
        """`tree` marks the session's own servers as its children; `shared` has those that are not its alone.

        `layers` tells what this machine has to make a sandbox of, for servers that want one.
        """
        self._spec = spec
        self._layers = layers
        self._tree = tree
        self._shared = shared
        self._servers = dict(spec.profile.profile.mcp.servers)
        self._agent: Any = None
        # Managers that the agent does not know of and does not close: shared ones, and own servers that started late.
        self._managers: dict[str, Any] = {}
        # Servers that are not there, each with why.
        self._missing: dict[str, Reason] = {}
        self._pauses = {name: _Pause(clock) for name in self._servers}

    def own(self, deadline: Deadline) -> dict[str, dict[str, Any]]:
        """The servers that are this session's alone, in agentao's form, for the agent to start until `deadline`.

        Raises ConfigError where one wants a sandbox that cannot be had.
        """
        if self._servers:
            _hear_servers()
        return {
            name: _within(self._own(name, server), deadline.remaining_s())
            for name, server in self._servers.items()
            if server.share == "session"
        }

    def join(self, agent: Any, deadline: Deadline) -> None:
        """Takes over the agent that has started its own servers, and gives it the tools of the shared ones."""
        self._agent = agent
        started = agent.mcp_manager.get_server_status() if agent.mcp_manager is not None else []
        for status in started:
            if status["status"] != "connected":
                self._is_missing(str(status["name"]), str(status.get("error") or status["status"]))
        for name, server in self._servers.items():
            if server.share != "session":
                self._add(name, deadline.remaining_s())

    def try_again(self, guard: ToolGuard, token: CancellationToken, deadline: Deadline) -> None:
        """Starts what did not start, where its pause is over. Blocks until `deadline` at most; `token` ends it."""
        due = [name for name in self._missing if self._pauses[name].over]
        with bind_cancellation_token(token):
            for name in due:
                if deadline.remaining_s() > 0 and not token.is_cancelled:
                    self._add(name, deadline.remaining_s())
        if due:
            self.admit()
            guard.guard_all(self._agent.tools.tools.values())

    def admit(self) -> None:
        """Lets MCP tools run in read-only mode: the operator configured their server, which is the permission.

        agentao asks the tool, whose answer is a property of its class, so each instance gets a class that says yes.
        """
        if self._spec.profile.profile.tools.permission_mode != "read-only":
            return
        for tool in self._tools().values():
            if not tool.is_read_only:
                kind = type(tool)
                says = {"is_read_only": True, "requires_confirmation": False, "__module__": kind.__module__}
                tool.__class__ = type(f"Admitted{kind.__name__}", (kind,), says)

    def warnings(self) -> tuple[Reason, ...]:
        """What a turn's report says of them: which are not there, and which tools have one name."""
        return (*self._missing.values(), *self._collisions()) if self._servers else ()

    def close(self) -> None:
        """Ends the session's own servers that started late; the agent ends those it started."""
        for name, manager in self._managers.items():
            if self._servers[name].share == "session":
                _stop(manager)

    @property
    def started_late(self) -> bool:
        """Whether `close` has something to end."""
        return any(self._servers[name].share == "session" for name in self._managers)

    def _own(self, name: str, server: McpServer) -> dict[str, Any]:
        config = _config(server, f"the MCP server {name} of session {self._spec.key}")
        # The MCP SDK passes on a handful of variables only, so the tag must stand here.
        config["env"] |= self._tree.env("mcp")
        config = {"cwd": str(self._spec.workdir), **config}
        if server.sandbox:
            network = self._spec.profile.profile.tools.network
            config |= confined_server(name, config, self._spec.workdir, self._layers(), network=network)
        return config

    def _add(self, name: str, remaining_s: float) -> None:
        server = self._servers[name]
        if remaining_s <= 0:
            self._is_missing(name, "no time was left to start it")
            return
        if server.share == "session":
            manager, problem = _start(name, _within(self._own(name, server), remaining_s))
        else:
            manager, problem = self._shared.get(name, server, self._spec.key.tenant, remaining_s)
        if problem is not None:
            self._is_missing(name, problem)
            return
        self._missing.pop(name, None)
        self._managers[name] = manager
        self._register(manager)

    def _is_missing(self, name: str, why: str) -> None:
        """What a server says for itself holds its command and paths."""
        public = f"MCP server {name} is not available"
        self._missing[name] = Reason(public, f"{public}: {why}")
        self._pauses[name].failed()

    # ── names ─────────────────────────────────────────────────────────────────────────────────────

    def _register(self, manager: Any) -> None:
        """Gives the agent the manager's tools. Of two with one name it keeps the one whose server the profile names
        first, however and whenever the servers start; any other tool's name is never taken."""
        registry = self._agent.tools
        before = {name: (tool, registry.origin(name)) for name, tool in registry.tools.items()}
        register_mcp_tools(self._agent, manager)
        for name, (earlier, origin) in before.items():
            tool = registry.tools[name]
            if tool is not earlier and self._rank(earlier) < self._rank(tool):
                registry.register(earlier, replace=True, origin=origin)

    def _rank(self, tool: Any) -> int:
        server = getattr(tool, "_server_name", None)
        return list(self._servers).index(server) if server in self._servers else -1

    def _tools(self) -> dict[str, Any]:
        registry = self._agent.tools
        return {name: tool for name, tool in registry.tools.items() if registry.origin(name) == "mcp"}

    def _collisions(self) -> Iterator[Reason]:
        from agentao.mcp.tool import make_mcp_tool_name

        tools = self._tools()
        own = self._agent.mcp_manager
        for manager in (*([own] if own is not None else []), *self._managers.values()):
            for server, definition in manager.get_all_tools():
                name = make_mcp_tool_name(server, definition.name)
                used = tools.get(name)
                winner = getattr(used, "_server_name", None)
                if used is not None and (winner, used._mcp_tool.name) != (server, definition.name):
                    both = f"Tools of the MCP servers {winner} and {server} have one name, {name}"
                    yield Reason(f"{both}: that of {winner} is used. Rename one of the servers.")
