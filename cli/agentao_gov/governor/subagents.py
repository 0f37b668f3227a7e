"""Sub-agents under the parent's limits: same ledger, same deadline, same tool limits, same confinement.

agentao builds a sub-agent with a stock model client of its own, outside every veto. The tools that start sub-agents are
therefore patched one by one (never agentao's classes): the agent they build gets a governed client before its first
call, and its tools get the guard.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from agentao.agents.tools import AgentToolWrapper

from agentao_gov.governor.hints import path_hints
from agentao_gov.governor.model_client import GovernedModel
from agentao_gov.governor.tools import ToolGuard

__all__ = ["govern_sub_agents", "is_sub_agent_tool"]


def is_sub_agent_tool(tool: Any) -> bool:
    """Whether a tool starts a sub-agent."""
    return isinstance(tool, AgentToolWrapper)


def govern_sub_agents(agent: Any, model: Callable[[], GovernedModel], guard: ToolGuard, rounds_max: int) -> None:
    """Patches every tool of the agent that starts sub-agents."""
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
