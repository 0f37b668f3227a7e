"""The pool around a turn: places, refusals, evictions, cancels, stuck and broken hosts."""

from __future__ import annotations

import dataclasses
import threading
import time
from concurrent.futures import CancelledError, Future

import pytest

from agentao_gov.clock import Deadline
from agentao_gov.config import Profile, ResolvedProfile
from agentao_gov.endings import Outcome
from agentao_gov.errors import (
    DrainingError,
    InternalError,
    ModelError,
    QueueFullError,
    QueueTimeoutError,
    SessionNotFoundError,
    SessionStuckError,
    TenantSessionLimitError,
    TurnTimeoutError,
    UserSessionLimitError,
)
from agentao_gov.governor import TurnReport
from agentao_gov.governor.report import Mode
from agentao_gov.governor.types import SessionKey
from agentao_gov.pool import PoolLimits, RungTimes, SessionState, StaleLeaseError
from agentao_gov.pool.events import LeaseLeaked, SessionStuck, TurnRefused
from agentao_gov.pool.memory import Trimmer
from tests.pool.bench import a_profile, eventually
from tests.pool.conftest import MakePool
from tests.pool.scripted import HANG_S, ScriptedHosts
from tests.support.clock import FakeClock


def test_a_session_remembers_its_turns(make_pool: MakePool) -> None:
    """The second turn runs on the agent of the first."""
    pool = make_pool()

    pool.ask("s", "remember one")
    report = pool.ask("s", "recall")

    assert report.answer == "remember one"
    assert pool.stats().openings == 1


def test_two_tenants_with_the_same_session_id_have_two_sessions(make_pool: MakePool, hosts: ScriptedHosts) -> None:
    """The tenant is part of the key, in memory and on disk."""
    pool = make_pool()

    pool.ask("s", "remember acme's", tenant="acme")
    report = pool.ask("s", "recall", tenant="globex")

    assert report.answer == ""
    assert {spec.workdir for spec in hosts.specs} == {spec.workdir for spec in hosts.specs}
    assert len({spec.workdir for spec in hosts.specs}) == 2
    assert [info.key.tenant for info in pool.pool.sessions("globex")] == ["globex"]


def test_turns_of_one_session_run_one_after_the_other_in_their_order(make_pool: MakePool) -> None:
    """Ten turns at once: the host asserts that no two overlap, the answers show the order."""
    pool = make_pool()

    futures = [pool.submit("s", f"remember {n}") for n in range(10)]
    reports = [future.result(HANG_S) for future in futures]

    assert reports[-1].answer == " ".join(f"remember {n}" for n in range(9))


def test_no_more_turns_run_at_once_than_allowed(make_pool: MakePool, hosts: ScriptedHosts) -> None:
    """`max_busy` bounds the turns of all sessions together."""
    pool = make_pool(max_busy=2)

    futures = [pool.submit(f"s{n}", f"hold g{n}") for n in range(5)]
    eventually(lambda: hosts.running.total() == 2)
    hosts.release(*(f"g{n}" for n in range(5)))
    for future in futures:
        future.result(HANG_S)

    assert hosts.running_max == 2


def test_a_full_waiting_room_refuses_with_the_figures(make_pool: MakePool, hosts: ScriptedHosts) -> None:
    """One runs, one waits, the third is refused at once and told when to come back."""
    pool = make_pool(max_busy=1, queue_limit=1)
    pool.submit("a", "hold g")
    hosts.arrive("g")
    pool.submit("b")
    eventually(lambda: pool.stats().queue_length == 1)

    with pytest.raises(QueueFullError, match="1 turns run, 1 wait") as refused:
        pool.ask("c")

    assert refused.value.retry_after_s is not None
    assert refused.value.retry_after_s >= 1
    assert [event.code for event in pool.events if isinstance(event, TurnRefused)] == ["queue_full"]


def test_a_turn_that_waits_too_long_is_refused(make_pool: MakePool, hosts: ScriptedHosts) -> None:
    """`queue_timeout` ends the wait, not the turn in front."""
    pool = make_pool(max_busy=1, queue_timeout=0.05)
    first = pool.submit("a", "hold g")
    hosts.arrive("g")

    with pytest.raises(QueueTimeoutError):
        pool.ask("b")

    hosts.release("g")
    assert first.result(HANG_S).outcome is Outcome.ANSWERED


