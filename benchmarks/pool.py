"""What the pool costs: getting and giving back a session, bringing one back from disk, memory per session.

    python benchmarks/pool.py [--quick]

Acquire and release are timed one by one in this process, on hosts that do nothing, beside the pool that agentao's
guide publishes (`pool_published.py`) with agents that do nothing. Rehydration and memory use real agentao agents.
Memory is measured in a child process for each figure. The timed thread runs with real-time priority where the user
may, so that the figures are this program's and not its neighbours'. Writes pool.json beside this file and prints it.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import os
import platform
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil
from pydantic import SecretStr

from agentao_gov.budget import MemoryStore, StoreSettings, TokenLedger
from agentao_gov.clock import SYSTEM_CLOCK, Deadline
from agentao_gov.config import Deployment, ModelChoice, Profile, ResolvedDeployment, ResolvedProfile
from agentao_gov.governor import Conversation, Governor, SessionKey, SessionSpec
from agentao_gov.governor.tokens import count_tokens
from agentao_gov.pool import (
    AgentPool,
    GovernorHosts,
    PoolLimits,
    SessionArchive,
    SessionHead,
    SessionUsage,
    TurnOrder,
)
from agentao_gov.pool.core import PoolCore
from agentao_gov.pool.events import Grant, SessionOpened

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.pool_published import PublishedPool
from benchmarks.tables import machine, refresh, table

HERE = Path(__file__).parent
HANG_S = 60.0
TENANTS = 20


# ruff: noqa: ARG002 -- hosts that do nothing use none of their arguments


class NullHost:
    """A session that does nothing."""

    stuck = False

    def turn(self, request: Any, on_event: Any) -> Any:
        raise NotImplementedError("leases only")

    def cancel(self, reason: str) -> None: ...

    def snapshot(self) -> Conversation:
        return Conversation()

    def rest(self) -> bool:
        return False

    def close(self, deadline: Deadline | None = None) -> None: ...

    def kill(self) -> None: ...

    def process_ids(self) -> tuple[int, ...]:
        return ()


class NullHosts:
    """Opens them."""

    def open(self, spec: SessionSpec, conversation: Conversation | None, deadline: Deadline) -> NullHost:
        return NullHost()

    def shutdown(self, deadline: Deadline) -> None: ...


PROFILE = ResolvedProfile(
    profile=Profile.model_validate({"name": "bench"}), sources={}, findings=(), path=None
)  # fmt: skip
MODEL = ModelChoice(
    kind="simulated",
    name="simulated",
    base_url="http://127.0.0.1:9/v1",
    api_key=SecretStr("sk-simulated-0123456789"),
    context_window=None,
    source="benchmark",
    from_flag=False,
)


def make_pool(root: Path, hosts: Any, **pool: Any) -> AgentPool:
    """A pool with nothing but the given settings."""
    deployment = ResolvedDeployment(
        deployment=Deployment.model_validate({"pool": pool}), sources={}, findings=(), path=None, state_dir=root
    )
    return AgentPool(deployment, {"in-process": hosts}, SessionArchive(root / "sessions"))


def key_of(n: int) -> SessionKey:
    return SessionKey(f"tenant-{n % TENANTS}", f"session-{n}")


def order(n: int, *, keep: bool = True, workdir: Path | None = None) -> TurnOrder:
    return TurnOrder(key_of(n), "ann", PROFILE, MODEL, "", f"turn-{n}", "in-process", keep=keep, workdir=workdir)


@contextmanager
def undisturbed() -> Iterator[None]:
    """The main thread before all others of the machine, where this user may: else p99 is the neighbours' p99."""
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
    except OSError:
        yield
        return
    try:
        yield
    finally:
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))


def may_be_undisturbed() -> bool:
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
    except OSError:
        return False
    return True


def quantiles(seconds: list[float], unit: float = 1e6) -> dict[str, float]:
    """p50, p95, p99 and the worst, in microseconds unless said."""
    ordered = sorted(seconds)
    picks = {"p50": 0.5, "p95": 0.95, "p99": 0.99}
    figures = {name: ordered[int(len(ordered) * part)] for name, part in picks.items()}
    return {name: round(value * unit, 2) for name, value in {**figures, "max": ordered[-1]}.items()}


