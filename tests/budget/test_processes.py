"""Real processes on one ledger, against what the provider really produced."""

from __future__ import annotations

import json
import statistics
from contextlib import ExitStack
from typing import Any

import pytest

from agentao_gov.budget import Scope, ScopeLimit
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


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_eight_processes_with_thirty_two_streams_each_use_the_budget_and_no_more(
    simulator: Simulator, place: dict[str, str]
) -> None:
    """Provider truth within every limit, 99.5 % of it used, nobody told "busy", the modest tenant not pushed aside."""
    simulator.configure({"default": {"answer_tokens": {"dist": "uniform", "low": 5, "high": 70}, "first_token": 0.0}})
    greedy = {"tenant": "greedy", "tenant_limit": 60_000, "user_limit": None}
    modest = {"tenant": "modest", "tenant_limit": 20_000, "user_limit": 20_000, "user": "mia"}
    streams = [greedy | {"user": f"user-{n % 4}"} for n in range(28)] + [modest] * 4
    plan = {"mode": "streams", "port": simulator.port, "prompt_tokens": PROMPT_TOKENS, "streams": streams, **place}

    results = run_all(plan, PROCESSES)

    truth = simulator.truth(requests=False)
    errors = [error for result in results for error in result["errors"]]
    waits: dict[str, list[float]] = {}
    for result in results:
        for user, values in result["waits_ms"].items():
            waits.setdefault(user, []).extend(values)
    assert errors == []
    assert sum(len(result["refused"]) for result in results) == PROCESSES * 32
    for tenant, limit in (("greedy", 60_000), ("modest", 20_000)):
        assert limit * 0.995 <= truth.for_key(tenant).total_tokens <= limit
    for number in range(4):
        # Four users with as many streams each share one budget: round-robin gives them the same.
        share = truth.by_user[f"user-{number}"].total_tokens / truth.for_key("greedy").total_tokens
        assert 0.2 <= share <= 0.3
    crowd = statistics.median(waits["user-0"] + waits["user-1"] + waits["user-2"] + waits["user-3"])
    assert statistics.median(waits["mia"]) <= max(crowd * 1.5, 50)
    store = open_at(place)
    for balance in store.all_balances():
        assert balance.reserved == 0
        assert balance.estimated == 0
    for tenant in ("greedy", "modest"):
        (total,) = store.balances([ScopeLimit(Scope("tenant", tenant), None)])
        assert total.used == truth.for_key(tenant).total_tokens
    verified = store.verify()
    assert verified.ok, verified.problems
    store.close()
