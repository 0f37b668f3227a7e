"""`kill -9` at every named point: what the ledger says afterwards, compared with what the provider produced."""

from __future__ import annotations

import signal
from typing import Any

import pytest

from agentao_gov.budget import Reservation, ReserveRequest, Scope, ScopeLimit, failpoints
from agentao_gov.simulator import Simulator
from tests.budget.processes import PROMPT_TOKENS, open_at, start

pytestmark = [pytest.mark.slow, pytest.mark.timeout(60)]

TENANT = ScopeLimit(Scope("tenant", "acme"), 100_000)
#: The most that one call can cost, and so the most that the ledger may be above the truth.
BOUND = PROMPT_TOKENS + 60


def kill(plan: dict[str, Any]) -> None:
    """Runs a worker that has to be killed at its point."""
    worker = start(plan)
    worker.communicate(timeout=40)
    assert worker.returncode == -signal.SIGKILL, f"{plan['point']} was not reached"


@pytest.mark.parametrize("point", failpoints.POINTS)
def test_a_killed_process_costs_at_least_what_it_spent(simulator: Simulator, place: dict[str, str], point: str) -> None:
    """Truth <= ledger <= truth + the bound of the one call in flight, and nothing stays reserved."""
    simulator.configure({"default": {"answer_tokens": 40, "first_token": 0.0, "per_token": 0.002}})
    shared = {"port": simulator.port, "prompt_tokens": PROMPT_TOKENS, "calls": 4, "die_at": 2, **place}
    in_recovery = point == "during_recovery"

    kill({"mode": "crash", "point": "mid_stream" if in_recovery else point, **shared})
    if in_recovery:
        kill({"mode": "recover", "point": point, **shared})
    store = open_at(place)

    truth = simulator.wait_for(idle=True).for_key("acme").total_tokens
    (balance,) = store.balances([TENANT])
    verified = store.verify()
    store.close()
    assert balance.reserved == 0
    assert truth <= balance.used <= truth + BOUND
    assert verified.ok, verified.problems


def test_every_named_point_is_told_apart() -> None:
    """Twelve points, as promised."""
    assert len(set(failpoints.POINTS)) == 12


def test_a_killed_waiter_leaves_the_queue(simulator: Simulator, place: dict[str, str]) -> None:
    """A dead process neither holds tokens nor a place before the living."""
    simulator.configure({"default": {"answer_tokens": 40, "first_token": 0.0}})
    stream = {"tenant": "acme", "tenant_limit": PROMPT_TOKENS + 61, "user_limit": None, "user": "ann"}
    plan = {"mode": "streams", "port": simulator.port, "prompt_tokens": PROMPT_TOKENS, "streams": [stream], **place}
    holder = open_at(place)
    limit = ScopeLimit(Scope("tenant", "acme"), PROMPT_TOKENS + 61)
    scopes = (limit,)
    assert isinstance(holder.reserve(ReserveRequest("held", scopes, PROMPT_TOKENS, 1, 60, "acme", "bob")), Reservation)
    worker = start(plan)
    assert worker.stdout is not None
    assert worker.stdin is not None
    worker.stdout.readline()
    worker.stdin.write("go\n")
    worker.stdin.flush()
    while holder.answered(["?"]) != ["?"]:
        # The queue changes when the worker's call has entered it.
        assert worker.poll() is None
    worker.kill()
    worker.wait()
    worker.stdout.close()
    worker.stdin.close()

    holder.heartbeat()
    holder.release("held")

    assert isinstance(holder.reserve(ReserveRequest("next", scopes, PROMPT_TOKENS, 60, 60, "acme", "bob")), Reservation)
    holder.close()
