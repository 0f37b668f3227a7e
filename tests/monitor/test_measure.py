"""Measurements are what /proc says."""

from __future__ import annotations

import mmap
import subprocess
import sys
from pathlib import Path

import psutil

from agentao_gov.governor.types import SessionKey
from agentao_gov.monitor.measure import Measurer
from agentao_gov.pool.types import SessionInfo, SessionState, SessionUsage
from agentao_gov.process.tags import KIND_VARIABLE


def info(session: str, *pids: int, mode: str = "subprocess") -> SessionInfo:
    return SessionInfo(
        key=SessionKey("acme", session), state=SessionState.IDLE, user="ann", profile="qa", mode=mode,  # type: ignore[arg-type]
        model="m", usage=SessionUsage(), created_at=0.0, last_turn_at=None, process_ids=pids,
    )  # fmt: skip


def test_descriptors_threads_and_memory_are_those_of_proc(tmp_path: Path) -> None:
    """Opening ten files shows as ten descriptors."""
    measurer = Measurer()
    before = measurer.take(0.0)

    files = [(tmp_path / str(n)).open("w") for n in range(10)]
    after = measurer.take(0.0)
    for file in files:
        file.close()

    assert after.open_fds - before.open_fds == 10
    assert after.threads == psutil.Process().num_threads()
    assert after.rss_bytes > 1_000_000


def test_a_child_is_counted_by_its_kind_and_charged_to_its_session() -> None:
    """An MCP server's memory is its session's; one that two sessions share is shared between them."""
    code = "import sys; sys.stdout.write('up'); sys.stdout.flush(); sys.stdin.read()"
    child = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env={KIND_VARIABLE: "mcp"}
    )
    assert child.stdout is not None
    child.stdout.read(2)

    measured = Measurer().take(0.0, [info("a", child.pid), info("b", child.pid), info("c")])
    rss = psutil.Process(child.pid).memory_info().rss
    child.communicate()

    assert measured.children["mcp"] == 1
    assert measured.session_bytes[SessionKey("acme", "a")] == rss // 2
    assert measured.session_bytes[SessionKey("acme", "c")] == 0


def test_growth_of_the_process_is_shared_by_its_sessions() -> None:
    """20 MiB more over two sessions in the process are some 10 MiB each."""
    measurer = Measurer()

    # Pages of its own: memory that an earlier test gave back to the allocator would be no growth.
    ballast = mmap.mmap(-1, 20 << 20)
    for page in range(0, len(ballast), mmap.PAGESIZE):
        ballast[page] = 1
    measured = measurer.take(0.0, [info("a", mode="in-process"), info("b", mode="in-process")])
    each = measured.session_bytes[SessionKey("acme", "a")]

    assert len(ballast) // 2 * 0.8 < each < len(ballast)
