"""Real processes on one ledger, against what the provider really produced."""

from __future__ import annotations

import json
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from agentao_gov.budget import Scope, ScopeLimit, SqliteStore, Store
from agentao_gov.budget.journal import decode
from agentao_gov.simulator import Simulator
from tests.budget.governed import WHOLE_MODEL
from tests.budget.processes import PROMPT_TOKENS, open_at, start

PROCESSES = 8


def run_all(plan: dict[str, Any], count: int, program: str = "tests.budget.worker") -> list[dict[str, Any]]:
    with ExitStack() as over:
        workers = []
        for _ in range(count):
            workers.append(over.enter_context(start(plan, program)))
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
            users += [name for ref in entry.refs if (name := names[ref]).startswith(f"user:{tenant}/")]
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


def spent(simulator: Simulator) -> dict[str, int]:
    """What the provider produced per scope, from the names that each request was tagged with."""
    sums: Counter[str] = Counter()
    for tag, tally in simulator.truth(requests=False).by_tag.items():
        tenant, user, session = tag.split()
        for name in (f"tenant:{tenant}", f"user:{tenant}/{user}", f"session:{tenant}/{session}"):
            sums[name] += tally.total_tokens
    return dict(sums)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_eight_processes_with_thirty_two_governed_turns_each_use_every_scope_and_no_more(
    simulator: Simulator, tmp_path: Path
) -> None:
    """Real agentao on the real model client, half of it streamed: the same must hold with its prompts and tools.

    Its smallest prompt is bounded with about 3,300 tokens: what is left below that nobody can use. So the budgets that
    have to be used to 99.5 % are large enough for it to be less than the other 0.5 %.
    """
    greedy = [{"tenant": "greedy", "user": user} for user in ["ann"] * 8 + ["bob"] * 4]
    players = [who | {"model": model} for who in greedy for model in ("simulated", WHOLE_MODEL)]
    players += [{"tenant": "modest", "user": "mia", "model": model} for model in ("simulated", WHOLE_MODEL)] * 4
    tool = {"name": "glob", "args": {"pattern": "*.none"}, "rounds": 1}
    answer = {"dist": "uniform", "low": 5, "high": 3_000}
    plan = {
        "root": str(tmp_path),
        "store": str(tmp_path / "ledger.db"),
        "url": simulator.base_url,
        # A call may hold what its session has left: few fit at once, so players wait for tokens, not for a processor.
        # One tenant meets its own limit, the other its user's, and conversations meet theirs.
        "tenants": {"greedy": {"daily_tokens": 1_000_000}, "modest": {"daily_tokens": 2_000_000}},
        "budget": {"user_daily_tokens": 700_000, "session_daily_tokens": 24_000},
        "limits": {"max_output_tokens": 16_000, "turn_timeout": 240, "turn_tokens": 100_000},
        "behaviour": {"answer_tokens": answer, "first_token": 0.2, "tool": tool},
        "players": players,
    }

    results = run_all(plan, PROCESSES, "tests.budget.governed")

    truth = spent(simulator)
    store = SqliteStore(tmp_path / "ledger.db")
    ends = sum((Counter(result["ends"]) for result in results), Counter())
    assert [error for result in results for error in result["errors"]] == []
    assert [detail for result in results for detail in result["wrongly"]] == []
    assert {"answered", "tenant", "user", "session"} <= set(ends)
    books = {str(balance.scope): balance for balance in store.all_balances()}
    assert set(truth) <= set(books)
    for name, balance in books.items():
        assert balance.limit is not None
        assert truth.get(name, 0) == balance.used <= balance.limit, name
        assert (balance.reserved, balance.estimated) == (0, 0)
    assert truth["tenant:greedy"] >= 1_000_000 * 0.995
    assert truth["user:modest/mia"] >= 700_000 * 0.995
    # Round-robin: once all wait, the user with twice the players is served about as often as the other, not twice.
    served = grants(store, "greedy")
    late = Counter(served[len(served) // 2 : len(served) * 9 // 10])
    assert max(late.values()) <= min(late.values()) * 1.5, late
    seen = simulator.truth()
    kinds = Counter(request.stream for request in seen.requests)
    assert min(kinds[True], kinds[False]) >= 0.2 * kinds.total(), kinds
    assert seen.total.peak_in_flight >= PROCESSES
    verified = store.verify()
    assert verified.ok, verified.problems
    store.close()
