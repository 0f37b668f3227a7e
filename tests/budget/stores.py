"""One way to open each kind of ledger, for the contract suite and for what comes after a month."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from agentao_gov.budget import MemoryStore, RedisStore, SqliteStore, Store
from agentao_gov.clock import Clock

__all__ = ["ALL", "LASTING", "OpenStore", "opener"]

#: Each call is one more owner of the same ledger (memory: the same one).
OpenStore = Callable[[], Store]

#: Those that outlive a process.
LASTING = ["sqlite", pytest.param("redis", marks=pytest.mark.redis)]
ALL = ["memory", *LASTING]


def opener(request: pytest.FixtureRequest, tmp_path: Path, clock: Clock, retain_s: float = 30 * 86_400.0) -> OpenStore:
    """Opens the ledger of the kind that a fixture's parameter names; it keeps its journal for `retain_s`."""
    if request.param == "memory":
        memory = MemoryStore(clock)
        return lambda: memory
    if request.param == "sqlite":
        return lambda: SqliteStore(tmp_path / "ledger.db", clock, retain_s=retain_s)
    url = request.getfixturevalue("redis_url")
    return lambda: RedisStore(url, clock=clock, name=tmp_path.name, retain_s=retain_s)
