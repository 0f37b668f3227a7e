"""What the measurements of `isolation.py` share: sessions on a simulated model, a clock, memory, processor time."""

from __future__ import annotations

import itertools
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
from pydantic import SecretStr

from agentao_gov.budget import MemoryStore, StoreSettings, TokenLedger
from agentao_gov.clock import SYSTEM_CLOCK, Deadline
from agentao_gov.config import ModelChoice
from agentao_gov.config.profile import Profile
from agentao_gov.config.resolved import ResolvedProfile
from agentao_gov.governor import SessionKey, SessionSpec, TurnRequest
from agentao_gov.governor.governor import Governor
from agentao_gov.worker.factory import SubprocessFactory, SubprocessSettings

__all__ = ["Bench", "ask", "cpu_s", "middle", "pss_mib", "say", "timed_ms"]

_numbers = itertools.count(1)


class Bench:
    """One simulated model, one ledger, one directory for everything."""

    def __init__(self, base_url: str, root: Path) -> None:
        self.base_url = base_url
        self.root = root
        self.ledger = TokenLedger(MemoryStore(SYSTEM_CLOCK, StoreSettings()), SYSTEM_CLOCK, heartbeat_s=None)
        self.governor = Governor(ledger=self.ledger)

    def factory(self, **settings: Any) -> SubprocessFactory:
        return SubprocessFactory(ledger=self.ledger, settings=SubprocessSettings(**settings))

    def spec(self, **tables: Any) -> SessionSpec:
        name = f"s{next(_numbers)}"
        profile = ResolvedProfile(profile=Profile.model_validate({"name": "bench", **tables}), sources={})
        choice = ModelChoice(
            kind="simulated", name="simulated", base_url=self.base_url, api_key=SecretStr("sk-bench"),
            context_window=None, source="benchmark",
        )  # fmt: skip
        return SessionSpec(SessionKey("bench", name), "ann", profile, choice, self.root / name, "subprocess")

    def open(self, factory: Any, **tables: Any) -> Any:
        spec = self.spec(**tables)
        if factory is self.governor:
            spec = replace(spec, mode="in-process")
        return factory.open(spec, None, Deadline.after(60))


def ask(host: Any, text: str = "hello", *, deadline_s: float = 60.0) -> Any:
    request = TurnRequest(f"t{next(_numbers)}", text, "ann", Deadline.after(deadline_s))
    return host.turn(request, lambda _event: None)


def say(**directive: Any) -> str:
    return f"\n@sim {json.dumps(directive)}"


def timed_ms(work: Callable[[], Any]) -> float:
    began = time.perf_counter()
    work()
    return (time.perf_counter() - began) * 1000


def middle(values: list[float]) -> dict[str, float]:
    ordered = sorted(values)
    return {
        "p50": round(statistics.median(ordered), 1),
        "p95": round(ordered[min(len(ordered) - 1, int(len(ordered) * 0.95))], 1),
        "n": len(ordered),
    }


def pss_mib(roots: list[int]) -> float:
    """Proportional memory of the given processes and all below them."""
    seen: dict[int, psutil.Process] = {}
    for root in roots:
        process = psutil.Process(root)
        seen |= {p.pid: p for p in (process, *process.children(recursive=True))}
    return sum(p.memory_full_info().pss for p in seen.values()) / 2**20


def cpu_s(pids: list[int]) -> float:
    """Processor time of these processes and all below them."""
    total = 0.0
    for pid in pids:
        for process in (psutil.Process(pid), *psutil.Process(pid).children(recursive=True)):
            used = process.cpu_times()
            total += used.user + used.system
    return total
