"""Breaks the product in one place, then runs it: `python sabotages.py NAME serve ...`.

Each is a fault that a reader of the configuration could not see: the setting is there, and it does not hold.
"""

from __future__ import annotations

import dataclasses
import re
import sys
from collections.abc import Callable
from typing import Any


def cap_not_enforced() -> None:
    """The caps are read, shown, and never asked for."""
    from agentao_gov.pool.limits import PoolLimits, TenantCaps

    PoolLimits.caps_of = lambda self, tenant: TenantCaps()  # type: ignore[method-assign]


def budget_not_reserved() -> None:
    """The budget is checked before a call, but the call's prompt is not held until it is settled."""
    from agentao_gov.budget.ledger import TokenLedger

    inner = TokenLedger.reserve

    def reserve(self: Any, request: Any, **rest: Any) -> Any:
        return inner(self, dataclasses.replace(request, prompt_tokens=1, output_tokens_min=1), **rest)

    TokenLedger.reserve = reserve  # type: ignore[method-assign]


def timeout_returns_early() -> None:
    """The turn's report comes in time, while its thread goes on reading from the model."""
    from agentao_gov.governor import runner
    from agentao_gov.governor.classify import StopCause
    from agentao_gov.governor.http import AbortScope

    def watch(turn: Any, done: Any, grace_s: float, kill: Any) -> bool:
        if not done.wait(turn.deadline.remaining_s()):
            turn.stop(StopCause.DEADLINE, "The turn met its deadline.")
        return True

    AbortScope.abort = lambda self: None  # type: ignore[method-assign]
    runner._watch = watch


def cap_counts_late() -> None:
    """Three more iterations than the profile allows."""
    from agentao import Agentao

    inner = Agentao.chat

    def chat(self: Any, message: Any, max_iterations: int = 100, *rest: Any, **named: Any) -> Any:
        return inner(self, message, max_iterations + 3, *rest, **named)

    Agentao.chat = chat


def servers_left_behind() -> None:
    """An evicted session is forgotten, not closed: its MCP servers stay."""
    from agentao_gov.governor.session import GovernedSession

    GovernedSession.close = lambda self, deadline: None  # type: ignore[method-assign]


def drain_cancels() -> None:
    """Turns in flight are cancelled where they should be waited for."""
    from agentao_gov.pool import AgentPool

    inner = AgentPool.begin_drain

    def begin_drain(self: Any) -> Any:
        found = inner(self)
        self.cancel_running()
        return found

    AgentPool.begin_drain = begin_drain  # type: ignore[method-assign]


def metric_is_the_setting() -> None:
    """The metric says what was planned, not what is there."""
    from agentao_gov.monitor.metrics import Metrics

    inner = Metrics.render

    def render(self: Any) -> bytes:
        return re.sub(rb"(?m)^agentao_gov_mcp_processes .*$", b"agentao_gov_mcp_processes 4.0", inner(self))

    Metrics.render = render  # type: ignore[method-assign]


SABOTAGES: dict[str, Callable[[], None]] = {
    function.__name__: function
    for function in (
        cap_not_enforced,
        budget_not_reserved,
        timeout_returns_early,
        cap_counts_late,
        servers_left_behind,
        drain_cancels,
        metric_is_the_setting,
    )
}

if __name__ == "__main__":
    SABOTAGES[sys.argv.pop(1)]()
    from agentao_gov.main import main

    main()
