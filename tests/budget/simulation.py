"""A random life of the ledger's core, from a seed, with every rule checked after every step.

The checker keeps its own account in the plainest way: what each call holds and was charged, per scope and window.
It shares no code with the core but the values it passes in and reads out.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from agentao_gov.budget.balance import BalanceKey
from agentao_gov.budget.core import LedgerCore
from agentao_gov.budget.journal import JournalEntry
from agentao_gov.budget.memory import MemoryRecords
from agentao_gov.budget.reservation import CallRecord
from agentao_gov.budget.store import Refused, StoreSettings, Waiting
from agentao_gov.budget.types import Reservation, ReservationLostError, ReserveRequest, Scope, ScopeLimit

TENANTS, USERS, SESSIONS, OWNERS = ("a", "b"), ("ann", "bob"), ("s1", "s2", "s3"), ("p0", "p1", "p2")
USUAL = {"tenant": 5_000, "user": 3_000, "session": 1_500}


class Records(MemoryRecords):
    """The core's records, with every journal entry told to the checker as it is written."""

    def __init__(self, write: Callable[[JournalEntry], None]) -> None:
        super().__init__()
        self._write = write

    def append(self, entry: JournalEntry) -> None:
        super().append(entry)
        # A million steps: what was written is checked at once, not kept.
        del self.rows[:-1]
        self._write(entry)


@dataclass(slots=True)
class Account:
    """What the checker knows of one call."""

    owner: str
    keys: tuple[BalanceKey, ...]
    held: int
    used: int = 0
    dispatched: bool = False
    #: open, settled, charged, released
    state: str = "open"