def test_a_turns_own_deadline_ends_its_wait(make_pool: MakePool, hosts: ScriptedHosts) -> None:
    """A deadline from the entrance is kept in the queue."""
    pool = make_pool(max_busy=1)
    pool.submit("a", "hold g")
    hosts.arrive("g")

    with pytest.raises(QueueTimeoutError):
        pool.ask("b", deadline=Deadline.after(0.05))


def test_a_full_pool_evicts_the_longest_idle_and_it_goes_on_from_disk(
    make_pool: MakePool, hosts: ScriptedHosts
) -> None:
    """Two places, three sessions: the first leaves, and remembers when it is back."""
    pool = make_pool(max_sessions=2)
    for name in ("a", "b", "c"):
        pool.ask(name, f"remember {name}")

    report = pool.ask("a", "recall")

    assert report.answer == "remember a"
    assert hosts.closed[SessionKey("acme", "a")] == 1
    assert pool.stats().evictions["lru"] == 2
    assert pool.stats().rehydrations == 1
    assert pool.stats().ghost_hits == 1


def test_an_idle_session_leaves_memory_after_its_time(make_pool: MakePool) -> None:
    """The idle time-out counts from the end of the turn, and the session is hibernated, not lost."""
    pool = make_pool(session_ttl=0.05)
    pool.ask("s", "remember it")

    eventually(lambda: pool.stats().evictions["ttl"] == 1)
    eventually(lambda: pool.stats().resident == 0)

    info = pool.pool.session(SessionKey("acme", "s"))
    assert info is not None
    assert info.state is SessionState.HIBERNATED
    assert info.usage.turns == 1
    assert pool.stats().sessions[SessionState.HIBERNATED] == 1
    assert pool.ask("s", "recall").answer == "remember it"


def test_a_tenant_at_its_cap_gives_up_its_own_longest_idle_session(make_pool: MakePool, hosts: ScriptedHosts) -> None:
    """Another tenant's idle session stays, although it has been idle for longer."""
    pool = make_pool(tenants={"acme": {"max_sessions": 2}, "default": {}})
    pool.ask("other", tenant="globex")
    pool.ask("a")
    pool.ask("b")

    pool.ask("c")

    assert hosts.closed == {SessionKey("acme", "a"): 1}


def test_a_tenant_whose_sessions_are_all_busy_is_refused(make_pool: MakePool, hosts: ScriptedHosts) -> None:
    """At the cap with nothing to give up: refused at once, while another tenant is served."""
    pool = make_pool(tenants={"acme": {"max_sessions": 1}, "default": {}})
    pool.submit("a", "hold g")
    hosts.arrive("g")

    with pytest.raises(TenantSessionLimitError, match="1 sessions"):
        pool.ask("b")

    assert pool.ask("b", tenant="globex").outcome is Outcome.ANSWERED


def test_a_user_whose_sessions_are_all_busy_is_refused(make_pool: MakePool, hosts: ScriptedHosts) -> None:
    """The cap per user holds below the tenant's."""
    pool = make_pool(tenants={"acme": {"max_sessions": 9, "max_sessions_per_user": 1}})
    pool.submit("a", "hold g", user="ann")
    hosts.arrive("g")

    with pytest.raises(UserSessionLimitError):
        pool.ask("b", user="ann")

    assert pool.ask("b", user="bob").outcome is Outcome.ANSWERED


def test_a_place_is_free_again_when_the_answer_is_there(make_pool: MakePool) -> None:
    """Whoever has the answer may open the next session at once, also at the cap."""
    pool = make_pool(tenants={"acme": {"max_sessions": 1}})

    for n in range(20):
        assert pool.ask(f"s{n}").outcome is Outcome.ANSWERED


def test_a_close_that_hangs_keeps_only_its_own_slot(make_pool: MakePool, hosts: ScriptedHosts) -> None:
    """While one close hangs, 200 turns of other sessions open, run and close; a turn for its own key waits."""
    pool = make_pool(max_sessions=4)
    hosts.hold("close stubborn")
    pool.ask("stubborn", "remember me")
    limits = pool.pool.limits
    pool.pool.resize(PoolLimits(max_sessions=0))
    hosts.arrive("close stubborn")
    pool.pool.resize(limits)
    own = pool.submit("stubborn", "recall")

    worst_s = 0.0
    for n in range(200):
        began = time.perf_counter()
        pool.ask(f"s{n % 8}")
        worst_s = max(worst_s, time.perf_counter() - began)

    assert not own.done()
    assert worst_s < 2, "somebody waited for a close that is not theirs"
    hosts.release("close stubborn")
    assert own.result(HANG_S).answer == "remember me"


