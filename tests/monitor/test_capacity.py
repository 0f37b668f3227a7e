"""The plan follows from the measurements, and names what gives way first."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentao_gov.monitor.capacity import MachineLimits, McpMeasured, Measured, make_plan, rule_of_thumb_bytes

GIB = 2**30
MIB = 2**20
MACHINE = MachineLimits(memory_bytes=4 * GIB, cores=2, fds_max=20_000, processes_max=1_000)
LEAN = Measured(
    mode="in-process", base_bytes=100 * MIB, base_fds=20, start_s=2.0, open_ms=1.5, session_empty_bytes=30_000,
    session_full_bytes=200_000, full_tokens=48_000, session_fds=0.0, session_processes=0, cpu_ms_empty=6.0,
    cpu_ms_full=8.0,
)  # fmt: skip
SERVER = McpMeasured("m", bytes=60 * MIB, processes=1, start_s=1.0)


@pytest.mark.parametrize(
    ("measured", "machine", "bottleneck"),
    [
        (LEAN, MACHINE, "max_sessions"),
        (replace(LEAN, mcp=(SERVER,)), MACHINE, "memory"),
        (replace(LEAN, mcp=(replace(SERVER, bytes=1),)), replace(MACHINE, processes_max=100), "processes"),
        (replace(LEAN, session_fds=100.0), MACHINE, "descriptors"),
    ],
)
def test_the_resource_that_runs_out_first_is_named(measured: Measured, machine: MachineLimits, bottleneck: str) -> None:
    """Each resource can be the one."""
    plan = make_plan(machine, measured, max_sessions=500, max_busy=64, turn_s=5)

    assert plan.bottleneck == bottleneck
    assert plan.sessions == plan.sessions_by[bottleneck] == min(plan.sessions_by.values())


def test_a_shared_server_is_paid_for_once_a_tenant() -> None:
    """Sharing is what makes MCP servers affordable, so the plan must show it."""
    own = make_plan(MACHINE, replace(LEAN, mcp=(SERVER,)), max_sessions=500, max_busy=64, turn_s=5)
    shared = replace(LEAN, mcp=(replace(SERVER, share="tenant"),))
    plan = make_plan(MACHINE, shared, max_sessions=500, max_busy=64, turn_s=5, tenants=7)

    assert own.mcp_processes == own.sessions
    assert (plan.sessions, plan.mcp_processes) == (500, 7)


def test_turns_of_one_process_share_one_core() -> None:
    """The interpreter lock: 11.5 ms a turn at 70 % of one core is 60 turns a second, whatever the cores."""
    plan = make_plan(replace(MACHINE, cores=16), LEAN, max_sessions=500, max_busy=1000, turn_s=1)

    # 8 ms measured, and 3.5 of the service's
    assert plan.turns_per_s == pytest.approx(0.7 / 0.0115)
    assert plan.busy == 60


def test_the_published_rule_is_far_off_for_lean_sessions() -> None:
    """500 sessions and 3 servers: about 5 GB published."""
    assert rule_of_thumb_bytes(500, 3) == 5_300_000_000

    plan = make_plan(MACHINE, LEAN, max_sessions=500, max_busy=64, turn_s=5)

    assert plan.rule_bytes > 20 * plan.details["need_bytes"]


@given(
    memory=st.integers(1, 64 * GIB),
    session=st.integers(0, 100 * MIB),
    server=st.integers(0, 200 * MIB),
    processes=st.integers(0, 3),
    fds=st.floats(0, 50),
)
def test_a_plan_never_promises_more_than_there_is(
    memory: int, session: int, server: int, processes: int, fds: float
) -> None:
    """Whatever was measured: the planned sessions fit into each resource."""
    machine = replace(MACHINE, memory_bytes=memory)
    measured = replace(
        LEAN, session_full_bytes=session, session_fds=fds, mcp=(replace(SERVER, bytes=server, processes=processes),)
    )

    plan = make_plan(machine, measured, max_sessions=500, max_busy=64, turn_s=5)

    assert 0 <= plan.sessions <= 500
    assert plan.memory_bytes <= memory
    assert plan.sessions == 0 or plan.details["need_bytes"] <= memory
    assert plan.sessions * processes <= machine.processes_max
    assert plan.sessions * fds <= machine.fds_max
    assert plan.busy >= 1