@dataclass(slots=True)
class Life:
    """One simulated ledger with its checker."""

    seed: int
    rng: random.Random = field(init=False)
    records: Records = field(init=False)
    core: LedgerCore = field(init=False)
    now_s: float = 1_790_000_000.0
    accounts: dict[str, Account] = field(default_factory=dict)
    requests: dict[str, tuple[ReserveRequest, str]] = field(default_factory=dict)
    limits: dict[Scope, int | None] = field(default_factory=dict)
    used: dict[BalanceKey, int] = field(default_factory=lambda: defaultdict(int))
    held: dict[BalanceKey, int] = field(default_factory=lambda: defaultdict(int))
    #: How far used may stand above the limit: under-estimates, and limits that were lowered.
    excess: dict[BalanceKey, int] = field(default_factory=lambda: defaultdict(int))
    journal: dict[str, list[int]] = field(default_factory=lambda: defaultdict(lambda: [0, 0, 0]))
    open_calls: list[str] = field(default_factory=list)
    steps: int = 0
    serial: int = 0
    touched: set[BalanceKey] = field(default_factory=set)
    outcomes: dict[str, int] = field(default_factory=lambda: defaultdict(int))

    def __post_init__(self) -> None:
        self.rng = random.Random(self.seed)
        self.records = Records(self._write)
        self.core = LedgerCore(self.records, StoreSettings(warn_at=(0.8,)))

    @property
    def now_ms(self) -> int:
        return int(self.now_s * 1000)

    def _write(self, entry: JournalEntry) -> None:
        for ref in entry.refs:
            sums = self.journal[ref]
            sums[0] += entry.used
            sums[1] += entry.reserved
            sums[2] += entry.granted

    # ── steps ─────────────────────────────────────────────────────────────────────────────────────

    def step(self) -> None:
        """One random thing happens."""
        self.steps += 1
        act = self.rng.choices(
            (self.reserve, self.finish, self.dispatch, self.extend, self.withdraw, self.tick, self.crash, self.grant),
            (30, 34, 14, 6, 2, 8, 1, 2),
        )[0]
        act()
        self._collect()

    def reserve(self) -> None:
        rng = self.rng
        if self.serial and rng.random() < 0.05:
            call_id = f"c{rng.randrange(self.serial)}"
            request, owner = self.requests.get(call_id, (None, ""))
            if request is None:
                return
        else:
            call_id, owner = f"c{self.serial}", rng.choice(OWNERS)
            self.serial += 1
            least = rng.randrange(0, 20)
            request = ReserveRequest(
                call_id, self._scopes(), rng.randrange(0, 300), least, least + rng.randrange(0, 120),
                (tenant := rng.choice(TENANTS)), f"{tenant}-{rng.choice(USERS)}",
            )  # fmt: skip
            self.requests[call_id] = (request, owner)
        answer = self.core.reserve(request, owner, self.now_ms)
        self.outcomes[type(answer).__name__] += 1
        self._check_answer(request, answer)

    def _scopes(self) -> tuple[ScopeLimit, ...]:
        rng = self.rng
        tenant, user, session = rng.choice(TENANTS), rng.choice(USERS), rng.choice(SESSIONS)
        zone = "Asia/Shanghai" if tenant == "b" else "UTC"
        found = []
        for scope in (
            Scope("tenant", tenant),
            Scope("user", f"{tenant}/{user}"),
            Scope("session", f"{tenant}/{session}"),
        ):
            limit = USUAL[scope.kind]
            if rng.random() < 0.002:
                limit = rng.randrange(limit // 2, limit)
            found.append(ScopeLimit(scope, limit, zone))
        return tuple(found)

    def finish(self) -> None:
        if not self.open_calls:
            return
        call_id = self.open_calls[self.rng.randrange(len(self.open_calls))]
        account = self.accounts[call_id]
        ending = self.rng.random()
        if ending < 0.7:
            # One in twenty under-estimates its call: the only way past a limit.
            over = self.rng.randrange(1, 50) if self.rng.random() < 0.05 else 0
            used = self.rng.randrange(0, account.held + 1) if not over else account.held + over
            self.settle(call_id, used)
        elif ending < 0.85:
            self.core.charge(call_id, account.held, 0, account.owner, self.now_ms)
            self._close(account, "charged", account.held)
            if self.rng.random() < 0.5:
                self._collect()
                self.settle(call_id, self.rng.randrange(0, account.used + 1))
        elif not account.dispatched:
            self.core.release(call_id, account.owner, self.now_ms)
            self._close(account, "released", 0)
        if self.rng.random() < 0.1:
            assert not self.core.charge(call_id, 1, 1, account.owner, self.now_ms).posted or account.state == "open"
            if account.state == "open":
                self._close(account, "charged", 2)

    def settle(self, call_id: str, used: int) -> None:
        account = self.accounts[call_id]
        prompt = used // 2
        self.core.settle(call_id, prompt, used - prompt, 0, account.owner, self.now_ms)
        before = account.used if account.state == "charged" else account.held if account.state == "open" else 0
        for key in account.keys:
            self.excess[key] += max(0, used - before)
        self._close(account, "settled", used)

    def dispatch(self) -> None:
        if not self.open_calls:
            return
        account = self.accounts[call_id := self.rng.choice(self.open_calls)]
        self.core.dispatch(call_id, account.owner, self.now_ms)
        account.dispatched = True

    def extend(self) -> None:
        if not self.open_calls:
            return
        account = self.accounts[call_id := self.rng.choice(self.open_calls)]
        more = self.core.extend(call_id, wanted := self.rng.randrange(1, 60), account.owner, self.now_ms)
        assert 0 <= more <= wanted
        account.held += more
        for key in account.keys:
            self.held[key] += more

    def withdraw(self) -> None:
        if self.records.queue:
            call_id = self.rng.choice(list(self.records.queue))
            self.core.withdraw(call_id, "p0", self.now_ms)
            assert call_id not in self.records.queue

    def tick(self) -> None:
        seconds = self.rng.choice((1, 60, 600, 7200))
        # One in ten steps back: the ledger must not follow.
        self.now_s += -seconds if self.rng.random() < 0.1 else seconds
        self.core.serve_waiting(self.now_ms)

    def crash(self) -> None:
        """An owner dies; a neighbour resolves what it left, and one zombie settles late."""
        dead = self.rng.choice(OWNERS)
        zombies = []
        for call_id in list(self.open_calls):
            account = self.accounts[call_id]
            if account.owner == dead:
                zombies.append(call_id)
        self.core.resolve(dead, "p-neighbour", self.now_ms)
        for call_id in zombies:
            account = self.accounts[call_id]
            self._close(account, "charged" if account.dispatched else "released", account.held * account.dispatched)
        self._collect()
        if zombies:
            account = self.accounts[zombie := self.rng.choice(zombies)]
            if account.state == "released":
                try:
                    self.core.dispatch(zombie, dead, self.now_ms)
                except ReservationLostError:
                    return
                raise AssertionError("a call that was given up may not be sent")
            self.settle(zombie, self.rng.randrange(0, account.used + 1))

    def grant(self) -> None:
        if self.rng.random() < 0.1:
            scope = self._scopes()[2]
            self.core.grant(scope, self.rng.randrange(1, 400), "p0", self.now_ms)

    # ── rules ─────────────────────────────────────────────────────────────────────────────────────

    def _collect(self) -> None:
        """Takes in the calls that were granted in this step, directly or from the queue, and checks the figures."""
        for call_id in self.core.take_answered():
            call = self.records.calls.get(call_id)
            if call is not None and call_id not in self.accounts:
                self._opened(call)
        self.check_balances(self.touched)
        self.touched.clear()

    def _check_answer(self, request: ReserveRequest, answer: Reservation | Refused | Waiting) -> None:
        if isinstance(answer, Reservation):
            assert request.output_tokens_min <= answer.output_tokens or request.id in self.accounts
            if request.id not in self.accounts:
                self._opened(self.records.calls[answer.id])
        elif isinstance(answer, Refused):
            assert request.id not in self.records.calls
            assert answer.asked > answer.limit - answer.used

    def _opened(self, call: CallRecord) -> None:
        keys = tuple(balance.key for balance in self.records.load(call.refs))
        account = Account(call.owner, keys, call.holding.held)
        self.accounts[call.id] = account
        self.open_calls.append(call.id)
        for key in account.keys:
            self.held[key] += account.held
        self.touched.update(account.keys)

    def _close(self, account: Account, state: str, used: int) -> None:
        for key in account.keys:
            if account.state == "open":
                self.held[key] -= account.held
            self.used[key] += used - account.used
        account.used, account.state = used, state
        call_id = next((c for c in self.open_calls if self.accounts[c] is account), None)
        if call_id is not None:
            self.open_calls.remove(call_id)
        self.touched.update(account.keys)

    def check_balances(self, keys: Iterable[BalanceKey]) -> None:
        """Core, checker and journal agree, and the limit holds but for what was under-estimated."""
        for key in keys:
            scope, timezone, window = key
            balance = self.records.kept[f"{scope} {timezone} {window}"]
            sums = self.journal[f"{scope} {timezone} {window}"]
            assert balance.used == self.used[key] == sums[0], key
            assert balance.reserved == self.held[key] == sums[1], key
            assert balance.granted == sums[2]
            assert balance.reserved >= 0 <= balance.used
            # The usual limit: one that was lowered for a moment bounds what is admitted under it, not what was before.
            assert balance.used + balance.reserved <= USUAL[scope.kind] + balance.granted + self.excess[key]

    def quiesce(self) -> None:
        """Everyone finishes: then nothing is held, nobody waits, and every figure is reproduced."""
        while self.open_calls:
            call_id = self.open_calls[0]
            self.settle(call_id, self.accounts[call_id].held)
            self._collect()
        assert not self.records.queue, "somebody waits though nothing is held"
        for balance in self.records.kept.values():
            self.check_balances((balance.key,))
            assert balance.reserved == 0
