"""A world of random callers, hosts and clocks around the core, with every rule checked after every step.

Everything comes from the seed: `Simulation(seed).run(steps)` is the same run each time, which is how a failure is
replayed. The world performs effects as the shell does, only later and in any order.
"""

from __future__ import annotations

import random
from collections import Counter

from agentao_gov.governor.types import SessionKey
from agentao_gov.pool.core import PoolCore, SessionHealth
from agentao_gov.pool.events import Close, Effect, Grant, Leak, Open, Refuse
from agentao_gov.pool.limits import PoolLimits, TenantCaps
from agentao_gov.pool.records import Group
from agentao_gov.pool.types import CloseReason, SessionState

TENANTS = ("a", "b", "c")
KEYS = tuple(SessionKey(tenant, f"s{n}") for tenant in TENANTS for n in range(5))
#: Of a hundred events, how many are of which kind; a caller arrives about as often as a turn ends.
WEIGHTS = {
    "acquire": 30,
    "release": 26,
    "opened": 16,
    "closed": 12,
    "tick": 8,
    "cancel": 3,
    "delete": 1,
    "unstuck": 1,
    "memory": 1,
    "resize": 1,
    "late_tick": 1,
}
EVENTS = tuple(name for name, weight in WEIGHTS.items() for _ in range(weight))


class Violation(AssertionError):
    """A rule was broken; the message says which, in which run and at which step."""


