"""Sessions that nobody asks for a while let go of memory, once, and not while they work."""

from __future__ import annotations

from pathlib import Path

import pytest

from agentao_gov.governor.types import SessionKey
from agentao_gov.pool import memory
from agentao_gov.pool.memory import Trimmer
from tests.pool.bench import PoolBench, eventually
from tests.pool.scripted import ScriptedHosts

KEY = SessionKey("acme", "s")


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Resting after a twentieth of the time."""
    monkeypatch.setattr(memory, "REST_AFTER_S", 0.05)


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


def test_however_many_come_at_once_few_stay_awake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The longest idle rest before their time; a busy one is left alone, and rests no sooner than the others."""
    monkeypatch.setattr(memory, "REST_AFTER_S", 1e9)
    monkeypatch.setattr(memory, "AWAKE_MAX", 2)
    monkeypatch.setattr(memory, "AWAKE_SLACK", 2)
    hosts = ScriptedHosts()
    bench = PoolBench(tmp_path, hosts)
    bench.ask("busy")
    held = bench.submit("busy", "hold gate")
    hosts.arrive("gate")
    for n in range(4):
        bench.ask(f"s{n}")

    eventually(lambda: len(hosts.rested) == 2, "the rests")
    resting = {key.session for key in hosts.rested}
    hosts.gates["gate"].set()
    held.result(10)
    bench.ask("s4")
    bench.ask("s5")

    assert resting == {"s0", "s1"}
    eventually(lambda: len(hosts.rested) == 5, "the next rests")
    assert {key.session for key in hosts.rested} == {"s0", "s1", "s2", "s3", "busy"}
    bench.close()


def test_sessions_with_nothing_to_give_up_are_not_put_to_rest_before_their_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Known from their last rest: ten small ones ask again and again, and no thread runs for them."""
    hosts = ScriptedHosts()
    hosts.heavy = False
    bench = PoolBench(tmp_path, hosts)
    for n in range(10):
        bench.ask(f"s{n}")
    eventually(lambda: hosts.rested.total() == 10, "their rest")
    eventually(lambda: bench.stats().awake == 0, "its end")
    monkeypatch.setattr(memory, "REST_AFTER_S", 1e9)
    monkeypatch.setattr(memory, "AWAKE_MAX", 0)
    monkeypatch.setattr(memory, "AWAKE_SLACK", 0)
    for n in range(10):
        bench.ask(f"s{n}")

    awake, rested = bench.stats().awake, hosts.rested.total()
    bench.ask("unknown")
    eventually(lambda: hosts.rested[SessionKey("acme", "unknown")] == 1, "the rest of one that may be large")

    assert (awake, rested) == (10, 10)
    bench.close()


def test_a_rest_whose_memory_could_not_be_given_back_is_over_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The C library refuses twice: the count of those awake is right again, and the next that are too many rest."""
    refusals = [OSError("no trim today"), OSError("nor now")]
    give_back = Trimmer.give_back

    def refuse_twice(trimmer: Trimmer) -> None:
        if refusals:
            raise refusals.pop(0)
        give_back(trimmer)

    monkeypatch.setattr(Trimmer, "give_back", refuse_twice)
    monkeypatch.setattr(memory, "REST_AFTER_S", 1e9)
    monkeypatch.setattr(memory, "AWAKE_MAX", 2)
    monkeypatch.setattr(memory, "AWAKE_SLACK", 2)
    hosts = ScriptedHosts()
    bench = PoolBench(tmp_path, hosts)

    for several in (range(5), range(5, 8), range(8, 11)):
        for n in several:
            bench.ask(f"s{n}")
        eventually(lambda: bench.stats().awake == 2, "the end of their rest")

    assert hosts.rested.total() == 9
    assert caplog.text.count("no trim today") == caplog.text.count("nor now") == 1
    bench.close()
