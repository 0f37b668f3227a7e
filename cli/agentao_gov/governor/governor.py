"""The governor: one per process. It owns the shared HTTP client and opens sessions."""

from __future__ import annotations

import functools
import logging
import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from agentao.runtime.name_repair import repair_tool_name

from agentao_gov.budget import scope_limits
from agentao_gov.budget.types import Ledger, ScopeLimit
from agentao_gov.clock import SYSTEM_CLOCK, Clock, Deadline
from agentao_gov.errors import InternalError
from agentao_gov.governor.build import build_agent, context_tokens, is_sub_agent_tool, restore
from agentao_gov.governor.http import HttpClient
from agentao_gov.governor.mcp_servers import SharedServers
from agentao_gov.governor.model_client import GovernedModel
from agentao_gov.governor.session import GovernedSession
from agentao_gov.governor.tokens import count_tokens
from agentao_gov.governor.tools import ToolGuard, ToolLog
from agentao_gov.governor.transport import AskUser, ConfirmTool, GovernedTransport
from agentao_gov.governor.turn import Observers, Turn, TurnObserver
from agentao_gov.governor.types import Conversation, SessionSpec, TurnRequest
from agentao_gov.process.sandbox import SandboxLayers, find_layers
from agentao_gov.process.tags import TAG_VARIABLE, session_tag
from agentao_gov.process.tree import SessionTree

if TYPE_CHECKING:
    from agentao_gov.config import ResolvedDeployment

# Without a handler anywhere Python prints warnings of agentao's modules to standard error, tool arguments included.
for _name in ("agentao", "agentao_gov"):
    logging.getLogger(_name).addHandler(logging.NullHandler())

#: Part of the cancel grace a tool gets to come back; the rest is for the turn around it.
_TOOL_GRACE_SHARE = 0.4
_TOOL_GRACE_S_MAX = 1.0


class Governor:
    """Opens governed sessions. Thread-safe.

    `ledger`: where every session's tokens are reserved. `deployment`: whose budgets hold; None: only the turn has one.
    `clock`: time for deadlines. `observers` are told of every turn. `tools` makes a session's custom tools, called once
    for each session. `confirm` and `ask` reach a person at a terminal; without them the answer is no. `http`: the
    client that models are called with; None: one of its own.
    """

    def __init__(
        self,
        *,
        ledger: Ledger,
        deployment: ResolvedDeployment | None = None,
        clock: Clock = SYSTEM_CLOCK,
        observers: Sequence[TurnObserver] = (),
        tools: Callable[[SessionSpec], Sequence[Any]] | None = None,
        confirm: ConfirmTool | None = None,
        ask: AskUser | None = None,
        http: HttpClient | None = None,
        sandbox_layers: Callable[[], SandboxLayers] = find_layers,
    ) -> None:
        """`deployment` None: only the turn has a budget. `tools` makes a session's custom tools.

        `confirm` and `ask` reach a person at a terminal; without them the answer is no. `sandbox_layers` tells what
        this machine has to hold shell commands with.
        """
        self._ledger = ledger
        self._deployment = deployment
        self._clock = clock
        self._observers = Observers(observers)
        self._tools = tools
        self._confirm = confirm
        self._sandbox_layers = sandbox_layers
        self._ask = ask
        self._http = http if http is not None else HttpClient()
        self._shared = SharedServers(clock)
        # 0.2 s, which would else fall into the first turn.
        threading.Thread(target=count_tokens, args=("warm",), name="warm-tokenizer", daemon=True).start()

    def observe(self, observer: TurnObserver) -> None:
        """Tells `observer` of every turn that begins from now on."""
        self._observers.add(observer)

    def open(self, spec: SessionSpec, conversation: Conversation | None, deadline: Deadline) -> GovernedSession:
        """Builds the agent of the session `spec`; it starts from `conversation`, or from nothing where that is None.

        Blocks while MCP servers start, each within its own limit and `deadline`. Raises ConfigError or InternalError.
        """
        self._http.check(spec.model.base_url)
        try:
            spec.workdir.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise InternalError(f"The session's directory could not be made: {error}") from error
        session: list[GovernedSession] = []

        def current() -> Turn | None:
            return session[0].current if session else None

        limits = spec.profile.profile.limits
        guard = ToolGuard(
            functools.partial(_tool_limit_s, spec),
            min(_TOOL_GRACE_S_MAX, limits.cancel_grace_s * _TOOL_GRACE_SHARE),
        )
        transport = GovernedTransport(
            wrap_up=spec.profile.profile.on_limit.max_iterations == "wrap_up", confirm=self._confirm, ask=self._ask
        )
        parts = build_agent(
            spec,
            model=self._model(spec, current, transport=transport),
            sub_model=lambda: self._model(spec, current),
            transport=transport,
            guard=guard,
            tree=SessionTree(spec.child_env.get(TAG_VARIABLE) or session_tag(spec.key.tenant, spec.key.session)),
            shared=self._shared,
            clock=self._clock,
            deadline=deadline,
            layers=self._sandbox_layers,
            extra_tools=self._tools(spec) if self._tools is not None else (),
        )
        if conversation is not None:
            restore(parts, conversation)
        session.append(
            GovernedSession(
                spec,
                parts,
                ledger=self._ledger,
                scopes=functools.partial(self._scopes, spec),
                observers=self._observers,
                clock=self._clock,
            )
        )
        return session[0]

    def close(self) -> None:
        """Ends shared MCP servers and closes the shared client. Sessions must be closed before."""
        self._shared.close()
        self._http.close()

    def _model(
        self, spec: SessionSpec, current: Callable[[], Turn | None], *, transport: GovernedTransport | None = None
    ) -> GovernedModel:
        def note_calls(turn: Turn, names: Sequence[str]) -> None:
            if transport is not None and transport.log is not None and transport.turn is turn:
                _note_refused(transport.agent, transport.log, names)

        return GovernedModel(
            http=self._http,
            base_url=spec.model.base_url,
            api_key=spec.model.api_key.get_secret_value(),
            model=spec.model.name,
            max_output_tokens=spec.profile.profile.limits.max_output_tokens,
            context_tokens_max=context_tokens(spec),
            turn=current,
            subtree=transport is None,
            on_tool_calls=note_calls,
            api_format=spec.model.api_format,
            options=spec.model.options,
        )

    def _scopes(self, spec: SessionSpec, request: TurnRequest) -> tuple[ScopeLimit, ...]:
        tenant, session = spec.key.tenant, spec.key.session
        tokens = spec.profile.profile.limits.turn_tokens
        return scope_limits(self._deployment, tenant, request.user, session, request.turn_id, tokens)


def _tool_limit_s(spec: SessionSpec, tool: Any) -> float:
    """A tool's limit in seconds: its own, else its MCP server's, else the profile's. A sub-agent's is the turn's."""
    profile = spec.profile.profile
    own = profile.limits.tool_timeouts_s.get(tool.name)
    if own is not None:
        return float(own)
    if is_sub_agent_tool(tool):
        return float(profile.limits.turn_timeout_s)
    server = profile.mcp.servers.get(getattr(tool, "_server_name", ""))
    own = server.request_timeout_s if server is not None else None
    return float(profile.limits.tool_timeout_s if own is None else own)


def _note_refused(agent: Any, log: ToolLog, names: Sequence[str]) -> None:
    """Records calls of tools that this session does not have: agentao answers them without an event."""
    tools = agent.tools.tools
    for name in names:
        if name.strip() and name not in tools and repair_tool_name(name, tools) is None:
            log.refused(name)
