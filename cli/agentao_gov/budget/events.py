"""What the ledger tells those who watch it: metrics, the run panel, logs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from agentao_gov.budget.store import Crossing
from agentao_gov.budget.types import ScopeKind

__all__ = ["BudgetEvent", "BudgetObserver", "Crossing", "Refusal", "StoreFailureAllowed"]


@dataclass(frozen=True, slots=True)
class Refusal:
    """A call was told no, at once or at the end of its wait."""

    scope: ScopeKind
    key: str
    reason: Literal["exhausted", "impossible", "deadline", "cancelled"]


@dataclass(frozen=True, slots=True)
class StoreFailureAllowed:
    """The store could not answer and `on_store_failure = "allow"` let the call through, unrecorded."""

    operation: str
    error: str


BudgetEvent = Crossing | Refusal | StoreFailureAllowed
#: Called on the thread of the call that caused it; must not block and must not raise.
BudgetObserver = Callable[[BudgetEvent], None]
