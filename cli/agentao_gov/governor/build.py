"""Builds one session's agent: everything agentao would find or create for itself is given to it instead.

Nothing is written, nothing outside the session's directory is read, no log handler is installed, no name is looked up.
With the shared HTTP client this takes 1-2 ms and about 30 KB (a plain `Agentao(api_key=...)`: 36 ms and 850 KB).
"""

from __future__ import annotations

import functools
import json
import logging
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import agentao.context_manager
from agentao import Agentao
from agentao.agents.tools import AgentToolWrapper
from agentao.embedding.sessions import restore_agent_skills
from agentao.mcp import InMemoryMCPRegistry
from agentao.memory import MemoryManager, SQLiteMemoryStore
from agentao.permissions import PermissionEngine
from agentao.skills import SkillManager
from agentao.tooling.mcp_tools import register_mcp_tools
from agentao.tools.base import SHELL_TOOL_NAME

from agentao_gov.clock import Deadline
from agentao_gov.errors import ConfigError, InternalError
from agentao_gov.governor.agentao_bounds import path_hints
from agentao_gov.governor.confine import TrackedShell
from agentao_gov.governor.file_program import ConfinedFileSystem
from agentao_gov.governor.model_client import GovernedModel
from agentao_gov.governor.report import Reason
from agentao_gov.governor.tools import ToolGuard, mark_denied
from agentao_gov.governor.transport import GovernedTransport
from agentao_gov.governor.types import Conversation, SessionSpec
from agentao_gov.process.tags import child_env, shared_tag
from agentao_gov.process.tree import SessionTree, kill_processes

if TYPE_CHECKING:
    from agentao_gov.config.profile import McpServer

__all__ = ["AgentParts", "SharedServers", "build_agent", "govern_sub_agents", "is_sub_agent_tool", "restore"]

# agentao's context manager asks tiktoken for its tables as soon as it is installed, and tiktoken downloads them: a
# constructor that waits for the network, or fails without. Its own heuristic, corrected by the reported usage, only
# decides when to compact; the ledger counts by `tokens`, not by it.
agentao.context_manager._TIKTOKEN_AVAILABLE = False

_log = logging.getLogger(__name__)
Share = Literal["tenant", "process"]
#: Share of a model's window that the conversation may fill: the summariser needs the rest.
WINDOW_SHARE = 0.8
#: The MCP client's own limit comes this much after the guard's, which knows how to name a time-out.
_MCP_BACKSTOP_S = 1.0
_NOWHERE = "/nonexistent/agentao-gov"
#: agentao's system prompt takes 2,350 tokens, which a small model on two cores reads for 15 s and cannot follow: it
#: answered "Why not?" or went on for ever. With this one it answers the question, after a second.
_BRIEF_PROMPT = "You are a helpful assistant. Answer the question directly, in one or two short sentences."


# ── MCP servers that sessions share ────────────────────────────────────────────────────────────────


