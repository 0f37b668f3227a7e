"""A process of its own that spends tokens: `python -m tests.budget.worker '{"mode": ...}'`. Answers with one JSON line.

`streams`: many threads, each making calls to the simulated model until its budget says no.
`crash`: a few calls one after the other, and SIGKILL at a named point of one of them.
`recover`, `upkeep`: only opens the ledger.
"""

from __future__ import annotations

import http.client
import json
import os
import signal
import threading
from pathlib import Path
from typing import Any

from agentao_gov.budget import (
    RedisStore,
    ReserveRequest,
    Scope,
    ScopeLimit,
    SqliteStore,
    Store,
    TokenLedger,
    failpoints,
)
from agentao_gov.clock import Deadline
from agentao_gov.errors import BudgetExhaustedError
from tests.budget.working import all_at_once, answer
from tests.support.clock import FakeClock

QUESTION = "Say something about limits, please."


def open_store(plan: dict[str, Any]) -> Store:
    """The ledger that all workers of a test share."""
    place: str = plan["store"]
    return RedisStore(place, name=plan["name"]) if "://" in place else SqliteStore(Path(place))


class Provider:
    """A plain client of the simulated model: one connection per thread."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)

    def ask(self, key: str, user: str, session: str, max_tokens: int, *, stream: bool) -> tuple[int, int]:
        """One call; returns the reported prompt and completion."""
        body = {
            "model": "m",
            "messages": [{"role": "user", "content": QUESTION}],
            "max_tokens": max_tokens,
            "user": user,
            "stream": stream,
        }
        if stream:
            body["stream_options"] = {"include_usage": True}
        headers = {"Authorization": f"Bearer {key}", "X-Session-Id": session, "Content-Type": "application/json"}
        self._connection.request("POST", "/v1/chat/completions", json.dumps(body), headers)
        failpoints.reach("after_send")
        response = self._connection.getresponse()
        if not stream:
            usage = json.loads(response.read())["usage"]
            return usage["prompt_tokens"], usage["completion_tokens"]
        failpoints.reach("after_first_byte")
        usage = None
        for number, line in enumerate(iter(response.readline, b"")):
            if number == 8:
                failpoints.reach("mid_stream")
            if line.startswith(b"data: {"):
                usage = json.loads(line[6:]).get("usage") or usage
        assert usage is not None
        return usage["prompt_tokens"], usage["completion_tokens"]


def spend_until_refused(ledger: TokenLedger, plan: dict[str, Any], who: dict[str, Any], result: dict[str, Any]) -> None:
    """One stream: call after call until the ledger says that the budget is spent."""
    provider = Provider(plan["port"])
    session, tenant, user = f"{os.getpid()}-{threading.get_ident()}", who["tenant"], who["user"]
    scopes = (
        ScopeLimit(Scope("tenant", tenant), who["tenant_limit"]),
        ScopeLimit(Scope("user", f"{tenant}/{user}"), who["user_limit"]),
        ScopeLimit(Scope("session", f"{tenant}/{session}"), None),
        ScopeLimit(Scope("turn", session), None),
    )
    for number in range(10_000):
        call_id = f"{session}-{number}"
        request = ReserveRequest(call_id, scopes, plan["prompt_tokens"], 1, 2_000, tenant, user)
        try:
            held = ledger.reserve(request, deadline=Deadline.after(100))
        except BudgetExhaustedError:
            result["refused"].append(who["tenant"])
            return
        ledger.dispatch(call_id)
        used = provider.ask(tenant, user, session, held.output_tokens, stream=number % 2 == 0)
        ledger.settle(call_id, *used)


def run_streams(plan: dict[str, Any]) -> dict[str, Any]:
    """32 streams at once."""
    ledger = TokenLedger(open_store(plan), heartbeat_s=1.0)
    result: dict[str, Any] = {"refused": [], "errors": []}

    def work(who: dict[str, Any]) -> None:
        try:
            spend_until_refused(ledger, plan, who, result)
        except Exception as error:
            result["errors"].append(f"{type(error).__name__}: {error}")

    threads = [threading.Thread(target=work, args=(who,)) for who in plan["streams"]]
    all_at_once(threads)
    ledger.close()
    return result


def run_crash(plan: dict[str, Any]) -> dict[str, Any]:
    """Calls in a row; dies at `point` of the call number `die_at`."""
    current = 0

    def hook(point: str) -> None:
        if point == plan["point"] and current == plan["die_at"]:
            os.kill(os.getpid(), signal.SIGKILL)

    failpoints.install(hook)
    store = open_store(plan)
    ledger = TokenLedger(store, heartbeat_s=None)
    provider = Provider(plan["port"])
    scopes = (
        ScopeLimit(Scope("tenant", "acme"), 100_000),
        ScopeLimit(Scope("user", "acme/ann"), 100_000),
        ScopeLimit(Scope("session", "acme/s"), 100_000),
        ScopeLimit(Scope("turn", "t"), 100_000),
    )
    for current in range(plan["calls"]):
        call_id = f"c-{current}"
        request = ReserveRequest(call_id, scopes, plan["prompt_tokens"], 1, 60, "acme", "ann")
        held = ledger.reserve(request, deadline=Deadline.after(10))
        ledger.dispatch(call_id)
        ledger.settle(call_id, *provider.ask("acme", "ann", "s", held.output_tokens, stream=True))
    ledger.close()
    return {}


def run_recover(plan: dict[str, Any]) -> dict[str, Any]:
    """Opens the ledger, and dies while it resolves what a dead owner left."""
    failpoints.install(lambda point: os.kill(os.getpid(), signal.SIGKILL) if point == plan["point"] else None)
    open_store(plan).close()
    return {}


def run_upkeep(plan: dict[str, Any]) -> dict[str, Any]:
    """Opens a ledger at a time when much of it is old, and dies while it is brought up to date."""
    failpoints.install(lambda point: os.kill(os.getpid(), signal.SIGKILL) if point == plan["point"] else None)
    SqliteStore(Path(plan["store"]), FakeClock(wall=plan["now"]), retain_s=plan["retain_s"]).close()
    return {}


MODES = {"streams": run_streams, "crash": run_crash, "recover": run_recover, "upkeep": run_upkeep}

if __name__ == "__main__":
    answer(lambda plan: MODES[plan["mode"]](plan))