def test_a_close_that_raises_frees_its_slot(make_pool: MakePool, hosts: ScriptedHosts) -> None:
    """The processes are killed, the failure is counted, the next session gets the place."""
    pool = make_pool(max_sessions=1)
    hosts.close_error = RuntimeError("boom")
    pool.ask("a")

    pool.ask("b")

    assert hosts.killed[SessionKey("acme", "a")] == 1
    assert pool.stats().close_failures == 1


def test_an_opening_that_fails_returns_its_slot_and_its_reason(make_pool: MakePool, hosts: ScriptedHosts) -> None:
    """All who wait for the session share the failure; the next try opens anew."""
    pool = make_pool(max_sessions=1, tenants={"acme": {"max_sessions": 1}})
    hosts.open_error = ModelError("no model here")
    hosts.hold("open a")
    futures = [pool.submit("a"), pool.submit("a")]
    hosts.arrive("open a")
    hosts.release("open a")

    for future in futures:
        with pytest.raises(ModelError, match="no model here"):
            future.result(HANG_S)

    hosts.open_error = None
    assert pool.ask("b").outcome is Outcome.ANSWERED
    assert pool.stats().opening_failures == 1


def test_an_opening_that_breaks_is_an_internal_error(make_pool: MakePool, hosts: ScriptedHosts) -> None:
    """What is no GovError is wrapped, with its type and text."""
    pool = make_pool()
    hosts.open_error = ZeroDivisionError("oops")

    with pytest.raises(InternalError, match="ZeroDivisionError: oops"):
        pool.ask("a")


def test_turns_for_one_new_session_open_it_once(make_pool: MakePool, hosts: ScriptedHosts) -> None:
    """Single flight: eight turns at once, one agent."""
    pool = make_pool()
    hosts.hold("open s")
    futures = [pool.submit("s") for _ in range(8)]
    hosts.arrive("open s")

    hosts.release("open s")
    for future in futures:
        future.result(HANG_S)

    assert hosts.opened[SessionKey("acme", "s")] == 1


def test_few_sessions_open_at_once(make_pool: MakePool, hosts: ScriptedHosts) -> None:
    """`max_opening` bounds the openings; the rest wait for their turn to open."""
    pool = make_pool(max_opening=2)
    hosts.hold(*(f"open s{n}" for n in range(4)))

    futures = [pool.submit(f"s{n}") for n in range(4)]
    hosts.arrive("open s1")

    assert pool.stats().sessions[SessionState.OPENING] == 2
    hosts.release(*(f"open s{n}" for n in range(4)))
    for future in futures:
        future.result(HANG_S)


def test_a_hung_opening_leaves_the_others_alone(make_pool: MakePool, hosts: ScriptedHosts) -> None:
    """Its waiters are refused, its place among the openings is free, and what comes of it late is closed."""
    pool = make_pool(max_opening=1)
    limits = pool.pool.limits
    pool.pool.resize(PoolLimits(max_opening=1, open_timeout_s=0.05))
    hosts.hold("open hung")

    with pytest.raises(TurnTimeoutError, match="limit for openings"):
        pool.ask("hung")
    pool.pool.resize(limits)
    assert pool.ask("other").outcome is Outcome.ANSWERED
    hosts.release("open hung")

    eventually(lambda: hosts.closed[SessionKey("acme", "hung")] == 1)
    eventually(lambda: pool.stats().sessions[SessionState.STUCK] == 0)


def test_an_opening_may_take_as_long_as_its_servers_may(make_pool: MakePool, hosts: ScriptedHosts) -> None:
    """Where the limit for openings is shorter than a server's `startup_timeout` and its end, that is what counts."""
    pool = make_pool()
    pool.pool.resize(PoolLimits(max_opening=2, open_timeout_s=0.05))
    hosts.hold("open served", "open hung")
    server = {"command": "slow-server", "startup_timeout": "60s"}
    profile = Profile.model_validate({"name": "served", "mcp": {"servers": {"slow": server}}})
    resolved = ResolvedProfile(profile=profile, sources={}, findings=(), path=None)

    served = pool.submit("served", profile=resolved)
    hosts.arrive("open served")
    with pytest.raises(TurnTimeoutError, match="limit for openings"):
        pool.ask("hung")  # it came later, and is over its limit already
    hosts.release("open served", "open hung")

    assert served.result(HANG_S).outcome is Outcome.ANSWERED
    assert 60 < hosts.open_s[SessionKey("acme", "served")] <= 65


