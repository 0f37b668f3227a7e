"""Breaks the product in one place, then runs it: `python sabotages.py NAME serve ...`.

Each is a fault that a reader of the configuration could not see: the setting is there, and it does not hold. Worker
processes import this module anew, so the name travels in the environment.
"""

from __future__ import annotations

import dataclasses
import os
import re
import sys
from collections.abc import Callable
from typing import Any


def cap_not_enforced() -> None:
    """The caps are read, shown, and never asked for."""
    from agentao_gov.pool.limits import PoolLimits, TenantCaps

    PoolLimits.caps_of = lambda self, tenant: TenantCaps()  # type: ignore[method-assign]


def cap_off_by_one() -> None:
    """One session more than the file allows."""
    from agentao_gov.pool.limits import PoolLimits, TenantCaps

    inner = PoolLimits.caps_of

    def caps_of(self: Any, tenant: Any) -> TenantCaps:
        caps = inner(self, tenant)
        assert caps.sessions is not None
        return dataclasses.replace(caps, sessions=caps.sessions + 1)

    PoolLimits.caps_of = caps_of  # type: ignore[method-assign]


def cap_when_whole() -> None:
    """The caps hold at one door: a turn that is streamed is nobody's."""
    from agentao_gov.service.turns import TurnResponse

    inner = TurnResponse.__init__

    def init(self: Any, gateway: Any, order: Any, *, answer: Any, writer: Any = None) -> None:
        if writer is not None:
            key = dataclasses.replace(order.key, tenant=f"free-{order.key.session}")
            order = dataclasses.replace(order, key=key)
        inner(self, gateway, order, answer=answer, writer=writer)

    TurnResponse.__init__ = init  # type: ignore[method-assign]


def cap_for_each_worker() -> None:
    """Every worker allows what the file allows for all of them."""
    from agentao_gov.service import build

    build.limits_per_worker = lambda deployment, workers: deployment


def refusal_without_hint() -> None:
    """Nobody is told when to come back."""
    from agentao_gov.service import turns

    inner = turns.failure_of_error  # type: ignore[attr-defined]
    turns.failure_of_error = (  # type: ignore[attr-defined]
        lambda error: dataclasses.replace(inner(error), retry_after_s=None)
    )


def refuses_everyone() -> None:
    """A cap that nobody gets below."""
    from agentao_gov.errors import TenantSessionLimitError
    from agentao_gov.service.gateway import Gateway

    def submit(self: Any, order: Any, on_event: Any) -> Any:
        raise TenantSessionLimitError("no", retry_after_s=1.0)

    Gateway.submit = submit  # type: ignore[method-assign]


def budget_for_each_worker() -> None:
    """Every worker keeps a ledger of its own."""
    from agentao_gov import runtime

    inner = runtime.open_ledger  # type: ignore[attr-defined]

    def open_ledger(resolved: Any, *rest: Any) -> Any:
        budget = resolved.deployment.budget.model_copy(update={"path": f"ledger-{os.getpid()}.db"})
        deployment = resolved.deployment.model_copy(update={"budget": budget})
        return inner(dataclasses.replace(resolved, deployment=deployment), *rest)

    runtime.open_ledger = open_ledger  # type: ignore[attr-defined,assignment]


def budget_ends_early() -> None:
    """Five times what a call needs is asked for, so that half of the budget can never be used."""
    from agentao_gov.budget.ledger import TokenLedger

    inner = TokenLedger.reserve

    def reserve(self: Any, request: Any, **rest: Any) -> Any:
        return inner(self, dataclasses.replace(request, prompt_tokens=5 * request.prompt_tokens), **rest)

    TokenLedger.reserve = reserve  # type: ignore[method-assign]


def refusal_forgets_midnight() -> None:
    """Come back in a minute, it says, of a budget that is spent for the day."""
    from agentao_gov.service import errors

    errors._window_end_s = lambda lines, now: 60.0


def budget_not_reserved() -> None:
    """The budget is checked before a call, but the call's prompt is not held until it is settled."""
    from agentao_gov.budget.ledger import TokenLedger

    inner = TokenLedger.reserve

    def reserve(self: Any, request: Any, **rest: Any) -> Any:
        return inner(self, dataclasses.replace(request, prompt_tokens=1, output_tokens_min=1), **rest)

    TokenLedger.reserve = reserve  # type: ignore[method-assign]


def timeout_returns_early() -> None:
    """The turn's report comes in time, while its thread goes on reading from the model."""
    from agentao_gov.governor import session
    from agentao_gov.governor.classify import StopCause
    from agentao_gov.governor.http import AbortScope

    def watch(turn: Any, done: Any, grace_s: float, kill: Any) -> bool:
        if not done.wait(turn.deadline.remaining_s()):
            turn.stop(StopCause.DEADLINE, "The turn met its deadline.")
        return True

    AbortScope.abort = lambda self: None  # type: ignore[method-assign]
    session._watch = watch


