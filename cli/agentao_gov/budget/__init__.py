"""The token ledger: budgets per tenant, user, session and turn that cannot be overrun."""

from __future__ import annotations

from agentao_gov.budget.ledger import TokenLedger
from agentao_gov.budget.memory import MemoryStore
from agentao_gov.budget.prices import PriceTable, usd
from agentao_gov.budget.redis.store import RedisStore
from agentao_gov.budget.setup import ledger_path, limit_of, open_ledger, scope_limits, tenant_timezone
from agentao_gov.budget.sqlite.store import SqliteStore, verify_file
from agentao_gov.budget.store import (
    BudgetEvent,
    BudgetObserver,
    Crossing,
    Refusal,
    Store,
    StoreFailureAllowed,
    StoreSettings,
    Verification,
)
from agentao_gov.budget.types import (
    Balance,
    CancelledWait,
    Ledger,
    Reservation,
    ReservationLostError,
    ReservationState,
    ReserveRequest,
    Scope,
    ScopeKind,
    ScopeLimit,
)

__all__ = [
    "Balance",
    "BudgetEvent",
    "BudgetObserver",
    "CancelledWait",
    "Crossing",
    "Ledger",
    "MemoryStore",
    "PriceTable",
    "RedisStore",
    "Refusal",
    "Reservation",
    "ReservationLostError",
    "ReservationState",
    "ReserveRequest",
    "Scope",
    "ScopeKind",
    "ScopeLimit",
    "SqliteStore",
    "Store",
    "StoreFailureAllowed",
    "StoreSettings",
    "TokenLedger",
    "Verification",
    "ledger_path",
    "limit_of",
    "open_ledger",
    "scope_limits",
    "tenant_timezone",
    "usd",
    "verify_file",
]
