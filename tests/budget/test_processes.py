"""Real processes on one ledger, against what the provider really produced."""

from __future__ import annotations

import json
from collections import Counter
from contextlib import ExitStack
from typing import Any

import pytest

from agentao_gov.budget import Scope, ScopeLimit, Store
from agentao_gov.budget.journal import decode
from agentao_gov.simulator import Simulator
from tests.budget.processes import PROMPT_TOKENS, open_at, start

PROCESSES = 8


def run_all(plan: dict[str, Any], count: int) -> list[dict[str, Any]]:
    with ExitStack() as over:
        workers = []
        for _ in range(count):
            workers.append(over.enter_context(start(plan)))
            over.callback(workers[-1].kill)
        for worker in workers:
            assert worker.stdout is not None
            assert worker.stdout.readline() == "ready\n"
        for worker in workers:
            assert worker.stdin is not None
            worker.stdin.write("go\n")
            worker.stdin.flush()
        results = []
        for worker in workers:
            out, _ = worker.communicate(timeout=120)
            assert worker.returncode == 0
            results.append(json.loads(out))
        return results


def grants(store: Store, tenant: str) -> list[str]:
    """The users of a tenant in the order in which their calls were admitted, from the journal."""
    names: dict[str, str] = {}
    users = []
    for _, text, _ in store.journal():
        entry = decode(text)
        if entry.kind == "line":
            names[entry.id] = entry.note.split()[0]
        elif entry.kind == "reserve":
            users += [name for line in entry.lines if (name := names[line]).startswith(f"user:{tenant}/")]
    return users


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_eight_processes_with_thirty_two_streams_each_use_the_budget_and_no_more(
    simulator: Simulator, place: dict[str, str]
) -> None:
    """Provider truth within every limit, 99.5 % of it used, nobody told "busy", and nobody pushed aside."""
    simulator.configure({"default": {"answer_tokens": {"dist": "uniform", "low": 5, "high": 70}, "first_token": 0.0}})
    greedy = {"tenant": "greedy", "tenant_limit": 60_000, "user_limit": None}
    modest = {"tenant": "modest", "tenant_limit": 20_000, "user_limit": 20_000, "user": "mia"}
    # One user with four times the streams of each other: all want more at once than the budget allows.
    appetite = ["user-0"] * 16 + ["user-1"] * 4 + ["user-2"] * 4 + ["user-3"] * 4
    streams = [greedy | {"user": user} for user in appetite] + [modest] * 4
    plan = {"mode": "streams", "port": simulator.port, "prompt_tokens": PROMPT_TOKENS, "streams": streams, **place}

    results = run_all(plan, PROCESSES)

    truth = simulator.truth(requests=False)
    errors = [error for result in results for error in result["errors"]]
    assert errors == []
    assert sum(len(result["refused"]) for result in results) == PROCESSES * 32
    for tenant, limit in (("greedy", 60_000), ("modest", 20_000)):
        assert limit * 0.995 <= truth.for_key(tenant).total_tokens <= limit
    store = open_at(place)
    for balance in store.all_balances():
        assert balance.reserved == 0
        assert balance.estimated == 0
    for tenant in ("greedy", "modest"):
        (total,) = store.balances([ScopeLimit(Scope("tenant", tenant), None)])
        assert total.used == truth.for_key(tenant).total_tokens
    # Round-robin: while all of them wait, the user with four times the streams gets no more than each other.
    served = grants(store, "greedy")
    middle = Counter(served[len(served) // 4 : len(served) * 3 // 4])
    assert max(middle.values()) - min(middle.values()) <= len(served) * 0.02, middle
    verified = store.verify()
    assert verified.ok, verified.problems
    store.close()
