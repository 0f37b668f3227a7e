"""Who is next: round-robin between tenants, first come first served within one; measured in virtual time."""

from __future__ import annotations

import random
from collections import defaultdict

from agentao_gov.governor.types import SessionKey
from agentao_gov.pool.core import PoolCore
from agentao_gov.pool.events import Close, Effect, Grant, Open, Refuse
from agentao_gov.pool.limits import PoolLimits
from agentao_gov.pool.records import FairQueue, Waiter


def a_waiter(id: int, tenant: str) -> Waiter:
    return Waiter(id, SessionKey(tenant, f"s{id}"), "ann", 0.0, 1e9, False, 1e9, 1e9, 0.0, 1e9)


def test_tenants_take_turns() -> None:
    """Four waiters of one tenant and one of another: the one is second."""
    queue = FairQueue()
    for id, tenant in ((1, "a"), (2, "a"), (3, "a"), (4, "a"), (5, "b")):
        queue.push(a_waiter(id, tenant))

    assert [queue.pop().id for _ in range(5)] == [1, 5, 2, 3, 4]


def test_a_late_one_takes_the_place_of_its_arrival() -> None:
    """A session that was locked becomes ready late; its waiter does not lose its place."""
    queue = FairQueue()
    for id in (2, 5, 3):
        queue.push(a_waiter(id, "a"))

    assert [queue.pop().id for _ in range(3)] == [2, 3, 5]


def test_one_can_leave_from_the_middle() -> None:
    """And nothing of it stays."""
    queue = FairQueue()
    waiters = [a_waiter(id, "a") for id in range(3)]
    for waiter in waiters:
        queue.push(waiter)

    queue.remove(waiters[1])

    assert len(queue) == 2
    assert [queue.pop().id for _ in range(2)] == [0, 2]
    assert not queue


class Clinic:
    """A pool in virtual time: turns last a second, openings and closes a tenth."""

    def __init__(self, limits: PoolLimits) -> None:
        self.core = PoolCore(limits)
        self.now = 0.0
        self.random = random.Random(1)
        self.due: list[tuple[float, int, Effect]] = []
        self.ids = 0
        self.waits: dict[str, list[float]] = defaultdict(list)
        self.refused: dict[str, int] = defaultdict(int)

    def arrive(self, tenant: str, sessions: int) -> None:
        key = SessionKey(tenant, f"s{self.random.randrange(sessions)}")
        self.perform(self.core.acquire(self.now, key, "ann")[1])

    def perform(self, effects: list[Effect]) -> None:
        for effect in effects:
            self.ids += 1
            if isinstance(effect, Grant):
                self.waits[effect.key.tenant].append(effect.waited_s)
                self.due.append((self.now + self.random.uniform(0.8, 1.2), self.ids, effect))
            elif isinstance(effect, Open | Close):
                self.due.append((self.now + 0.1, self.ids, effect))
            elif isinstance(effect, Refuse):
                self.refused[effect.key.tenant] += 1

    def advance(self, until: float) -> None:
        while self.due and min(self.due)[0] <= until:
            at, _, effect = item = min(self.due)
            self.due.remove(item)
            self.now = at
            if isinstance(effect, Grant):
                self.perform(self.core.release(at, effect.lease_id))
            elif isinstance(effect, Open):
                self.perform(self.core.opened(at, effect.key))
            elif isinstance(effect, Close):
                self.perform(self.core.closed(at, effect.key))
        self.now = until
        self.perform(self.core.tick(until))

    def run(self, rates: dict[str, float], seconds: float, sessions: int) -> None:
        """Tenants send turns at random moments, at these rates a second."""
        while self.now < seconds:
            tenant = self.random.choices(list(rates), list(rates.values()))[0]
            self.advance(self.now + self.random.expovariate(sum(rates.values())))
            self.arrive(tenant, sessions)


def p95(waits: list[float]) -> float:
    return sorted(waits)[int(len(waits) * 0.95)]


def test_a_flood_by_one_tenant_leaves_the_others_wait_within_bounds() -> None:
    """One tenant offers a hundred times the load, far more than the pool can do.

    The quiet tenant's p95 stays below what it waits alone plus the time until one of eight places is free (a turn
    lasts a second), and none of its turns is refused, although the flood fills the waiting room.
    """
    limits = PoolLimits(max_sessions=64, max_busy=8, max_opening=4, queue_limit=64, queue_timeout_s=10)
    alone, flooded = Clinic(limits), Clinic(limits)

    alone.run({"quiet": 1.0}, 300, sessions=20)
    flooded.run({"quiet": 1.0, "loud": 100.0}, 300, sessions=20)

    assert len(flooded.waits["quiet"]) > 200
    assert flooded.refused["quiet"] == 0
    assert flooded.refused["loud"] > 10_000
    assert p95(flooded.waits["quiet"]) <= p95(alone.waits["quiet"]) + 1.0


def test_two_loud_tenants_share_the_pool_equally() -> None:
    """Both offer too much, one four times as much as the other: each gets half."""
    clinic = Clinic(PoolLimits(max_sessions=64, max_busy=4, max_opening=4, queue_limit=64, queue_timeout_s=10))

    clinic.run({"a": 10.0, "b": 40.0}, 300, sessions=20)

    served = {tenant: len(waits) for tenant, waits in clinic.waits.items()}
    assert abs(served["a"] - served["b"]) < 0.05 * sum(served.values())
