"""Every refusal for room or budget, on one real service: its code, its Retry-After, and that waiting helps."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from agentao_gov.simulator import Simulator
from tests.e2e.service import Deployment, Service, running, say, wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(90)]


@pytest.fixture
def tight(deployment: Deployment) -> Service:
    """A service with a small limit of each kind."""
    tenants = deployment.tenants("one", "users", "poor", "broke", "many")
    tenants["one"]["max_sessions"] = 1
    tenants["users"]["max_sessions_per_user"] = 1
    tenants["poor"]["daily_tokens"] = 8_000
    tenants["broke"]["daily_tokens"] = 100
    return deployment.start(
        "--no-warden", tenants=tenants, pool={"max_busy": 3, "queue_limit": 1, "queue_timeout": "1s"}
    )


def test_each_limit_refuses_with_its_own_code(tight: Service, deployment: Deployment, simulator: Simulator) -> None:
    """Caps of tenant and user, the queue's length and time, and the budgets."""
    service = tight
    keys = deployment.keys
    service.key = keys["many"]
    held = say(hold="held", text="x")
    with running(
        lambda: service.turn("s1", held, key=keys["one"]), lambda: service.turn("s1", held, key=keys["users"])
    ) as results:
        simulator.wait_for(held=2)
        tenant_cap = service.turn("s2", "x", key=keys["one"])
        user_cap = service.turn("s2", "x", key=keys["users"])
        other_user = service.turn("s3", say(text="x"), key=keys["users"], user="bob")
        with running(lambda: service.turn("m1", held)) as third:
            simulator.wait_for(held=3)
            with running(lambda: service.turn("m2", "waits")) as waiting:
                wait_until(lambda: service.status()["queue"]["length"] == 1, "the waiting turn")
                queue_full = service.turn("m3", "x")
            queue_timeout = waiting[0]
            simulator.release("held")
    poor = [service.turn("p", say(text="x"), key=keys["poor"]) for _ in range(4)]
    impossible = service.turn("b", say(text="x"), key=keys["broke"])
    midnight = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0) + timedelta(days=1)
    to_midnight_s = (midnight - datetime.now(UTC)).total_seconds()
    metrics = service.metrics()

    assert (tenant_cap.status, tenant_cap.code) == (429, "tenant_session_limit")
    assert (user_cap.status, user_cap.code) == (429, "user_session_limit")
    assert other_user.status == 200
    assert (queue_full.status, queue_full.code) == (429, "queue_full")
    assert (queue_timeout.status, queue_timeout.code) == (429, "queue_timeout")
    assert all(int(answer.headers["retry-after"]) >= 1 for answer in (tenant_cap, user_cap, queue_full, queue_timeout))
    assert [answer.status for answer in (*results, *third)] == [200, 200, 200]
    exhausted = poor[-1]
    assert poor[0].status == 200
    assert (exhausted.status, exhausted.code) == (429, "budget_exhausted")
    assert exhausted.json["error"]["type"] == "insufficient_quota"
    assert abs(int(exhausted.headers["retry-after"]) - to_midnight_s) < 120
    assert (impossible.status, impossible.code) == (400, "budget_impossible")
    assert "retry-after" not in impossible.headers
    for reason in ("tenant_session_limit", "user_session_limit", "queue_full", "queue_timeout"):
        assert metrics[f'rejections_total{{reason="{reason}"}}'] == 1
    assert metrics['budget_refusals_total{reason="exhausted",scope="tenant"}'] >= 1
    assert 0.5 < metrics['budget_used_ratio{scope="tenant",tenant="poor"}'] <= 1
