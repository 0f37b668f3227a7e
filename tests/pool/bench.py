"""A pool on a workbench: over scripted hosts or real ones, with short ways to ask, and to wait for what must come."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from pydantic import SecretStr

from agentao_gov.config import Deployment, ModelChoice, Profile, ResolvedDeployment, ResolvedProfile
from agentao_gov.governor.report import Mode, TurnReport
from agentao_gov.governor.types import SessionKey
from agentao_gov.pool import AgentPool, HostFactory, PoolStats, SessionArchive, TurnOrder
from agentao_gov.pool.events import PoolEvent
from agentao_gov.pool.host import SessionHost
from tests.pool.scripted import HANG_S

_turns = itertools.count(1)


def a_profile(name: str = "test", **limits: Any) -> ResolvedProfile:
    """A profile as a file would give it."""
    settings = {"name": name, "limits": limits}
    return ResolvedProfile(profile=Profile.model_validate(settings), sources={}, findings=(), path=None)


def a_model(base_url: str = "http://127.0.0.1:9/v1") -> ModelChoice:
    """The simulated model."""
    return ModelChoice(
        kind="simulated",
        name="simulated",
        base_url=base_url,
        api_key=SecretStr("sk-simulated-0123456789"),
        context_window=None,
        source="test",
        from_flag=False,
    )


def eventually(condition: Callable[[], bool], what: str = "the condition") -> None:
    """Waits until something holds that other threads bring about."""
    deadline = time.monotonic() + HANG_S
    while not condition():
        assert time.monotonic() < deadline, f"{what} never held"
        time.sleep(0.002)


class PoolBench:
    """A pool with one profile and one model; closes itself."""

    def __init__(
        self,
        root: Path,
        hosts: HostFactory,
        *,
        model: ModelChoice | None = None,
        mode: Mode = "in-process",
        archive: SessionArchive | None = None,
        tenants: Mapping[str, Mapping[str, Any]] | None = None,
        capacity: Mapping[str, Any] | None = None,
        shutdown: Mapping[str, Any] | None = None,
        **pool: Any,
    ) -> None:
        sections = {
            "pool": {"mode": mode, **pool},
            "tenants": tenants or {},
            "capacity": capacity or {},
            "shutdown": shutdown or {},
        }
        deployment = ResolvedDeployment(
            deployment=Deployment.model_validate(sections), sources={}, findings=(), path=None, state_dir=root
        )
        self.mode = mode
        self.model = model or a_model()
        self.profile = a_profile()
        self.archive = archive or SessionArchive(root / "sessions")
        self.events: list[PoolEvent] = []
        self.pool = AgentPool(deployment, {"in-process": hosts, "fresh": hosts, "subprocess": hosts}, self.archive)
        self.pool.subscribe(self.events.append)

    def order(self, session: str, message: str = "hello", *, tenant: str = "acme", **fields: Any) -> TurnOrder:
        given: dict[str, Any] = {
            "user": "ann",
            "profile": self.profile,
            "model": self.model,
            "turn_id": f"turn-{next(_turns)}",
            "mode": self.mode,
            **fields,
        }
        return TurnOrder(key=SessionKey(tenant, session), message=message, **given)

    def submit(self, session: str, message: str = "hello", **fields: Any) -> Future[TurnReport]:
        return self.pool.submit(self.order(session, message, **fields))

    def ask(self, session: str, message: str = "hello", **fields: Any) -> TurnReport:
        return self.submit(session, message, **fields).result(HANG_S)

    def stats(self) -> PoolStats:
        return self.pool.stats()

    def evict_all(self) -> None:
        """Lets every idle session leave memory, by a pool that is small for a moment."""
        limits = self.pool.limits
        self.pool.resize(type(limits)(max_sessions=0))
        eventually(lambda: self.stats().resident == 0, "the pool is empty")
        self.pool.resize(limits)

    def host(self, session: str, tenant: str = "acme") -> SessionHost:
        """The host of a session in memory."""
        engine = self.pool._engine
        with engine.lock:
            return engine.residents[SessionKey(tenant, session)].host

    def close(self) -> None:
        self.pool.close()
