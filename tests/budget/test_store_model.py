"""Random lives of a store against a reference model, shrunk by Hypothesis to the shortest that breaks a rule.

The model knows limits, what each call holds and what was posted for it; everything else follows by adding up.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from agentao_gov.budget import (
    MemoryStore,
    Reservation,
    ReservationLostError,
    ReserveRequest,
    Scope,
    ScopeLimit,
    SqliteStore,
    Store,
)
from agentao_gov.budget.store import Refused, Waiting
from tests.budget.calls import call
from tests.support.clock import FakeClock

LIMITS = {"tenant": 1_000, "user": 700, "session": 400, "turn": 300}


@dataclass
class Known:
    """What the model knows of one call."""

    owner: int
    keys: tuple[tuple[str, str], ...]
    held: int
    used: int = 0
    state: str = "reserved"


@dataclass
class Sums:
    used: int = 0
    held: int = 0


class LedgerMachine(RuleBasedStateMachine):
    """Two openings of one ledger; one of them can die and be replaced."""

    def open(self) -> Store:
        raise NotImplementedError

    @initialize()
    def begin(self) -> None:
        self.clock = FakeClock()
        self.stores = [self.open(), self.open()]
        self.calls: dict[str, Known] = {}
        self.waiting: dict[str, int] = {}
        self.requests: dict[str, ReserveRequest] = {}
        self.limits = dict(LIMITS)
        self.serial = 0

    def scopes(self, user: str, session: str, turn: str) -> tuple[ScopeLimit, ...]:
        names = (("tenant", "t"), ("user", f"t/{user}"), ("session", f"t/{session}"), ("turn", turn))
        return tuple(ScopeLimit(Scope(kind, key), self.limits[kind]) for kind, key in names)  # type: ignore[arg-type]

    # ── rules ─────────────────────────────────────────────────────────────────────────────────────

    @rule(
        which=st.integers(0, 1),
        user=st.sampled_from("ab"),
        session=st.sampled_from("xy"),
        prompt=st.integers(0, 250),
        least=st.integers(0, 20),
        extra=st.integers(0, 150),
    )
    def reserve(self, which: int, user: str, session: str, prompt: int, least: int, extra: int) -> None:
        self.serial += 1
        name = f"c{self.serial}"
        limits = self.scopes(user, session, f"t{self.serial % 4}")
        request = call(name, limits, prompt=prompt, output=(least, least + extra))
        answer = self.stores[which].reserve(request)
        if isinstance(answer, Reservation):
            self.admitted(answer, which, limits)
            for balance in self.stores[which].balances(limits):
                assert balance.limit is not None
                assert balance.used + balance.reserved <= balance.limit
            assert least <= answer.output_tokens <= least + extra
        elif isinstance(answer, Waiting):
            self.waiting[name] = which
            self.requests[name] = request
        else:
            assert isinstance(answer, Refused)
            assert answer.asked > answer.limit - answer.used
        # A newcomer that is served may make it another user's turn.
        self.collect()

    def admitted(self, held: Reservation, which: int, limits: tuple[ScopeLimit, ...]) -> None:
        keys = tuple((str(s.scope), window) for s, window in zip(limits, held.windows, strict=True))
        self.calls[held.id] = Known(which, keys, held.total_tokens)

    def pick(self, number: int, *states: str) -> tuple[str, Known] | None:
        found = [(name, known) for name, known in self.calls.items() if known.state in states]
        return found[number % len(found)] if found else None

    @rule(number=st.integers(0, 30), prompt=st.integers(0, 400), completion=st.integers(0, 60))
    def settle(self, number: int, prompt: int, completion: int) -> None:
        picked = self.pick(number, "reserved", "dispatched", "charged", "released", "settled")
        if picked is None:
            return
        name, known = picked
        done = self.stores[known.owner].settle(name, prompt, completion, 0)
        assert done.posted is (known.state != "settled")
        if done.posted:
            known.used, known.held, known.state = prompt + completion, 0, "settled"
            self.collect()

    @rule(number=st.integers(0, 30), prompt=st.integers(0, 200))
    def charge(self, number: int, prompt: int) -> None:
        if (picked := self.pick(number, "reserved", "dispatched", "settled", "released")) is None:
            return
        name, known = picked
        done = self.stores[known.owner].charge(name, prompt, 0)
        assert done.posted is (known.state in ("reserved", "dispatched"))
        if done.posted:
            known.used, known.held, known.state = prompt, 0, "charged"
            self.collect()

    @rule(number=st.integers(0, 30))
    def release(self, number: int) -> None:
        if (picked := self.pick(number, "reserved", "dispatched", "charged", "settled")) is None:
            return
        name, known = picked
        self.stores[known.owner].release(name)
        if known.state in ("reserved", "dispatched"):
            known.held, known.state = 0, "released"
            self.collect()

    @rule(number=st.integers(0, 30))
    def dispatch(self, number: int) -> None:
        if (picked := self.pick(number, "reserved", "dispatched", "released", "charged")) is None:
            return
        name, known = picked
        if known.state in ("reserved", "dispatched"):
            self.stores[known.owner].dispatch(name)
            known.state = "dispatched"
            return
        with pytest.raises(ReservationLostError):
            self.stores[known.owner].dispatch(name)

    @rule(number=st.integers(0, 30), tokens=st.integers(1, 80))
    def extend(self, number: int, tokens: int) -> None:
        if (picked := self.pick(number, "reserved", "dispatched", "settled")) is None:
            return
        name, known = picked
        more = self.stores[known.owner].extend(name, tokens)
        assert 0 <= more <= tokens
        assert known.state != "settled" or more == 0
        known.held += more

    @precondition(lambda self: self.waiting)
    @rule(number=st.integers(0, 30))
    def withdraw(self, number: int) -> None:
        name = list(self.waiting)[number % len(self.waiting)]
        self.stores[self.waiting.pop(name)].withdraw(name)
        self.collect()

    @rule(which=st.integers(0, 1))
    def crash(self, which: int) -> None:
        """One opening dies; a new one takes its place and resolves what it left."""
        if not self.kill(which):
            return
        for known in self.calls.values():
            if known.owner == which and known.held:
                known.used = known.held if known.state == "dispatched" else 0
                known.state = "charged" if known.state == "dispatched" else "released"
                known.held = 0
        self.waiting = {name: owner for name, owner in self.waiting.items() if owner != which}
        self.collect()

    def kill(self, which: int) -> bool:
        return False

    @rule(kind=st.sampled_from(("tenant", "session")), share=st.floats(0.5, 1.0))
    def change_configuration(self, kind: str, share: float) -> None:
        self.limits[kind] = int(LIMITS[kind] * share)

    @rule(hours=st.sampled_from((-2, 1, 13)))
    def tick(self, hours: int) -> None:
        if hours < 0:
            self.clock.step_wall(hours * 3600)
        else:
            self.clock.advance(hours * 3600)
        self.stores[0].serve_waiting()
        self.collect()

    # ── what must hold ────────────────────────────────────────────────────────────────────────────

    def collect(self) -> None:
        """Asks again for every call that waits: it was served, refused, or keeps its place."""
        for name, which in list(self.waiting.items()):
            request = self.requests[name]
            answer = self.stores[which].reserve(request)
            if isinstance(answer, Waiting):
                continue
            del self.waiting[name]
            if isinstance(answer, Reservation):
                self.admitted(answer, which, request.scopes)

    def sums(self) -> dict[tuple[str, str], Sums]:
        total: dict[tuple[str, str], Sums] = {}
        for known in self.calls.values():
            for key in known.keys:
                line = total.setdefault(key, Sums())
                line.used += known.used
                line.held += known.held
        return total

    @invariant()
    def balances_are_the_sum_of_their_calls(self) -> None:
        expected = self.sums()
        for balance in self.stores[0].all_balances("all"):
            line = expected.get((str(balance.scope), balance.window), Sums())
            assert (balance.used, balance.reserved) == (line.used, line.held), balance

    @invariant()
    def the_journal_reproduces_them(self) -> None:
        if self.serial % 5 == 0:
            result = self.stores[0].verify()
            assert result.ok, result.problems

    def teardown(self) -> None:
        """Quiescence: when everyone has finished, nothing is held and nobody waits."""
        if not hasattr(self, "stores"):
            return
        for _ in range(3):
            for name, known in list(self.calls.items()):
                if known.held or known.state in ("reserved", "dispatched"):
                    self.stores[known.owner].settle(name, 0, 0, 0)
                    known.used, known.held, known.state = 0, 0, "settled"
            self.collect()
            while open_calls := [n for n, k in self.calls.items() if k.state in ("reserved", "dispatched")]:
                for name in open_calls:
                    self.stores[self.calls[name].owner].release(name)
                    self.calls[name].held, self.calls[name].state = 0, "released"
                self.collect()
        assert self.waiting == {}
        assert all(balance.reserved == 0 for balance in self.stores[0].all_balances("all"))
        assert self.stores[0].verify().ok
        for store in self.stores:
            store.close()


class MemoryMachine(LedgerMachine):
    def open(self) -> Store:
        self.shared = getattr(self, "shared", None) or MemoryStore(self.clock)
        return self.shared


class SqliteMachine(LedgerMachine):
    def __init__(self) -> None:
        super().__init__()
        self.directory = tempfile.TemporaryDirectory()

    def open(self) -> SqliteStore:
        return SqliteStore(Path(self.directory.name) / "ledger.db", self.clock)

    def kill(self, which: int) -> bool:
        """The row of an owner whose process has ended: a pid that does not run."""
        dead = self.stores[which]
        assert isinstance(dead, SqliteStore)
        dead.opening.connection.execute(
            "UPDATE owners SET pid = ?, started = 1 WHERE id = ?", (2**22 + 1, dead.owner_id)
        )
        # Without its orderly end: nothing is resolved but by the neighbour.
        for connection in (dead.opening.connection, dead.opening.file.sql):
            connection.close()
        self.stores[which] = self.open()
        return True

    def teardown(self) -> None:
        super().teardown()
        self.directory.cleanup()


@pytest.mark.timeout(60)
def test_a_store_in_memory_equals_the_model() -> None:
    """Random reserve, extend, settle, charge, release, withdraw, configuration change and clock."""
    run_state_machine_as_test(MemoryMachine, settings=settings(max_examples=40, stateful_step_count=40, deadline=None))


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_a_store_in_a_file_equals_the_model() -> None:
    """The same with two openings of one file, crashes and recoveries."""
    run_state_machine_as_test(
        SqliteMachine,
        settings=settings(
            max_examples=25, stateful_step_count=40, deadline=None, suppress_health_check=[HealthCheck.too_slow]
        ),
    )
