"""Builds one session's agent: everything agentao would find or create for itself is given to it instead.

Nothing is written, nothing outside the session's directory is read, no log handler is installed, no name is looked up.
With the shared HTTP client this takes 1-2 ms and about 30 KB (a plain `Agentao(api_key=...)`: 36 ms and 850 KB).
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import agentao.context_manager
from agentao import Agentao
from agentao.agents.tools import AgentToolWrapper
from agentao.embedding.sessions import restore_agent_skills
from agentao.mcp import InMemoryMCPRegistry
from agentao.memory import MemoryManager, SQLiteMemoryStore
from agentao.permissions import PermissionEngine
from agentao.skills import SkillManager
from agentao.tools.base import SHELL_TOOL_NAME

from agentao_gov.clock import Clock, Deadline
from agentao_gov.errors import ConfigError, InternalError
from agentao_gov.governor.agentao_bounds import path_hints
from agentao_gov.governor.confine import TrackedShell, sandbox_of
from agentao_gov.governor.file_program import ConfinedFileSystem
from agentao_gov.governor.mcp_servers import SessionServers, SharedServers
from agentao_gov.governor.model_client import GovernedModel
from agentao_gov.governor.report import Reason
from agentao_gov.governor.rules import GovernedPermissions
from agentao_gov.governor.session_files import follow_no_links, is_plain, memory_store
from agentao_gov.governor.tools import ToolGuard, mark_denied
from agentao_gov.governor.transport import GovernedTransport
from agentao_gov.governor.types import Conversation, SessionSpec
from agentao_gov.process.sandbox import SandboxLayers
from agentao_gov.process.tree import SessionTree

# agentao's context manager asks tiktoken for its tables as soon as it is installed, and tiktoken downloads them: a
# constructor that waits for the network, or fails without. Its own heuristic, corrected by the reported usage, only
# decides when to compact; the ledger counts by `tokens`, not by it.
agentao.context_manager._TIKTOKEN_AVAILABLE = False
follow_no_links()

#: Share of a model's window that the conversation may fill: the summariser needs the rest.
WINDOW_SHARE = 0.8
_NOWHERE = "/nonexistent/agentao-gov"
#: OpenAI's limit of tools in a request.
_TOOLS_MAX = 128
#: agentao's system prompt takes 2,350 tokens, which a small model on two cores reads for 15 s and cannot follow: it
#: answered "Why not?" or went on for ever. With this one it answers the question, after a second.
_BRIEF_PROMPT = "You are a helpful assistant. Answer the question directly, in one or two short sentences."


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
    servers: SessionServers
    warnings: list[Reason] = field(default_factory=list)


@functools.lru_cache(maxsize=1)
def _no_memory() -> Any:
    """A memory that nobody writes to, shared: one of its own costs each session 100 KB."""
    return MemoryManager(project_store=SQLiteMemoryStore.open_or_memory(":memory:"))


_NO_MEMORY_LOCK = threading.Lock()


def _memory(spec: SessionSpec) -> Any:
    if "save_memory" in spec.profile.profile.tools.allow:
        return MemoryManager(project_store=memory_store(spec.workdir))
    with _NO_MEMORY_LOCK:
        return _no_memory()


def _skills(spec: SessionSpec) -> Any:
    allowed = "activate_skill" in spec.profile.profile.tools.allow and all(
        is_plain(spec.workdir, ".agentao", name) for name in ("skills", "skills_config.json")
    )
    # An explicit directory also keeps agentao from copying its bundled skills into the user's home.
    where = spec.workdir / ".agentao" / "skills" if allowed else Path(_NOWHERE)
    return SkillManager(skills_dir=str(where), working_directory=spec.workdir if allowed else Path(_NOWHERE))


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
    clock: Clock,
    deadline: Deadline,
    layers: Callable[[], SandboxLayers],
    extra_tools: Sequence[Any] = (),
) -> AgentParts:
    """Builds the agent of `spec` and governs every tool it has. Blocks while MCP servers start, until `deadline`.

    `sub_model` makes a client for each sub-agent; `shared` has the servers that are not the session's alone;
    `layers` tells what this machine has to make a sandbox of, where the profile needs one; `extra_tools` are
    agentao tools. Raises ConfigError or InternalError.
    """
    profile = spec.profile.profile
    sandbox = sandbox_of(profile, spec.workdir, layers)
    shell = TrackedShell(
        tree,
        profile.limits.tool_timeouts_s.get(SHELL_TOOL_NAME, profile.limits.tool_timeout_s),
        model.secrets,
        sandbox=sandbox,
        required=profile.tools.sandbox != "off",
    )
    permissions = GovernedPermissions(profile.tools, spec.workdir, sandboxed=sandbox is not None)
    servers = SessionServers(spec, tree, shared, clock, layers)
    try:
        agent = Agentao(
            working_directory=spec.workdir,
            llm_client=model,
            transport=transport,
            permission_engine=permissions,
            skill_manager=_skills(spec),
            memory_manager=_memory(spec),
            mcp_registry=InMemoryMCPRegistry(),
            extra_mcp_servers=servers.own(deadline) or None,
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
    parts = AgentParts(agent, model, transport, guard, shell, tree, servers)
    transport.agent = agent
    permissions.registry = agent.tools.tools
    agent._extract_context_hints = lambda: path_hints(agent.messages)  # type: ignore[method-assign]
    if spec.model.kind == "embedded":
        agent._build_system_prompt = lambda: _BRIEF_PROMPT  # type: ignore[method-assign]
    servers.join(agent, deadline)
    _prune(parts, spec)
    servers.admit()
    if profile.tools.sub_agents:
        govern_sub_agents(agent, sub_model, guard, profile.limits.max_iterations)
    else:
        # It lists project agents in the system prompt, which the model could not call.
        agent.agent_manager = None  # type: ignore[assignment]
    if len(agent.tools.tools) > _TOOLS_MAX:
        offered = f"The model is offered {len(agent.tools.tools)} tools"
        parts.warnings.append(Reason(f"{offered}; OpenAI takes {_TOOLS_MAX}, and many models do worse with fewer."))
    guard.guard_all(agent.tools.tools.values())
    if SHELL_TOOL_NAME in agent.tools.tools:
        _warm_shell_rules()
    return parts


@functools.lru_cache(maxsize=1)
def _warm_shell_rules() -> None:
    """Compiles the patterns by which agentao refuses the worst commands.

    It does so at the first command, for 0.3 s of which no other thread gets anything (23 patterns, one of 15,000
    nodes; 3 s on a busy machine): within a turn that is long enough to be abandoned.
    """
    PermissionEngine(project_root=Path(_NOWHERE), rules=[]).decide_detail(SHELL_TOOL_NAME, {"command": "true"})


def _prune(parts: AgentParts, spec: SessionSpec) -> None:
    """Leaves the tools that are allowed: by name, by being an MCP server's, or by starting a permitted sub-agent."""
    tools = spec.profile.profile.tools
    allow = set(tools.allow)
    registry = parts.agent.tools
    for name, tool in list(registry.tools.items()):
        permitted = name in allow or registry.origin(name) == "mcp" or (tools.sub_agents and is_sub_agent_tool(tool))
        if not permitted:
            registry.unregister(name)
    missing = sorted(allow - set(registry.tools))
    if missing:
        parts.warnings.append(Reason(f"tools.allow names tools that do not exist here: {', '.join(missing)}"))


def restore(parts: AgentParts, conversation: Conversation) -> None:
    """Lets a new agent go on where the one of `conversation` stopped."""
    agent = parts.agent
    agent.messages = [dict(message) for message in conversation.messages]
    agent.todo_tool.todos = [dict(todo) for todo in conversation.todos]
    if conversation.active_skills:
        restore_agent_skills(agent, list(conversation.active_skills))
    parts.model.saved_anchor = dict(conversation.anchor) if conversation.anchor else None