def cap_counts_late() -> None:
    """Three more iterations than the profile allows."""
    from agentao import Agentao

    inner = Agentao.chat

    def chat(self: Any, message: Any, max_iterations: int = 100, *rest: Any, **named: Any) -> Any:
        return inner(self, message, max_iterations + 3, *rest, **named)

    Agentao.chat = chat  # type: ignore[method-assign,assignment]


def servers_left_behind() -> None:
    """An evicted session is forgotten, not closed: its MCP servers stay."""
    from agentao_gov.governor.session import GovernedSession

    GovernedSession.close = lambda self, deadline: None  # type: ignore[method-assign]


def drain_cancels() -> None:
    """Turns in flight are cancelled where they should be waited for."""
    from agentao_gov.pool import AgentPool

    inner = AgentPool._drain

    def drain(self: Any) -> Any:
        inner(self)
        return self._cancel_running()

    AgentPool._drain = drain  # type: ignore[method-assign]


def metric_is_the_setting() -> None:
    """The metric says what was planned, not what is there."""
    from agentao_gov.monitor.metrics import Metrics

    inner = Metrics.render

    def render(self: Any) -> bytes:
        return re.sub(rb"(?m)^agentao_gov_mcp_processes .*$", b"agentao_gov_mcp_processes 4.0", inner(self))

    Metrics.render = render  # type: ignore[method-assign]


def no_last_call() -> None:
    """The fallback is configured and never asked for."""
    from agentao_gov.governor.transport import GovernedTransport

    inner = GovernedTransport.__init__
    GovernedTransport.__init__ = (  # type: ignore[method-assign]
        lambda self, *, wrap_up, **rest: inner(self, wrap_up=False, **rest)
    )


def sessions_forget() -> None:
    """What is kept of an evicted session is nothing."""
    from agentao_gov.governor.session import GovernedSession
    from agentao_gov.governor.types import Conversation

    GovernedSession.snapshot = lambda self: Conversation()  # type: ignore[method-assign]


def idle_from_the_start() -> None:
    """The TTL counts from the beginning of a turn: after a long one the session is gone at once."""
    from agentao_gov.pool.core import PoolCore

    inner = PoolCore.release

    def release(self: Any, now: float, lease_id: int, *rest: Any) -> Any:
        lease = self.leases.get(lease_id)
        out = inner(self, now, lease_id, *rest)
        if lease is not None:
            lease.entry.idle_since = lease.granted_at
        return out

    PoolCore.release = release  # type: ignore[method-assign,assignment]


def second_signal_ignored() -> None:
    """Whoever asks twice waits all the same."""
    from agentao_gov.service.shutdown import ShutdownWalk

    inner = ShutdownWalk.signalled

    def signalled(self: Any, signum: int) -> None:
        if self._first_signal is None:
            inner(self, signum)

    ShutdownWalk.signalled = signalled  # type: ignore[method-assign]


def alert_sticks() -> None:
    """An alert that fired stays."""
    from agentao_gov.monitor.alerts import AlertRule

    def fires(self: AlertRule, value: float, active: bool) -> bool:
        return active or value >= self.line > 0

    AlertRule.fires = fires  # type: ignore[method-assign]


def ledger_always_fine() -> None:
    """Nobody is told that the ledger does not answer."""
    from agentao_gov.monitor.budgets import BudgetWatch

    BudgetWatch.store_ok = property(lambda self: True)  # type: ignore[assignment,method-assign]


SABOTAGES: dict[str, Callable[[], None]] = {
    function.__name__: function
    for function in (
        cap_not_enforced,
        cap_off_by_one,
        cap_when_whole,
        cap_for_each_worker,
        refusal_without_hint,
        refuses_everyone,
        budget_not_reserved,
        budget_for_each_worker,
        budget_ends_early,
        refusal_forgets_midnight,
        timeout_returns_early,
        cap_counts_late,
        no_last_call,
        servers_left_behind,
        sessions_forget,
        idle_from_the_start,
        drain_cancels,
        second_signal_ignored,
        metric_is_the_setting,
        alert_sticks,
        ledger_always_fine,
    )
}
_VARIABLE = "CHECKLIST_SABOTAGE"

if __name__ == "__mp_main__" and _VARIABLE in os.environ:
    SABOTAGES[os.environ[_VARIABLE]]()

if __name__ == "__main__":
    os.environ[_VARIABLE] = sys.argv.pop(1)
    SABOTAGES[os.environ[_VARIABLE]]()
    # A warden would start the product itself anew, whole.
    sys.argv.append("--no-warden")
    from agentao_gov.main import main

    main()
