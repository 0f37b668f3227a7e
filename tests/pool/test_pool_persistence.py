"""Pools that share sessions with other processes, with their past, and with a disk that refuses."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest

from agentao_gov.endings import Outcome
from agentao_gov.errors import QueueTimeoutError, StoreError
from agentao_gov.governor.types import SessionKey
from agentao_gov.pool import Rung, SessionState
from agentao_gov.pool.events import RungEntered
from tests.pool.bench import eventually
from tests.pool.conftest import MakePool
from tests.pool.scripted import HANG_S, ScriptedHosts


def test_a_session_goes_on_after_a_restart(make_pool: MakePool) -> None:
    """Another pool over the same directory knows the conversation, the usage and the session's beginning."""
    first = make_pool()
    first.ask("s", "remember it")
    first.close()

    second = make_pool(hosts=ScriptedHosts())
    report = second.ask("s", "recall")

    assert report.answer == "remember it"
    info = second.pool.session(SessionKey("acme", "s"))
    assert info is not None
    assert (info.usage.turns, info.usage.total_tokens) == (2, 30)


def test_sessions_past_their_retention_leave_at_the_start(make_pool: MakePool) -> None:
    """A service that restarts more often than it sweeps must not keep everything for ever."""
    first = make_pool(retain_hibernated="1h")
    first.ask("old", "remember it")
    first.ask("young")
    first.close()
    file = first.archive.root / "t-acme" / "s-old" / "session"
    line, _, body = file.read_bytes().partition(b"\n")
    head = {**json.loads(line), "last_turn_at": time.time() - 7200}
    file.write_bytes(json.dumps(head).encode() + b"\n" + body)
    os.utime(file, (time.time() - 7200,) * 2)

    second = make_pool(hosts=ScriptedHosts(), retain_hibernated="1h")

    eventually(lambda: not file.parent.exists(), "the sweep")
    assert [info.key.session for info in second.pool.sessions("acme")] == ["young"]
    eventually(lambda: second.stats().sessions[SessionState.HIBERNATED] == 1, "the count")


def test_a_session_survives_a_process_that_is_killed(make_pool: MakePool) -> None:
    """Nothing rests on a close: every turn's end is on disk before its answer is out."""
    killed = make_pool()
    killed.ask("s", "remember it")

    report = make_pool(hosts=ScriptedHosts()).ask("s", "recall")

    assert report.answer == "remember it"


def test_turns_of_one_session_alternate_between_workers(make_pool: MakePool) -> None:
    """Each worker notices that the other went on, and starts from there; neither's turn is lost."""
    workers = [make_pool(hosts=ScriptedHosts()) for _ in range(2)]

    for n in range(8):
        workers[n % 2].ask("s", f"remember {n}")
    report = workers[0].ask("s", "recall")

    assert report.answer == " ".join(f"remember {n}" for n in range(8))
    assert workers[0].stats().openings > 1


def test_a_session_runs_one_turn_at_a_time_over_all_workers(make_pool: MakePool) -> None:
    """Sixteen turns sent to two workers at once: the conversation has all sixteen, none twice, none lost."""
    workers = [make_pool(hosts=ScriptedHosts()) for _ in range(2)]

    futures = [workers[n % 2].submit("s", f"remember {n}") for n in range(16)]
    for future in futures:
        assert future.result(HANG_S).outcome is Outcome.ANSWERED
    answer = workers[1].ask("s", "recall").answer

    assert answer is not None
    assert sorted(answer.split()) == sorted(" ".join(f"remember {n}" for n in range(16)).split())


def test_a_turn_that_waits_for_another_worker_too_long_is_refused(make_pool: MakePool) -> None:
    """The other worker's turn goes on; this one says where the session is."""
    busy_hosts = ScriptedHosts()
    busy, other = make_pool(hosts=busy_hosts), make_pool(hosts=ScriptedHosts(), queue_timeout=0.05)
    running = busy.submit("s", "hold g")
    busy_hosts.arrive("g")

    with pytest.raises(QueueTimeoutError, match="Another worker"):
        other.ask("s")

    busy_hosts.release("g")
    assert running.result(HANG_S).outcome is Outcome.ANSWERED
    assert other.ask("s").outcome is Outcome.ANSWERED


def test_a_session_deleted_by_one_worker_is_gone_for_the_other(make_pool: MakePool) -> None:
    """Also where the other has a copy in memory."""
    workers = [make_pool(hosts=ScriptedHosts()) for _ in range(2)]
    workers[0].ask("s", "remember it")

    assert workers[1].pool.delete(SessionKey("acme", "s"))

    assert workers[0].ask("s", "recall").answer == ""


def refuse_writes(root: Path, session: str) -> Path:
    """Puts a directory where the session's new file would be written: a real refusal of the operating system."""
    blocker = root / "sessions" / "t-acme" / f"s-{session}" / "session.new"
    blocker.mkdir(parents=True)
    return blocker


def test_a_turn_that_cannot_be_saved_is_answered_with_a_warning_and_saved_later(
    make_pool: MakePool, tmp_path: Path
) -> None:
    """The answer is not lost with the file, the session not with its eviction."""
    pool = make_pool()
    pool.ask("s", "remember one")
    blocker = refuse_writes(tmp_path, "s")

    report = pool.ask("s", "remember two")

    assert report.outcome is Outcome.ANSWERED
    assert report.warnings == ("Not saved yet: A store of the service cannot be used at the moment.",)
    assert "Is a directory" in report.for_operator().warnings[0]
    blocker.rmdir()
    pool.evict_all()
    assert pool.ask("s", "recall").answer == "remember one remember two"


def test_a_session_that_cannot_be_saved_stays_in_memory_and_others_are_told(
    make_pool: MakePool, tmp_path: Path
) -> None:
    """A full disk: the pool is full of sessions that must not be lost, so a new one is a store error, not a loss."""
    pool = make_pool(max_sessions=1)
    blocker = refuse_writes(tmp_path, "s")
    pool.ask("s", "remember it")

    with pytest.raises(StoreError, match="cannot be written"):
        pool.ask("other")

    assert pool.ask("s", "recall").answer == "remember it"
    assert pool.stats().sessions[SessionState.IDLE] == 1
    blocker.rmdir()


def test_the_way_down_is_walked_once_also_with_a_session_that_cannot_be_saved(
    make_pool: MakePool, tmp_path: Path
) -> None:
    """It takes the rungs' time, and who closes the pool again afterwards does not wait for them anew."""
    pool = make_pool(shutdown={"lame_duck": 0, "drain": 0, "cancel": 0.05, "close": 0.1, "kill": 0.1})
    refuse_writes(tmp_path, "s")
    pool.ask("s", "remember it")
    unsaved = pool.stats().unsaved

    pool.pool.close()
    pool.pool.close()

    rungs = [event.rung for event in pool.events if isinstance(event, RungEntered)]
    assert rungs == list(Rung)[1:]
    assert unsaved == 1


def test_a_working_directory_that_cannot_be_made_is_a_store_error(make_pool: MakePool, tmp_path: Path) -> None:
    """The slot comes back."""
    pool = make_pool(max_sessions=1)
    place = tmp_path / "sessions" / "t-acme" / "s-s"
    place.parent.mkdir(mode=0o700, parents=True)
    place.write_text("a file where a directory should be")

    with pytest.raises(StoreError):
        pool.ask("s")

    assert pool.ask("other").outcome is Outcome.ANSWERED
    eventually(lambda: pool.stats().busy == 0)