def test_a_slow_opening_gives_its_place_to_another_and_is_used_when_it_is_there(
    make_pool: MakePool, hosts: ScriptedHosts
) -> None:
    """It waits for something and does not work; its own turn goes on waiting."""
    pool = make_pool(max_opening=1)
    pool.pool.resize(dataclasses.replace(pool.pool.limits, open_patience_s=0.05))
    hosts.hold("open slow")

    slow = pool.submit("slow")
    hosts.arrive("open slow")
    other = pool.ask("other")
    hosts.release("open slow")

    assert other.outcome is Outcome.ANSWERED
    assert slow.result(HANG_S).outcome is Outcome.ANSWERED


@pytest.mark.parametrize(("mode", "resident"), [("in-process", 1), ("fresh", 0)])
def test_an_opening_longer_than_its_turn_may_take_serves_the_next_one(
    make_pool: MakePool, hosts: ScriptedHosts, mode: Mode, resident: int
) -> None:
    """The turn's time is up; the agent comes later. A fresh one was for that turn alone and leaves."""
    pool = make_pool()
    pool.mode, pool.profile = mode, a_profile(turn_timeout="50ms", tool_timeout="10ms")
    hosts.hold("open late")

    with pytest.raises(TurnTimeoutError, match="was not ready"):
        pool.ask("late")
    hosts.release("open late")
    eventually(lambda: pool.stats().sessions[SessionState.OPENING] == 0)

    eventually(lambda: pool.stats().resident == resident)
    assert pool.ask("late").outcome is Outcome.ANSWERED


def test_a_waiting_turn_can_be_cancelled_by_its_future(make_pool: MakePool, hosts: ScriptedHosts) -> None:
    """It leaves the queue and leaves nothing behind."""
    pool = make_pool(max_busy=1)
    first = pool.submit("a", "hold g")
    hosts.arrive("g")
    second = pool.submit("b")
    third = pool.submit("c")

    assert second.cancel()

    assert pool.stats().queue_length == 1
    hosts.release("g")
    first.result(HANG_S)
    assert third.result(HANG_S).outcome is Outcome.ANSWERED
    with pytest.raises(CancelledError):
        second.result(0)


def test_a_waiting_turn_can_be_cancelled_by_its_session(make_pool: MakePool, hosts: ScriptedHosts) -> None:
    """Then it has a report, like every turn."""
    pool = make_pool(max_busy=1)
    pool.submit("a", "hold g")
    hosts.arrive("g")
    waiting = pool.submit("b")

    assert pool.pool.cancel(SessionKey("acme", "b"))

    report = waiting.result(HANG_S)
    assert report.outcome is Outcome.CANCELLED
    assert report.usage.total_tokens == 0


def test_a_running_turn_can_be_cancelled(make_pool: MakePool, hosts: ScriptedHosts) -> None:
    """The cancel reaches the host; another tenant's session of that name is another's."""
    pool = make_pool()
    running = pool.submit("s", "hold g")
    hosts.arrive("g")

    assert not pool.pool.cancel(SessionKey("globex", "s"))
    assert pool.pool.cancel(SessionKey("acme", "s"))

    assert running.result(HANG_S).outcome is Outcome.CANCELLED
    assert pool.ask("s").outcome is Outcome.ANSWERED


def test_a_turn_cancelled_in_the_moment_of_its_grant_gives_its_place_back(make_pool: MakePool) -> None:
    """Two hundred futures cancelled while they are being granted: the pool is whole afterwards."""
    pool = make_pool(max_busy=1, queue_limit=400)
    cancelled: list[Future[TurnReport]] = []

    for n in range(200):
        future = pool.submit(f"s{n % 3}")
        threading.Thread(target=future.cancel, daemon=True).start()
        cancelled.append(future)
    for future in cancelled:
        eventually(future.done)

    assert pool.ask("after").outcome is Outcome.ANSWERED
    eventually(lambda: pool.stats().busy == 0)
    assert pool.stats().queue_length == 0


