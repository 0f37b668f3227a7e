"""Remembers today's balances: tenants from the ledger, users and sessions as their turns reported them."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable

from agentao_gov.budget import TokenLedger
from agentao_gov.budget.types import ScopeLimit
from agentao_gov.errors import StoreError
from agentao_gov.governor.report import BudgetLine, TurnReport

#: Users and sessions whose last balance is kept, the most recent ones: what a page can show and a ratio needs.
LINES_MAX = 2_000
#: Tenants asked for at each look: one indexed read each.
TENANTS_MAX = 200


class BudgetWatch:
    """Thread-safe. `refresh` reads the store and may block as long as it does."""

    def __init__(
        self, ledger: TokenLedger, tenant_limit: Callable[[str], ScopeLimit], tenants: Iterable[str] = ()
    ) -> None:
        self._ledger = ledger
        self._tenant_limit = tenant_limit
        self._lock = threading.Lock()
        #: Tenants that are configured or were seen, most recent last; guarded by `_lock`.
        self._tenants: OrderedDict[str, None] = OrderedDict.fromkeys(tenants)
        #: Last line of each user and session, most recent last; guarded by `_lock`.
        self._reported: OrderedDict[tuple[str, str], BudgetLine] = OrderedDict()
        #: Last answer of the store; guarded by `_lock`.
        self._asked: tuple[BudgetLine, ...] = ()
        #: Whether the store answered last time; guarded by `_lock`.
        self._store_ok = True

    def on_report(self, report: TurnReport) -> None:
        """Takes the balances a turn ended with."""
        with self._lock:
            self._tenants[report.tenant] = None
            self._tenants.move_to_end(report.tenant)
            while len(self._tenants) > TENANTS_MAX:
                self._tenants.popitem(last=False)
            for line in report.budget:
                if line.scope in ("user", "session"):
                    self._reported[line.scope, line.key] = line
                    self._reported.move_to_end((line.scope, line.key))
            while len(self._reported) > LINES_MAX:
                self._reported.popitem(last=False)

    @property
    def store_ok(self) -> bool:
        """Whether the ledger answered when it was asked last."""
        with self._lock:
            return self._store_ok

    def refresh(self) -> None:
        """Asks the ledger for the tenants' balances."""
        with self._lock:
            tenants = list(self._tenants)
        try:
            self._ledger.check()
            balances = self._ledger.balances([self._tenant_limit(tenant) for tenant in tenants])
        except StoreError:
            with self._lock:
                self._store_ok = False
            return
        lines = tuple(map(BudgetLine.of, balances))
        with self._lock:
            self._store_ok = True
            self._asked = lines

    def lines(self) -> tuple[BudgetLine, ...]:
        """Tenants first, then users and sessions of the same day."""
        with self._lock:
            today = {line.key: line.window for line in self._asked}
            fresh = (line for line in self._reported.values() if line.window == today.get(line.key.partition("/")[0]))
            return (*self._asked, *fresh)