class Simulation:
    """One world. `outstanding_*` are what the shell would have in its hands."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.random = random.Random(seed)
        self.now = self.random.uniform(0, 1e6)
        self.limits = self.some_limits()
        self.core = PoolCore(self.limits)
        self.step = 0
        #: Waiters not answered yet -> the key they want; kept in the order of arrival.
        self.unanswered: dict[int, SessionKey] = {}
        #: Grants out: lease -> (waiter, key).
        self.running: dict[int, tuple[int, SessionKey]] = {}
        self.opening: dict[SessionKey, bool] = {}
        self.closing: dict[SessionKey, CloseReason] = {}
        #: Keys with an agent in memory.
        self.alive: set[SessionKey] = set()
        self.stuck: set[SessionKey] = set()
        self.seen = Counter[str]()
        self.past_leases: list[int] = []

    def some_limits(self) -> PoolLimits:
        """Small limits, so that every one of them is met often."""
        pick = self.random
        caps = {
            tenant: TenantCaps(pick.choice((None, 1, 2, 3)), pick.choice((None, 1, 2)))
            for tenant in TENANTS
            if pick.random() < 0.6
        }
        return PoolLimits(
            max_sessions=pick.randint(1, 7),
            max_busy=pick.randint(1, 4),
            max_opening=pick.randint(1, 3),
            queue_limit=pick.choice((0, 1, 3, 8)),
            max_stuck_per_tenant=pick.randint(1, 3),
            queue_timeout_s=pick.choice((0.5, 5.0)),
            session_ttl_s=pick.choice((1.0, 20.0)),
            open_timeout_s=pick.choice((2.0, 30.0)),
            open_patience_s=pick.choice((0.5, 5.0)),
            caps=caps,
            memory_batch=2,
            pin_s=1.0,
        )

    def run(self, steps: int) -> Counter[str]:
        """Takes the steps, checks after each, comes to rest, checks that nothing is left. Returns what happened."""
        while self.step < steps:
            self.step += 1
            self.now += self.random.random() * 0.2
            self.one_event()
            self.check()
        self.come_to_rest()
        return self.seen

    # -- events ----------------------------------------------------------------------------------------------------

    def one_event(self) -> None:
        effects = getattr(self, EVENTS[int(self.random.random() * len(EVENTS))])()
        if effects:
            self.perform(effects)

    def acquire(self) -> None:
        pick = self.random
        key = pick.choice(KEYS)
        deadline_at = self.now + pick.choice((0.3, 3.0, 1e9))
        once = pick.random() < 0.15
        core = self.core
        entry = core.table.entries.get(key)
        place_is_free = (
            entry is not None
            and entry.state is SessionState.IDLE
            and not entry.waiters
            and core.busy < core.limits.max_busy
            and not core._ready
            and core._stuck_limit(key.tenant) is None
        )
        open_s = pick.choice((1.0, 1e9))
        waiter, effects = core.acquire(
            self.now, key, f"u{pick.randint(0, 1)}",
            deadline_at=deadline_at, once=once, leak_after_s=4.0, open_s=open_s, servers_s=pick.choice((0.0, 4.0)),
        )  # fmt: skip
        if place_is_free and not any(isinstance(effect, Grant) and effect.waiter_id == waiter for effect in effects):
            raise self.violation(f"waiter {waiter} was not granted, although its session and a place were free")
        self.unanswered[waiter] = key
        self.perform(effects)

    def release(self) -> list[Effect] | None:
        if not self.running:
            return None
        lease = self.random.choice(list(self.running))
        return self.end_turn(lease)

    def end_turn(self, lease: int) -> list[Effect]:
        waiter, key = self.running.pop(lease)
        roll = self.random.random()
        verdict = SessionHealth.OK
        if roll > 0.9:
            verdict = (
                SessionHealth.STUCK if roll > 0.98 else SessionHealth.STALE if roll > 0.94 else SessionHealth.BROKEN
            )
        self.seen[f"release {verdict.name}"] += 1
        if verdict is SessionHealth.STUCK:
            self.stuck.add(key)
        elif verdict is SessionHealth.STALE:
            # The grant is taken back: the waiter is to be answered anew, before all others of its session.
            self.unanswered = {waiter: key, **self.unanswered}
        self.past_leases.append(lease)
        return self.core.release(self.now, lease, verdict)

    def opened(self) -> list[Effect] | None:
        if not self.opening:
            return None
        key = self.random.choice(list(self.opening))
        del self.opening[key]
        if self.random.random() < 0.1:
            self.alive.discard(key)
            self.stuck.discard(key)
            return self.core.open_failed(self.now, key)
        self.stuck.discard(key)
        return self.core.opened(self.now, key)

    def closed(self) -> list[Effect] | None:
        if not self.closing:
            return None
        key = self.random.choice(list(self.closing))
        reason = self.closing.pop(key)
        may_refuse = reason not in (CloseReason.DELETED, CloseReason.BROKEN, CloseReason.STALE, CloseReason.UNSTUCK)
        if may_refuse and self.random.random() < 0.1:
            self.seen["close refused"] += 1
            return self.core.close_refused(self.now, key)
        self.alive.discard(key)
        return self.core.closed(self.now, key)

    def tick(self) -> list[Effect]:
        effects = self.core.tick(self.now)
        self.check_patience(self.core)
        return effects

    def late_tick(self) -> list[Effect]:
        self.now += 10
        return self.tick()

    def cancel(self) -> list[Effect] | None:
        pool = list(self.unanswered) + [waiter for waiter, _ in self.running.values()]
        if not pool:
            return None
        waiter = self.random.choice(pool)
        lease, effects = self.core.cancel(self.now, waiter)
        if (lease is None) != (waiter in self.unanswered):
            raise self.violation(f"cancel of waiter {waiter} answered with lease {lease}")
        if lease is not None:
            # Cancelled in the moment of its grant: the place comes back.
            effects += self.end_turn(lease)
        else:
            del self.unanswered[waiter]
            self.seen["cancelled"] += 1
        return effects

    def delete(self) -> list[Effect]:
        return self.core.delete(self.now, self.random.choice(KEYS))[1]

    def unstuck(self) -> list[Effect] | None:
        candidates = [key for key in self.stuck if key not in self.opening]
        if not candidates:
            return None
        key = self.random.choice(sorted(candidates))
        self.stuck.discard(key)
        return self.core.unstuck(self.now, key)

    def memory(self) -> list[Effect]:
        return self.core.memory(self.now, self.random.choice((0.5, 0.85, 0.95)))

    def resize(self) -> list[Effect]:
        self.limits = self.some_limits()
        return self.core.resize(self.now, self.limits)

    def perform(self, effects: list[Effect]) -> None:
        """Takes effects into the world's hands, and objects to those that must not be."""
        for effect in effects:
            if isinstance(effect, Grant):
                self.take_grant(effect)
            elif isinstance(effect, Refuse):
                if self.unanswered.pop(effect.waiter_id, None) is None:
                    raise self.violation(f"waiter {effect.waiter_id} refused, but it was answered before")
                self.seen[f"refused {effect.reason}"] += 1
            elif isinstance(effect, Open):
                if effect.key in self.alive:
                    raise self.violation(f"a second agent for {effect.key}")
                for group in self.core.table.entries[effect.key].groups:
                    if group.resident > group.cap:
                        raise self.violation(f"{effect.key} opens beyond the cap of {group.id}")
                self.alive.add(effect.key)
                self.opening[effect.key] = True
                self.seen["open"] += 1
            elif isinstance(effect, Close):
                if effect.key not in self.alive or effect.key in self.closing or effect.key in self.opening:
                    raise self.violation(f"close of {effect.key}, which is not there to be closed")
                if any(key == effect.key for _, key in self.running.values()):
                    raise self.violation(f"close of the busy {effect.key}")
                self.closing[effect.key] = effect.reason
                self.seen[f"close {effect.reason}"] += 1
            elif isinstance(effect, Leak):
                self.seen["leak"] += 1

    def take_grant(self, grant: Grant) -> None:
        if self.unanswered.pop(grant.waiter_id, None) is None:
            raise self.violation(f"waiter {grant.waiter_id} granted, but it was answered before")
        if grant.key not in self.alive or grant.key in self.closing or grant.key in self.opening:
            raise self.violation(f"grant on {grant.key}, which has no agent")
        if any(key == grant.key for key in self.unanswered.values()):
            first = next(waiter for waiter, key in self.unanswered.items() if key == grant.key)
            if first < grant.waiter_id:
                raise self.violation(f"{grant.waiter_id} overtook {first} within {grant.key}")
        self.running[grant.lease_id] = (grant.waiter_id, grant.key)
        self.seen["grant"] += 1

    # -- rules -----------------------------------------------------------------------------------------------------

    def check(self) -> None:
        """Recounts everything the core counts, and asks whether it keeps its own rules."""
        core, limits = self.core, self.limits
        table = core.table
        gone, at_rest, pinned, listed = SessionState.GONE, SessionState.IDLE, core._pinned, table.pool.idle
        state: dict[SessionState, int] = {}
        resident: dict[Group, int] = {}
        closing: dict[Group, int] = {}
        stuck: dict[Group, int] = {}
        waiting = idle = 0
        for entry in table.entries.values():
            now = entry.state
            state[now] = state.get(now, 0) + 1
            waiting += len(entry.waiters)
            if now is gone:
                if not entry.waiters:
                    raise self.violation(f"{entry.key} is kept for nobody")
                continue
            for group in entry.groups:
                resident[group] = resident.get(group, 0) + 1
                stuck[group] = stuck.get(group, 0) + (now is SessionState.STUCK)
            if now is at_rest and not entry.waiters and entry.once and entry not in pinned:
                raise self.violation(f"the fresh {entry.key} stays in memory for nobody")
            if now is at_rest and not entry.waiters and entry not in pinned:
                idle += 1
                if entry not in listed:
                    raise self.violation(f"{entry.key} could be evicted, and is not listed")
        for entry in table.closing:
            if entry.state is not SessionState.CLOSING:
                raise self.violation("a session that does not close is counted on")
            for group in entry.groups:
                closing[group] = closing.get(group, 0) + 1
        if state != {key: n for key, n in table.count.items() if n}:
            raise self.violation(f"states {state} are counted as {dict(table.count)}")
        for group in table.groups():
            counted = (group.resident, group.closing, group.stuck)
            if counted != (resident.get(group, 0), closing.get(group, 0), stuck.get(group, 0)):
                raise self.violation(f"group {group.id} counts {counted}")
            if (
                group.kind == "tenant"
                and group.stuck >= limits.max_stuck_per_tenant
                and core._waiting_of.get(group.id[0])
            ):
                raise self.violation(f"{group.id} has too many stuck sessions, and turns that wait")
        pool = table.pool
        if len(pool.idle) != idle:
            raise self.violation("somebody is listed who may not be evicted")
        last = 0.0
        for entry in pool.idle:
            if entry.idle_since < last:
                raise self.violation("the list of those who may be evicted is out of order")
            last = entry.idle_since
        if waiting != len(core.waiters) or len(core.waiters) != len(self.unanswered):
            raise self.violation(f"{waiting} wait, {len(core.waiters)} known, {len(self.unanswered)} unanswered")
        if core.busy != state.get(SessionState.BUSY, 0) + len(self.stuck - self.opening.keys()):
            raise self.violation(f"busy is {core.busy}, but the states are {state}")
        if len(core.leases) != len(self.running):
            raise self.violation("leases are not those that are out")
        if waiting and core.draining:
            raise self.violation(f"{waiting} wait for a pool that drains")
        for waiter in core.waiters.values():
            if table.entries[waiter.key].state is SessionState.STUCK:
                raise self.violation(f"waiter {waiter.id} waits for a session that is stuck")
        self.check_no_idle_hands(core, limits)

    def check_patience(self, core: PoolCore) -> None:
        """After a tick nobody waits beyond its own deadline, or longer for an opening than its turn may take."""
        for waiter in core.waiters.values():
            entry = core.table.entries[waiter.key]
            began = max(waiter.arrived_at, entry.opening_since)
            opens = entry.state is SessionState.OPENING and entry.waiters[0] is waiter
            if waiter.deadline_at <= self.now or (opens and began + waiter.open_s <= self.now):
                raise self.violation(f"waiter {waiter.id} waits beyond its time")
        for entry in core.openings:
            if entry.opening_since + core.limits.open_patience_s <= self.now:
                raise self.violation(f"the slow opening of {entry.key} holds a place")
        for entry in (*core.openings, *core.slow_openings):
            if entry.open_by <= self.now:
                raise self.violation(f"the opening of {entry.key} hangs and is not given up")

    def check_no_idle_hands(self, core: PoolCore, limits: PoolLimits) -> None:
        """Nobody waits for something that is free."""
        if core._ready and core.busy < limits.max_busy:
            raise self.violation("a turn waits while a place is free")
        if len(core.openings) < limits.max_opening:
            if core._cold:
                raise self.violation("a session waits to be opened while a place is free")
            for group in core._crowded:
                if group.parked and group.has_room:
                    raise self.violation(f"a turn is parked in {group.id}, which has room")
        for group in core._crowded:
            if group.shortage() > 0 and (group.idle or (group.kind != "pool" and group.parked)):
                raise self.violation(f"{group.id} lacks room, and idle sessions stay")

    def come_to_rest(self) -> None:
        """Everything outstanding ends, the pool drains: each waiter answered once, all that was opened closed."""
        self.perform(self.core.drain(self.now))
        self.check()
        for _ in range(200):
            self.now += 2
            for lease in list(self.running):
                del self.running[lease]
                self.perform(self.core.release(self.now, lease))
            for event in (self.opened, self.closed, self.unstuck, self.tick):
                self.perform(event() or [])
            self.check()
            if not (self.running or self.opening or self.closing or self.stuck or self.alive):
                break
        core = self.core
        held = (core.leases, core.openings, core.slow_openings, core._pinned)
        left = (self.unanswered, self.alive, core.waiters, core.table.entries, *held)
        if (
            any(left)
            or core.busy
            or core.table.pool.resident
            or list(core.table.tenants())
            or core._ready
            or core._cold
        ):
            raise self.violation(f"not at rest: {left}, busy {core.busy}")

    def violation(self, message: str) -> Violation:
        return Violation(f"seed {self.seed}, step {self.step}: {message}")