def test_a_stuck_turn_quarantines_its_session_and_keeps_its_slot(make_pool: MakePool, hosts: ScriptedHosts) -> None:
    """Its processes are killed, its session refuses, the others go on; when it comes back its slot is free."""
    pool = make_pool(max_sessions=2)

    report = pool.ask("s", "stick")

    assert report.outcome is Outcome.STUCK
    assert pool.stats().sessions[SessionState.STUCK] == 1
    assert [event for event in pool.events if isinstance(event, SessionStuck)]
    hosts.arrive("kill s")
    with pytest.raises(SessionStuckError):
        pool.ask("s")
    assert pool.ask("other").outcome is Outcome.ANSWERED
    assert pool.stats().abandoned == 1


def test_a_stuck_session_that_comes_back_frees_its_slot(make_pool: MakePool, hosts: ScriptedHosts) -> None:
    """The quarantine ends with a close, and the session goes on from its last saved turn."""
    pool = make_pool()
    pool.ask("s", "remember it")
    lease = pool.pool.lease(pool.order("s")).result(HANG_S)
    session = lease.host
    lease.release()
    pool.ask("s", "stick")

    session.is_stuck = False  # type: ignore[attr-defined]

    eventually(lambda: pool.stats().sessions[SessionState.STUCK] == 0)
    assert pool.ask("s", "recall").answer == "remember it"