def time_core(known: int, rounds: int) -> dict[str, Any]:
    """The decisions alone: no threads, no hosts."""
    core = PoolCore(PoolLimits(max_sessions=known, max_opening=known))
    for n in range(known):
        _, effects = core.acquire(0.0, key_of(n), "ann")
        effects = core.opened(0.0, key_of(n))
        core.release(0.0, next(effect.lease_id for effect in effects if isinstance(effect, Grant)))
    acquire, release = [], []
    pick = random.Random(1)
    keys = [key_of(pick.randrange(known)) for _ in range(rounds)]
    with undisturbed():
        for n, key in enumerate(keys):
            began = time.perf_counter()
            _, effects = core.acquire(float(n), key, "ann")
            middle = time.perf_counter()
            core.release(float(n), effects[0].lease_id)  # type: ignore[union-attr]
            release.append(time.perf_counter() - middle)
            acquire.append(middle - began)
    return {"known": known, "acquire_us": quantiles(acquire), "release_us": quantiles(release)}


def time_pool(root: Path, known: int, rounds: int) -> dict[str, Any]:
    """`lease` and `release` on sessions in memory: lock, decision, bookkeeping, future."""
    pool = make_pool(
        root, NullHosts(), max_sessions=known, max_opening=8, queue_limit=known, queue_timeout="10m", hibernate=False
    )
    for n in range(known):
        pool.lease(order(n, keep=False, workdir=root)).result(HANG_S).release()
    pick = random.Random(1)
    orders = [order(pick.randrange(known), keep=False, workdir=root) for _ in range(rounds)]
    gc.collect()
    gc.freeze()
    passes = [_lend(pool, orders) for _ in range(3)]
    pool.close()
    gc.unfreeze()
    # The middle one: the machine's moods are longer than a pass.
    return {"known": known} | sorted(passes, key=lambda one: one["acquire_us"]["p99"])[1]


def _lend(pool: AgentPool, orders: list[TurnOrder]) -> dict[str, dict[str, float]]:
    """Each order once."""
    acquire, release = [], []
    with undisturbed():
        for one in orders:
            began = time.perf_counter()
            lease = pool.lease(one).result()
            middle = time.perf_counter()
            lease.release()
            release.append(time.perf_counter() - middle)
            acquire.append(middle - began)
    return {"acquire_us": quantiles(acquire), "release_us": quantiles(release)}


def time_published(known: int, rounds: int) -> dict[str, Any]:
    """`get` of the published pool, on sessions in memory; a place is left free, so that it evicts nothing."""

    async def run() -> list[float]:
        pool = PublishedPool(lambda _: NullHost(), max_sessions=known + 1, ttl_s=3600.0)
        for n in range(known):
            # Filled directly: through `get` the filling alone would take minutes.
            pool.entries[f"session-{n}"] = pool.entry(NullHost())
        pick = random.Random(1)
        times = []
        with undisturbed():
            for n in [pick.randrange(known) for _ in range(rounds)]:
                began = time.perf_counter()
                await pool.get(f"session-{n}")
                times.append(time.perf_counter() - began)
        return times

    return {"known": known, "acquire_us": quantiles(asyncio.run(run()))}


def time_others_while_one_close_hangs(root: Path, rounds: int) -> dict[str, Any]:
    """Sessions open, evict each other and are lent, while the close of one hangs all the time."""
    hang = threading.Event()

    class Stubborn(NullHost):
        def close(self, deadline: Deadline | None = None) -> None:
            hang.wait(30)

    class Hosts(NullHosts):
        def open(self, spec: SessionSpec, conversation: Conversation | None, deadline: Deadline) -> NullHost:
            return Stubborn() if spec.key == key_of(0) else NullHost()

    pool = make_pool(root, Hosts(), max_sessions=8, hibernate=False)
    times = []
    # The stubborn one comes first, and is evicted by the ninth; it is not asked for again.
    for n in [0, *(1 + n % 12 for n in range(rounds))]:
        began = time.perf_counter()
        pool.lease(order(n, keep=False, workdir=root)).result(HANG_S).release()
        times.append(time.perf_counter() - began)
    hang.set()
    pool.close()
    return quantiles(times)


