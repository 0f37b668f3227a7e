"""The service's way down over a real pool with scripted sessions: who begins it, what it ends with, what it tells."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from agentao_gov.config import Deployment, Pool
from agentao_gov.endings import Outcome
from agentao_gov.errors import TenantSessionLimitError
from agentao_gov.monitor.logs import log_pool_event
from agentao_gov.pool.ladder import RungTimes
from agentao_gov.process.supervision import RESTART_EXIT
from agentao_gov.service.gateway import Gateway
from agentao_gov.service.shutdown import ShutdownWalk
from tests.pool.bench import PoolBench
from tests.pool.scripted import ScriptedHosts

TIMES = RungTimes(lame_duck_s=0.0, drain_s=5.0, cancel_s=3.0, close_s=3.0, kill_s=1.0, budget_s=20.0)


@pytest.fixture
def hosts() -> ScriptedHosts:
    return ScriptedHosts()


@pytest.fixture
def bench(tmp_path: Path, hosts: ScriptedHosts) -> Iterator[PoolBench]:
    made = PoolBench(tmp_path, hosts)
    yield made
    hosts.release(*list(hosts.held), *list(hosts.gates))
    made.close()


def shutdown_of(bench: PoolBench, *, max_stuck: int = 2, guarded: bool = True) -> ShutdownWalk:
    deployment = Deployment.model_construct(**{**Deployment().__dict__, "pool": Pool(max_stuck=max_stuck)})
    gateway = cast(Gateway, SimpleNamespace(pool=bench.pool, deployment=deployment))
    shutdown = ShutdownWalk(gateway, TIMES)
    shutdown._guarded = guarded
    return shutdown


async def walked(shutdown: ShutdownWalk, within_s: float = 12.0) -> bool:
    try:
        async with asyncio.timeout(within_s):
            await shutdown.walk()
    except TimeoutError:
        return False
    return True


def test_too_many_stuck_turns_end_the_service_with_the_code_that_asks_for_a_restart(bench: PoolBench) -> None:
    """Each holds a slot for good; below a warden a fresh process takes over."""
    for n in range(2):
        bench.ask(f"s{n}", "stick")

    async def scenario() -> tuple[bool, int]:
        shutdown = shutdown_of(bench)
        return await walked(shutdown), shutdown.exit_code

    assert asyncio.run(scenario()) == (True, RESTART_EXIT)
    assert bench.pool.stats().rung in ("killing", "gone")


def test_one_tenant_s_stuck_turns_refuse_its_own_and_leave_the_others_alone(
    tmp_path: Path, hosts: ScriptedHosts
) -> None:
    """While another tenant has a turn nothing is restarted; afterwards a new process frees the first one."""
    bench = PoolBench(tmp_path, hosts, tenants={"evil": {}, "acme": {}}, max_stuck=4)
    running = bench.submit("s", "hold on", tenant="acme")
    hosts.arrive("on")
    for n in range(2):
        bench.ask(f"s{n}", "stick", tenant="evil")

    with pytest.raises(TenantSessionLimitError, match="never came back"):
        bench.ask("another", tenant="evil")
    answered = bench.ask("another", tenant="acme")
    went_down = asyncio.run(walked(shutdown_of(bench, max_stuck=4), within_s=1.5))
    hosts.release("on")

    assert answered.outcome is Outcome.ANSWERED
    assert went_down is False
    assert running.result(5).outcome is Outcome.ANSWERED
    assert asyncio.run(walked(shutdown_of(bench, max_stuck=4))) is True
    hosts.release(*list(hosts.held), *list(hosts.gates))


@pytest.mark.parametrize(("stuck", "guarded"), [(1, True), (2, False)])
def test_below_the_cap_or_without_a_warden_it_goes_on_serving(bench: PoolBench, stuck: int, guarded: bool) -> None:
    """Nobody would start it again; then `/readyz` alone asks for a replacement."""
    for n in range(stuck):
        bench.ask(f"s{n}", "stick")

    assert asyncio.run(walked(shutdown_of(bench, guarded=guarded), within_s=1.5)) is False
    assert bench.pool.stats().rung == "serving"


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_the_first_signal_decides_the_exit_code(bench: PoolBench, hosts: ScriptedHosts, signum: int, code: int) -> None:
    """Also when others follow, and turns were cancelled."""
    future = bench.submit("s", "hold on")
    hosts.arrive("on")

    async def scenario() -> tuple[bool, int]:
        shutdown = shutdown_of(bench)
        shutdown.signalled(signum)
        shutdown.signalled(signal.SIGTERM)
        shutdown.signalled(signal.SIGTERM)
        return await walked(shutdown), shutdown.exit_code

    assert asyncio.run(scenario()) == (True, code)
    assert future.result(5).outcome.value == "shutdown"


def test_what_was_cancelled_is_told(bench: PoolBench, hosts: ScriptedHosts, caplog: pytest.LogCaptureFixture) -> None:
    """By tenant and session, in the log."""
    bench.pool.subscribe(log_pool_event)
    bench.submit("s", "hold on")
    hosts.arrive("on")

    async def scenario() -> Any:
        shutdown = shutdown_of(bench)
        for _ in range(3):
            shutdown.signalled(signal.SIGTERM)
        return await walked(shutdown)

    assert asyncio.run(scenario()) is True
    told = [record.__dict__["gov_fields"] for record in caplog.records if record.message == "ended by shutdown"]
    assert {"rung": "cancelling", "what": "acme/s"} in told
