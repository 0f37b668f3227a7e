"""Sessions that nobody asks for a while let go of memory, once, and not while they work."""

from __future__ import annotations

from pathlib import Path

import pytest

from agentao_gov.governor.requests import SessionKey
from agentao_gov.pool import rests
from tests.pool.bench import PoolBench, eventually
from tests.pool.scripted import ScriptedHosts

KEY = SessionKey("acme", "s")


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Resting after a twentieth of the time."""
    monkeypatch.setattr(rests, "REST_AFTER_S", 0.05)


def test_an_idle_session_rests_once_after_each_of_its_turns(tmp_path: Path) -> None:
    """However many turns it had in between."""
    hosts = ScriptedHosts()
    bench = PoolBench(tmp_path, hosts)
    for _ in range(5):
        bench.ask("s")

    eventually(lambda: hosts.rested[KEY] == 1, "the rest")
    bench.ask("s")
    eventually(lambda: hosts.rested[KEY] == 2, "the second rest")
    bench.close()


def test_a_busy_session_does_not_rest(tmp_path: Path) -> None:
    """Another that is idle does meanwhile."""
    hosts = ScriptedHosts()
    bench = PoolBench(tmp_path, hosts)
    bench.ask("s")
    held = bench.submit("s", "hold gate")
    hosts.arrive("gate")
    bench.ask("other")

    eventually(lambda: hosts.rested[SessionKey("acme", "other")] == 1, "the other's rest")
    rested = hosts.rested[KEY]
    hosts.gates["gate"].set()
    held.result(10)

    assert rested <= 1  # before its second turn at the most
    eventually(lambda: hosts.rested[KEY] == rested + 1, "its rest after the turn")
    bench.close()