def talk(messages: int, size: int = 200) -> Conversation:
    """A conversation of so many messages of about so many characters."""
    text = "Limits make agents predictable. " * (size // 32)
    roles = ("user", "assistant")
    return Conversation(messages=[{"role": roles[n % 2], "content": f"{n}. {text}"} for n in range(messages)])


def prose(messages: int, size: int, seed: int) -> Conversation:
    """A conversation of words drawn as in English, Zipf's way: it compresses to 0.39, and no two are alike."""
    pick = random.Random(seed)
    words = ["".join(pick.choices("etaoinshrdlucmfwypvbgk", k=pick.randint(2, 9))) for _ in range(3_000)]
    weights = [1 / (rank + 2) for rank in range(len(words))]
    roles = ("user", "assistant")
    texts = (" ".join(pick.choices(words, weights, k=size // 4))[:size] for _ in range(messages))
    return Conversation(messages=[{"role": roles[n % 2], "content": text} for n, text in enumerate(texts)])


def archive_sessions(archive: SessionArchive, count: int, *conversations: Conversation) -> None:
    """Puts sessions on disk as if they had been evicted."""
    for n in range(count):
        conversation = conversations[n % len(conversations)]
        key = key_of(n)
        held = archive.hold(key, Deadline.after(HANG_S))
        assert held is not None
        head = SessionHead(key, 0, "ann", "bench", "in-process", "simulated", 0.0, time.time(), SessionUsage())
        archive.save(held, head, conversation)
        held.release()


def governor_hosts() -> GovernorHosts:
    ledger = TokenLedger(MemoryStore(SYSTEM_CLOCK, StoreSettings()), SYSTEM_CLOCK, heartbeat_s=None)
    return GovernorHosts(Governor(ledger=ledger))


def time_rehydration(root: Path, messages: int, rounds: int) -> dict[str, Any]:
    """From the turn's arrival to a real agent with its conversation: file, agent, lease. And the save after a turn."""
    archive = SessionArchive(root / "sessions")
    conversation = talk(messages)
    archive_sessions(archive, rounds, conversation)
    pool = make_pool(root, governor_hosts(), max_sessions=rounds)
    opened: list[float] = []
    pool.subscribe(lambda event: opened.append(event.duration_s) if isinstance(event, SessionOpened) else None)
    whole, save = [], []
    for n in range(rounds):
        began = time.perf_counter()
        pool.lease(order(n)).result(HANG_S).release()
        whole.append(time.perf_counter() - began)
    for n in range(rounds):
        held = archive.hold(key_of(n), Deadline.after(HANG_S))
        head = archive.head(key_of(n))
        assert held is not None
        assert head is not None
        began = time.perf_counter()
        archive.save(held, head, conversation)
        save.append(time.perf_counter() - began)
        held.release()
    pool.close()
    # The first opening imports agentao's parts; a service does that at its start.
    return {
        "messages": messages,
        "whole_ms": quantiles(whole[1:], 1e3),
        "open_ms": quantiles(opened[1:], 1e3),
        "save_ms": quantiles(save, 1e3),
    }


def measure_memory(sessions: int, messages: int, root: Path) -> dict[str, Any]:
    """Memory of a process with so many real sessions: the most while they come, and when they rest."""
    pool = make_pool(root, governor_hosts(), max_sessions=sessions + 1)
    pool.lease(order(sessions)).result(HANG_S).release()
    process = psutil.Process()
    before = at_rest(pool, process)
    for n in range(sessions):
        pool.lease(order(n)).result(HANG_S).release()
    come = process.memory_info().rss
    after = at_rest(pool, process)
    rss = process.memory_info().rss
    peak = peak_rss()
    threads = threading.active_count()
    assert pool.stats().resident == sessions + 1
    pool.close()
    mib = 1024 * 1024
    return {
        "sessions": sessions,
        "messages": messages,
        "first_mib": round(before / mib, 1),
        "come_rss_mib": round(come / mib, 1),
        "peak_rss_mib": round(peak / mib, 1),
        "peak_rss_mb": round(peak / 1e6, 1),
        "process_mib": round(after / mib, 1),
        "process_rss_mib": round(rss / mib, 1),
        "process_rss_mb": round(rss / 1e6, 1),
        "per_session_kib": round((after - before) / sessions / 1024, 1),
        "threads": threads,
    }


def at_rest(pool: AgentPool, process: psutil.Process) -> int:
    """USS once tiktoken's table is loaded and every session rests."""
    count_tokens("The governor loads it in the background; this waits for it.")
    deadline = time.monotonic() + HANG_S
    while pool.stats().awake:
        if time.monotonic() > deadline:
            raise SystemExit("the sessions do not come to rest")
        time.sleep(0.01)
    return int(process.memory_full_info().uss)


def peak_rss() -> int:
    """The most this process has ever held, as the kernel knows it (VmHWM)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


def in_child(sessions: int, messages: int) -> dict[str, Any]:
    """A figure from a process of its own, which finds the sessions on disk."""
    with tempfile.TemporaryDirectory() as place:
        talks = [prose(messages, 2000, seed) for seed in range(20)]
        archive_sessions(SessionArchive(Path(place) / "sessions"), sessions + 1, *talks)
        command = [sys.executable, __file__, "--memory", str(sessions), str(messages), place]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def environment() -> dict[str, Any]:
    return {
        "date": time.strftime("%Y-%m-%d"),
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "agentao": version("agentao"),
        "load": os.getloadavg()[0],
        "real_time_priority": may_be_undisturbed(),
    }


def run(quick: bool) -> dict[str, Any]:
    """All figures."""
    sizes = (100, 10_000) if quick else (100, 10_000, 100_000)
    rounds = 2_000 if quick else 20_000
    result: dict[str, Any] = {"environment": environment(), "core": [], "pool": [], "published": []}
    for known in sizes:
        result["core"].append(time_core(known, rounds))
        with tempfile.TemporaryDirectory() as place:
            result["pool"].append(time_pool(Path(place), known, rounds))
        result["published"].append(time_published(known, min(rounds, 20_000_000 // known // 10)))
    with tempfile.TemporaryDirectory() as place:
        with undisturbed():
            result["others_while_a_close_hangs_us"] = time_others_while_one_close_hangs(Path(place), 1_000)
    result["rehydration"] = []
    for messages in (0, 200):
        with tempfile.TemporaryDirectory() as place:
            with undisturbed():
                result["rehydration"].append(time_rehydration(Path(place), messages, 50 if quick else 200))
    result["memory"] = [in_child(sessions, messages) for sessions in (100, 500) for messages in (0, 100)]
    return result


def sections(result: dict[str, Any]) -> dict[str, str]:
    """The tables of `pool.md`."""

    def pair(figures: dict[str, float], high: str = "p99") -> str:
        return f"{figures['p50']:,.0f} / {figures[high]:,.0f}"

    acquire = [
        [f"{core['known']:,}", pair(core["acquire_us"]), pair(pool["acquire_us"]), pair(pool["release_us"]),
         pair(published["acquire_us"])]
        for core, pool, published in zip(result["core"], result["pool"], result["published"], strict=True)
    ]  # fmt: skip
    back = [
        [row["messages"], *(f"{row[name]['p50']:.1f} / {row[name]['p95']:.1f}" for name in ("whole_ms", "save_ms"))]
        for row in result["rehydration"]
    ]
    memory = [
        [row["sessions"], "100 messages of 2 KB" if row["messages"] else "none",
         f"{row['peak_rss_mib']:.0f} MiB ({row['peak_rss_mb']:.0f} MB)",
         f"{row['process_rss_mib']:.0f} MiB ({row['process_rss_mb']:.0f} MB)", f"{row['process_mib']:.0f} MiB",
         f"{row['per_session_kib']:.0f} KiB"]
        for row in result["memory"]
    ]  # fmt: skip
    others = result["others_while_a_close_hangs_us"]
    heads = ("known sessions", "decision alone p50 / p99", "acquire p50 / p99", "release p50 / p99",
             "published `get` p50 / p99")  # fmt: skip
    first = result["memory"][0]["first_mib"]
    return {
        "machine": machine(result["environment"]),
        "acquire": table(heads, acquire),
        "others": f"a lease takes {others['p50'] / 1000:.1f} ms (p50) and {others['p99'] / 1000:.1f} ms (p99)",
        "rehydration": table(
            ("messages of 200 characters", "arrival to lease p50 / p95", "save after a turn p50 / p95"), back
        ),
        "memory": table(
            (
                "sessions in memory",
                "history",
                "most RSS while all come",
                "RSS at rest",
                "USS at rest",
                "a session, USS",
            ),
            memory,
        ),
        "first": f"With one session the process holds {first:.0f} MiB (USS)",
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="smaller, for a look")
    parser.add_argument("--memory", nargs=3, metavar=("SESSIONS", "MESSAGES", "ROOT"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.memory:
        sessions, messages, root = arguments.memory
        print(json.dumps(measure_memory(int(sessions), int(messages), Path(root))))
        return
    result = run(arguments.quick)
    if not arguments.quick:
        (HERE / "pool.json").write_text(json.dumps(result, indent=1) + "\n")
        refresh(HERE / "pool.md", sections(result))
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