def test_a_host_that_never_returns_is_abandoned_with_a_report(
    make_pool: MakePool, hosts: ScriptedHosts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Past limit, grace and margin the caller is answered; the late return is noticed and cleaned up."""
    monkeypatch.setattr("agentao_gov.pool.pool._LEAK_MARGIN_S", 0.05)
    pool = make_pool(queue_timeout=0.01)
    pool.profile = a_profile(turn_timeout=0.01, cancel_grace=0.01, tool_timeout=0.01)

    report = pool.ask("s", "ignore g")

    assert report.outcome is Outcome.STUCK
    leaks = [event for event in pool.events if isinstance(event, LeaseLeaked)]
    assert "test_a_host_that_never_returns" in leaks[0].borrower
    assert "wait(HANG_S)" in leaks[0].worker
    hosts.release("g")
    eventually(lambda: hosts.closed[SessionKey("acme", "s")] == 1)
    assert [event.returned for event in pool.events if isinstance(event, LeaseLeaked)] == [False, True]


def test_a_broken_host_is_replaced_and_the_session_goes_on_from_its_last_turn(
    make_pool: MakePool, hosts: ScriptedHosts
) -> None:
    """After an internal error the agent is not trusted again."""
    pool = make_pool()
    pool.ask("s", "remember it")

    assert pool.ask("s", "crash").outcome is Outcome.INTERNAL_ERROR

    assert pool.ask("s", "recall").answer == "remember it"
    assert hosts.opened[SessionKey("acme", "s")] == 2


def test_a_host_that_raises_answers_its_caller_and_frees_its_place(make_pool: MakePool) -> None:
    """The error reaches the caller as it is."""
    pool = make_pool(max_busy=1)

    with pytest.raises(ModelError, match="scripted"):
        pool.ask("s", "raise")

    assert pool.ask("s").outcome is Outcome.ANSWERED


def test_a_deleted_session_is_gone_from_memory_and_disk(make_pool: MakePool, hosts: ScriptedHosts) -> None:
    """Its directory is removed with its working directory; a later turn begins anew."""
    pool = make_pool()
    key = SessionKey("acme", "s")
    pool.ask("s", "remember it")
    workdir = hosts.specs[0].workdir
    (workdir / "notes.txt").write_text("secret")

    assert pool.pool.delete(key)

    assert not workdir.exists()
    assert pool.pool.session(key) is None
    assert pool.pool.sessions("acme") == []
    assert not pool.pool.delete(key)
    assert pool.ask("s", "recall").answer == ""


def test_deleting_a_busy_session_cancels_its_turn_and_refuses_those_behind(
    make_pool: MakePool, hosts: ScriptedHosts
) -> None:
    """What the cancelled turn leaves is not written into a new session of the same name."""
    pool = make_pool()
    running = pool.submit("s", "hold g")
    hosts.arrive("g")
    behind = pool.submit("s", "remember behind")

    assert pool.pool.delete(SessionKey("acme", "s"))

    assert running.result(HANG_S).outcome is Outcome.CANCELLED
    with pytest.raises(SessionNotFoundError):
        behind.result(HANG_S)
    assert pool.ask("s", "recall").answer == ""


def test_another_profile_gets_another_agent_with_the_same_conversation(
    make_pool: MakePool, hosts: ScriptedHosts
) -> None:
    """Limits and tools of an agent are its profile's: a session continued under another one is reopened."""
    pool = make_pool()
    pool.ask("s", "remember it")

    report = pool.ask("s", "recall", profile=a_profile("other"))

    assert (report.answer, report.profile) == ("remember it", "other")
    assert [spec.profile.profile.name for spec in hosts.specs] == ["test", "other"]


def test_memory_pressure_lets_idle_sessions_go_and_stops(make_pool: MakePool) -> None:
    """Above the first threshold a batch goes; between the two it goes on; below the second it stops."""
    pool = make_pool(capacity={"memory": "1000MiB"})
    for n in range(20):
        pool.ask(f"s{n}")
    mib = 1024 * 1024

    pool.pool.memory_used(850 * mib)
    assert pool.stats().evictions["memory"] == 0
    pool.pool.memory_used(950 * mib)
    eventually(lambda: pool.stats().resident == 12)
    pool.pool.memory_used(850 * mib)
    eventually(lambda: pool.stats().resident == 4)
    pool.pool.memory_used(700 * mib)

    assert pool.stats().evictions["memory"] == 16
    assert pool.stats().resident == 4


def test_memory_is_given_back_but_not_all_the_time() -> None:
    """A collection stops the interpreter: once, and again after a while."""
    clock = FakeClock()
    trim = Trimmer(clock.monotonic)

    assert [trim(), trim()] == [True, False]

    clock.advance(15)
    assert trim()


def test_a_smaller_pool_lets_surplus_sessions_go_and_keeps_the_busy(make_pool: MakePool, hosts: ScriptedHosts) -> None:
    """A resize takes effect at once on idle sessions, and after their turn on busy ones."""
    pool = make_pool()
    for n in range(5):
        pool.ask(f"s{n}")
    busy = pool.submit("busy", "hold g")
    hosts.arrive("g")

    pool.pool.resize(PoolLimits(max_sessions=2))

    eventually(lambda: pool.stats().resident == 2)
    hosts.release("g")
    assert busy.result(HANG_S).outcome is Outcome.ANSWERED


def test_draining_refuses_waiters_at_once_and_lets_turns_end(make_pool: MakePool, hosts: ScriptedHosts) -> None:
    """Idle sessions hibernate, the turn in flight finishes, new ones are refused."""
    pool = make_pool(max_busy=1)
    pool.ask("idle", "remember it")
    running = pool.submit("a", "hold g")
    hosts.arrive("g")
    waiting = pool.submit("b")

    times = RungTimes(lame_duck_s=0.0, drain_s=HANG_S, budget_s=3 * HANG_S)
    down = threading.Thread(target=pool.pool.close, args=(times,))
    down.start()
    eventually(lambda: pool.stats().rung == "draining")

    for refused in (waiting, pool.submit("c")):
        with pytest.raises(DrainingError):
            refused.result(HANG_S)
    eventually(lambda: pool.stats().sessions[SessionState.IDLE] == 0)
    hosts.release("g")
    assert running.result(HANG_S).outcome is Outcome.ANSWERED
    down.join(HANG_S)
    assert (pool.stats().resident, pool.stats().rung) == (0, "gone")


def test_closing_cancels_what_runs_and_shuts_the_hosts_down(make_pool: MakePool, hosts: ScriptedHosts) -> None:
    """The whole way down in one call: the report says `shutdown`."""
    pool = make_pool()
    running = pool.submit("s", "hold g")
    hosts.arrive("g")

    pool.pool.close()

    assert running.result(HANG_S).outcome is Outcome.SHUTDOWN
    assert hosts.shut_down
    assert hosts.alive == set()
    assert pool.stats().rung == "gone"


def test_closing_kills_what_does_not_close(make_pool: MakePool, hosts: ScriptedHosts) -> None:
    """A close that hangs costs the rungs' time and no more."""
    pool = make_pool(shutdown={"lame_duck": 0, "drain": 0, "cancel": 0.05, "close": 0.1, "kill": 0.1})
    hosts.hold("close s")
    pool.ask("s")

    pool.pool.close()

    hosts.arrive("kill s")


def test_a_lease_is_given_back_once(make_pool: MakePool) -> None:
    """A second release is an error, and frees nobody else's turn."""
    pool = make_pool()
    lease = pool.pool.lease(pool.order("s")).result(HANG_S)
    lease.release()
    other = pool.pool.lease(pool.order("s")).result(HANG_S)

    with pytest.raises(StaleLeaseError):
        lease.release()

    assert pool.stats().busy == 1
    other.release()
    assert pool.stats().busy == 0


def test_a_leaked_lease_is_reported_when_late_and_when_back(make_pool: MakePool) -> None:
    """With the stack of whoever took it."""
    pool = make_pool()
    lease = pool.pool.lease(pool.order("s")).result(HANG_S)
    core = pool.pool._engine.core
    core.leases[lease.id].leak_at = 0.0

    pool.pool._ticker.look()
    lease.release()

    leaks = [event for event in pool.events if isinstance(event, LeaseLeaked)]
    assert [leak.returned for leak in leaks] == [False, True]
    assert "test_a_leaked_lease" in leaks[0].borrower


def test_an_observer_that_raises_disturbs_nobody(make_pool: MakePool) -> None:
    """Its failure is logged; turn and pool go on."""
    pool = make_pool()

    def broken(_: object) -> None:
        raise RuntimeError("observer")

    pool.pool.subscribe(broken)

    assert pool.ask("s").outcome is Outcome.ANSWERED


def test_sessions_are_listed_in_memory_and_hibernated(make_pool: MakePool, hosts: ScriptedHosts) -> None:
    """A tenant sees its own, with state, profile, usage and the turn in flight."""
    pool = make_pool()
    pool.ask("old")
    pool.evict_all()
    pool.ask("idle")
    running = pool.submit("busy", "hold g", turn_id="t-1")
    hosts.arrive("g")

    infos = {info.key.session: info for info in pool.pool.sessions("acme")}

    assert {name: info.state.value for name, info in infos.items()} == {
        "old": "hibernated",
        "idle": "idle",
        "busy": "busy",
    }
    assert infos["busy"].turn_id == "t-1"
    assert infos["idle"].usage.total_tokens == 15
    assert pool.pool.sessions("globex") == []
    assert len(pool.pool.sessions()) == 2
    hosts.release("g")
    running.result(HANG_S)


def test_a_fresh_session_lives_for_one_turn_and_goes_on_from_disk(make_pool: MakePool, hosts: ScriptedHosts) -> None:
    """Each turn has a new agent in a new temporary directory; the conversation is the archive's."""
    pool = make_pool(mode="fresh")

    pool.ask("s", "remember it")
    report = pool.ask("s", "recall")

    assert report.answer == "remember it"
    assert hosts.opened[SessionKey("acme", "s")] == 2
    eventually(lambda: pool.stats().resident == 0)
    assert [spec.workdir.exists() for spec in hosts.specs] == [False, False]
    assert len({spec.workdir for spec in hosts.specs}) == 2


def test_a_session_that_is_not_kept_leaves_nothing_behind(make_pool: MakePool, hosts: ScriptedHosts) -> None:
    """A request without a session id."""
    pool = make_pool(mode="fresh")

    pool.ask("once", keep=False)

    eventually(lambda: pool.stats().resident == 0)
    assert pool.pool.sessions("acme") == []
    assert not hosts.specs[0].workdir.exists()


def test_without_hibernation_an_evicted_session_begins_anew(make_pool: MakePool) -> None:
    """`hibernate = false` is a choice, and nothing is on disk."""
    pool = make_pool(hibernate=False)
    pool.ask("s", "remember it")

    pool.evict_all()

    assert pool.ask("s", "recall").answer == ""
    assert pool.archive.count() == 0


def test_working_directories_are_private(make_pool: MakePool, hosts: ScriptedHosts) -> None:
    """0700 for directories, 0600 for files."""
    pool = make_pool()
    pool.ask("s")

    workdir = hosts.specs[0].workdir
    modes = {path.stat().st_mode & 0o777 for path in (workdir, workdir.parent, workdir.parent.parent)}
    files = {path.stat().st_mode & 0o777 for path in workdir.parent.iterdir() if path.is_file()}

    assert modes == {0o700}
    assert files == {0o600}
