"""Runs agentao agents under limits, pools their sessions, proves the limits and load-tests the pool.

    from agentao_gov import TurnOrder, build_runtime, load_deployment, load_profile, resolve_model

Everything public is importable from here; names are loaded at first use, because agentao and the OpenAI SDK take a
second and `agentao-gov --help` must not.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found] # what `signal` wraps; there already, where that would take a while
import sys

if sys.argv[0].endswith("agentao-gov") and _signal.getsignal(_signal.SIGINT) is _signal.default_int_handler:
    # The program itself: Ctrl-C while it is being loaded ends it without a word; `main` takes over from there.
    _signal.signal(_signal.SIGINT, _signal.SIG_DFL)

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from agentao_gov.budget import Balance, MemoryStore, Scope, ScopeLimit, SqliteStore, TokenLedger, open_ledger
    from agentao_gov.clock import Clock, Deadline
    from agentao_gov.config import (
        Deployment,
        ModelChoice,
        ModelFlags,
        Overrides,
        Profile,
        ResolvedDeployment,
        ResolvedProfile,
        fit_to_model,
        load_deployment,
        load_profile,
        resolve_model,
    )
    from agentao_gov.errors import (
        BudgetExhaustedError,
        BudgetImpossibleError,
        CapacityError,
        ConfigError,
        GovError,
        ModelError,
        StoreError,
    )
    from agentao_gov.governor import (
        Conversation,
        GovernedSession,
        Governor,
        Outcome,
        SessionKey,
        SessionSpec,
        TurnObserver,
        TurnReport,
        TurnRequest,
    )
    from agentao_gov.pool import AgentPool, PoolStats, SessionArchive, SessionInfo, TurnOrder
    from agentao_gov.runtime import Runtime, build_runtime, open_runtime
    from agentao_gov.simulator import Simulator, start_simulator

_HOME = {
    "agentao_gov.budget": (
        "Balance",
        "MemoryStore",
        "Scope",
        "ScopeLimit",
        "SqliteStore",
        "TokenLedger",
        "open_ledger",
    ),
    "agentao_gov.clock": ("Clock", "Deadline"),
    "agentao_gov.config": (
        "Deployment",
        "ModelChoice",
        "ModelFlags",
        "Overrides",
        "Profile",
        "ResolvedDeployment",
        "ResolvedProfile",
        "fit_to_model",
        "load_deployment",
        "load_profile",
        "resolve_model",
    ),
    "agentao_gov.errors": (
        "BudgetExhaustedError",
        "BudgetImpossibleError",
        "CapacityError",
        "ConfigError",
        "GovError",
        "ModelError",
        "StoreError",
    ),
    "agentao_gov.governor": (
        "Conversation",
        "GovernedSession",
        "Governor",
        "Outcome",
        "SessionKey",
        "SessionSpec",
        "TurnObserver",
        "TurnReport",
        "TurnRequest",
    ),
    "agentao_gov.pool": ("AgentPool", "PoolStats", "SessionArchive", "SessionInfo", "TurnOrder"),
    "agentao_gov.runtime": ("Runtime", "build_runtime", "open_runtime"),
    "agentao_gov.simulator": ("Simulator", "start_simulator"),
}
_MODULE_OF = {name: module for module, names in _HOME.items() for name in names}

__all__ = [
    "AgentPool",
    "Balance",
    "BudgetExhaustedError",
    "BudgetImpossibleError",
    "CapacityError",
    "Clock",
    "ConfigError",
    "Conversation",
    "Deadline",
    "Deployment",
    "GovError",
    "GovernedSession",
    "Governor",
    "MemoryStore",
    "ModelChoice",
    "ModelError",
    "ModelFlags",
    "Outcome",
    "Overrides",
    "PoolStats",
    "Profile",
    "ResolvedDeployment",
    "ResolvedProfile",
    "Runtime",
    "Scope",
    "ScopeLimit",
    "SessionArchive",
    "SessionInfo",
    "SessionKey",
    "SessionSpec",
    "Simulator",
    "SqliteStore",
    "StoreError",
    "TokenLedger",
    "TurnObserver",
    "TurnOrder",
    "TurnReport",
    "TurnRequest",
    "build_runtime",
    "fit_to_model",
    "load_deployment",
    "load_profile",
    "open_ledger",
    "open_runtime",
    "resolve_model",
    "start_simulator",
]


def __getattr__(name: str) -> Any:
    if name in _MODULE_OF:
        value = getattr(import_module(_MODULE_OF[name]), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'agentao_gov' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