@dataclass(slots=True)
class _Entry:
    """One server. Its lock is held while it starts: the second session waits for the first one's start."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    manager: Any = None


class SharedServers:
    """MCP servers that several sessions share: one process a tenant, or one for all. Thread-safe.

    A Python MCP server takes 46-67 MiB and a second to start, so sharing is the big saver. Shared servers carry a tag
    of their own, not a session's: closing or killing a session leaves them alone; they end with the governor.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        # Under `_lock`. Bounded by the servers that profiles name, times the tenants.
        self._entries: dict[tuple[str, str, str, str], _Entry] = {}
        self._tags: set[str] = set()

    def get(self, share: Share, tenant: str, name: str, config: dict[str, Any]) -> tuple[Any, str | None]:
        """The running server's manager, or None and why it is not available. Starts it where there is none.

        `config` is the server in agentao's form; another one is another server. A server that failed is tried again by
        the next session. Blocks while it starts.
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


# ── sub-agents ─────────────────────────────────────────────────────────────────────────────────────


def is_sub_agent_tool(tool: Any) -> bool:
    """Whether a tool starts a sub-agent."""
    return isinstance(tool, AgentToolWrapper)


def govern_sub_agents(agent: Any, model: Callable[[], GovernedModel], guard: ToolGuard, rounds_max: int) -> None:
    """Puts the sub-agents of `agent` under its limits: same ledger, deadline, tool limits and confinement.

    agentao builds a sub-agent with a stock model client of its own, outside every veto. The tools that start sub-agents
    are patched one by one (never agentao's classes): the agent they build gets a client from `model` before its first
    call, its tools get `guard`, and it has at most `rounds_max` calls.
    """
    for tool in agent.tools.tools.values():
        if is_sub_agent_tool(tool):
            _govern(tool, model, guard, rounds_max)


def _govern(wrapper: Any, model: Callable[[], GovernedModel], guard: ToolGuard, rounds_max: int) -> None:
    build, narrow = wrapper._build_sub_agent, wrapper._narrow_tools

    def build_governed(*args: Any, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        sub_agent, setup = build(*args, **kwargs)
        client = model()
        sub_agent.llm = client
        sub_agent._extract_context_hints = lambda: path_hints(sub_agent.messages)
        sub_agent.context_manager.llm_client = client
        setup["max_turns"] = min(int(setup["max_turns"]), rounds_max)
        return sub_agent, setup

    def narrow_guarded(sub_agent: Any) -> None:
        narrow(sub_agent)
        guard.guard_all(sub_agent.tools.tools.values())

    wrapper._build_sub_agent = build_governed
    wrapper._narrow_tools = narrow_guarded


# ── the agent ──────────────────────────────────────────────────────────────────────────────────────


@dataclass(slots=True)
class AgentParts:
    """An agent and what the session needs to govern it."""

    agent: Any
    model: GovernedModel
    transport: GovernedTransport
    guard: ToolGuard
    shell: TrackedShell
    tree: SessionTree
    warnings: list[Reason] = field(default_factory=list)


@functools.lru_cache(maxsize=1)
def _no_memory() -> Any:
    """A memory that nobody writes to, shared: one of its own costs each session 100 KB."""
    return MemoryManager(project_store=SQLiteMemoryStore.open_or_memory(":memory:"))


_NO_MEMORY_LOCK = threading.Lock()


def _memory(spec: SessionSpec) -> Any:
    if "save_memory" in spec.profile.profile.tools.allow:
        return MemoryManager(project_store=SQLiteMemoryStore.open_or_memory(spec.workdir / ".agentao" / "memory.db"))
    with _NO_MEMORY_LOCK:
        return _no_memory()


def _skills(spec: SessionSpec) -> Any:
    allowed = "activate_skill" in spec.profile.profile.tools.allow
    # An explicit directory also keeps agentao from copying its bundled skills into the user's home.
    where = spec.workdir / ".agentao" / "skills" if allowed else Path(_NOWHERE)
    return SkillManager(skills_dir=str(where), working_directory=spec.workdir)


def _mcp_config(server: McpServer, deadline: Deadline) -> dict[str, Any]:
    """A server in agentao's form, both time limits set. The start gets what the opening has left."""
    return {
        "command": server.command,
        "args": list(server.args),
        "env": dict(server.env),
        "trust": True,
        "timeout": {
            "startup": max(0.1, min(server.startup_timeout_s, deadline.remaining_s())),
            "request": server.request_timeout_s + _MCP_BACKSTOP_S,
        },
        **({"cwd": server.cwd} if server.cwd else {}),
    }


def own_servers(spec: SessionSpec, tree: SessionTree, deadline: Deadline) -> dict[str, dict[str, Any]]:
    """The servers that are this session's alone, each child marked as its."""
    servers: dict[str, dict[str, Any]] = {}
    for name, server in spec.profile.profile.mcp.servers.items():
        if server.share == "session":
            config = _mcp_config(server, deadline)
            # The MCP SDK passes on a handful of variables only, so the mark must stand here.
            servers[name] = {"cwd": str(spec.workdir), **config, "env": {**config["env"], **tree.env("mcp")}}
    return servers


def context_tokens(spec: SessionSpec) -> int:
    """The context cap: the profile's, but never more than a known window leaves beside the summariser."""
    cap = int(spec.profile.profile.limits.max_context_tokens)
    window = spec.model.context_window
    return min(cap, int(window * WINDOW_SHARE)) if window else cap


def build_agent(
    spec: SessionSpec,
    *,
    model: GovernedModel,
    sub_model: Callable[[], GovernedModel],
    transport: GovernedTransport,
    guard: ToolGuard,
    tree: SessionTree,
    shared: SharedServers,
    deadline: Deadline,
    extra_tools: Sequence[Any] = (),
) -> AgentParts:
    """Builds the agent of `spec` and governs every tool it has. Blocks while MCP servers start, until `deadline`.

    `sub_model` makes a client for each sub-agent; `shared` has the servers that are not the session's alone;
    `extra_tools` are agentao tools. Raises ConfigError or InternalError.
    """
    profile = spec.profile.profile
    shell = TrackedShell(
        tree, profile.limits.tool_timeouts_s.get("run_shell_command", profile.limits.tool_timeout_s), model.secrets
    )
    try:
        agent = Agentao(
            working_directory=spec.workdir,
            llm_client=model,
            transport=transport,
            permission_mode=profile.tools.permission_mode,
            skill_manager=_skills(spec),
            memory_manager=_memory(spec),
            mcp_registry=InMemoryMCPRegistry(),
            extra_mcp_servers=own_servers(spec, tree, deadline) or None,
            max_context_tokens=context_tokens(spec),
            filesystem=ConfinedFileSystem(spec.workdir, mark_denied),
            shell=shell,
            extra_tools=list(extra_tools),
            enable_builtin_agents=profile.tools.sub_agents,
        )
    except (ValueError, TypeError) as error:
        raise ConfigError(f"The session's agent could not be built: {error}") from error
    except OSError as error:
        raise InternalError(f"The session's agent could not be built: {error}") from error
    parts = AgentParts(agent, model, transport, guard, shell, tree)
    transport.agent = agent
    agent._extract_context_hints = lambda: path_hints(agent.messages)  # type: ignore[method-assign]
    if spec.model.kind == "embedded":
        agent._build_system_prompt = lambda: _BRIEF_PROMPT  # type: ignore[method-assign]
    _join_shared(parts, spec, shared, deadline)
    _prune(parts, spec)
    if profile.tools.sub_agents:
        govern_sub_agents(agent, sub_model, guard, profile.limits.max_iterations)
    else:
        # It lists project agents in the system prompt, which the model could not call.
        agent.agent_manager = None  # type: ignore[assignment]
    guard.guard_all(agent.tools.tools.values())
    if SHELL_TOOL_NAME in agent.tools.tools:
        _warm_shell_rules()
    _check_mcp(parts)
    return parts


@functools.lru_cache(maxsize=1)
def _warm_shell_rules() -> None:
    """Compiles the patterns by which agentao refuses the worst commands.

    It does so at the first command, for 0.3 s of which no other thread gets anything (23 patterns, one of 15,000
    nodes; 3 s on a busy machine): within a turn that is long enough to be abandoned.
    """
    PermissionEngine(project_root=Path(_NOWHERE), rules=[]).decide_detail(SHELL_TOOL_NAME, {"command": "true"})


def _join_shared(parts: AgentParts, spec: SessionSpec, shared: SharedServers, deadline: Deadline) -> None:
    """Gives the agent the tools of the servers it shares with others."""
    for name, server in spec.profile.profile.mcp.servers.items():
        if server.share == "session":
            continue
        # The start-up limit is no part of what tells servers apart.
        config = _mcp_config(server, Deadline.never())
        if deadline.remaining_s() <= 0:
            parts.warnings.append(Reason(f"MCP server {name} is not available: no time was left to start it"))
            continue
        manager, problem = shared.get(server.share, spec.key.tenant, name, config)
        if problem is not None:
            parts.warnings.append(_not_available(name, problem))
        else:
            register_mcp_tools(parts.agent, manager)


def _prune(parts: AgentParts, spec: SessionSpec) -> None:
    """Leaves the tools that are allowed: by name, by being an MCP server's, or by starting a permitted sub-agent."""
    tools = spec.profile.profile.tools
    allow = set(tools.allow)
    registry = parts.agent.tools
    read_only = tools.permission_mode == "read-only"
    for name, tool in list(registry.tools.items()):
        if registry.origin(name) == "mcp":
            if read_only:
                _admit(tool)
        elif name not in allow and not (tools.sub_agents and is_sub_agent_tool(tool)):
            registry.unregister(name)
    missing = sorted(allow - set(registry.tools))
    if missing:
        parts.warnings.append(Reason(f"tools.allow names tools that do not exist here: {', '.join(missing)}"))


def _admit(tool: Any) -> None:
    """Lets an MCP tool run in read-only mode: the operator configured its server, which is the permission.

    agentao asks the tool, whose answer is a property of its class, so this one instance gets a class that says yes.
    """
    if not tool.is_read_only:
        kind = type(tool)
        says = {"is_read_only": True, "requires_confirmation": False, "__module__": kind.__module__}
        tool.__class__ = type(f"Admitted{kind.__name__}", (kind,), says)


def _check_mcp(parts: AgentParts) -> None:
    manager = parts.agent.mcp_manager
    if manager is None:
        return
    for status in manager.get_server_status():
        if status.get("status") != "connected":
            why = status.get("error") or status.get("status")
            parts.warnings.append(_not_available(str(status.get("name")), str(why)))


def _not_available(name: str, why: str) -> Reason:
    """What a server says for itself holds its command and paths."""
    public = f"MCP server {name} is not available"
    return Reason(public, f"{public}: {why}")


def restore(parts: AgentParts, conversation: Conversation) -> None:
    """Lets a new agent go on where the one of `conversation` stopped."""
    agent = parts.agent
    agent.messages = [dict(message) for message in conversation.messages]
    agent.todo_tool.todos = [dict(todo) for todo in conversation.todos]
    if conversation.active_skills:
        restore_agent_skills(agent, list(conversation.active_skills))
    parts.model.saved_anchor = dict(conversation.anchor) if conversation.anchor else None
