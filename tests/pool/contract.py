"""What every hosting mode promises: one suite, run over each of them by `test_host_modes.py`.

A mode is a way to make a `PoolBench`; a class that inherits `HostingContract` and has the fixture `pool` is held to
all of it. Messages script the simulated model (`say`), so that what comes back shows what was sent.
"""

from __future__ import annotations

import json
from typing import Any

import pytest

from agentao_gov.endings import Outcome
from agentao_gov.errors import GovError
from agentao_gov.governor.types import SessionKey, TextEvent, TurnEvent
from agentao_gov.pool import SessionState
from agentao_gov.simulator import Simulator
from tests.pool.bench import PoolBench, a_model, a_profile, eventually

#: A real agent on a busy machine: a hang guard, not an expectation.
TURN_S = 18.0

KEY = SessionKey("acme", "s")


def say(prompt: str = "", /, **directive: Any) -> str:
    """A message that scripts the simulated model."""
    return f"{prompt}\n@sim {json.dumps(directive)}"


def ask(pool: PoolBench, session: str, message: str = "hello", **fields: Any) -> Any:
    """One turn's report."""
    return pool.submit(session, message, **fields).result(TURN_S)


def message_counts(simulator: Simulator) -> list[int]:
    """How many messages each request carried: what a session remembers shows in what it sends."""
    return [request.messages for request in simulator.truth().requests]


class HostingContract:
    """The promises."""

    def test_a_turn_is_answered_with_its_usage(self, pool: PoolBench, simulator: Simulator) -> None:
        """The report carries ids, mode and exactly the tokens that the model counted."""
        report = ask(pool, "s", say("hello", text="Four."), id=7)

        assert (report.outcome, report.answer) == (Outcome.ANSWERED, "Four.")
        assert (report.tenant, report.session, report.user, report.id) == ("acme", "s", "ann", 7)
        assert report.mode == pool.mode
        assert report.usage.total_tokens == simulator.truth().total.total_tokens

    def test_text_arrives_while_the_turn_runs(self, pool: PoolBench) -> None:
        """The sink hears the answer in pieces, in order, before the report."""
        heard: list[TurnEvent] = []

        future = pool.pool.submit(pool.order("s", say("hello", text="one two three four")), heard.append)

        assert future.result(TURN_S).answer == "one two three four"
        assert "".join(event.delta for event in heard if isinstance(event, TextEvent)) == "one two three four"

    def test_a_session_keeps_its_conversation(self, pool: PoolBench, simulator: Simulator) -> None:
        """The second turn sends the first along."""
        ask(pool, "s", "one")

        ask(pool, "s", "two")

        first, second = message_counts(simulator)
        assert second == first + 2

    def test_a_session_goes_on_after_it_left_memory(self, pool: PoolBench, simulator: Simulator) -> None:
        """Evicted, and back with its conversation and its usage."""
        ask(pool, "s", "one")
        pool.evict_all()

        ask(pool, "s", "two")

        first, second = message_counts(simulator)
        assert second == first + 2
        info = pool.pool.session(KEY)
        assert info is not None
        assert info.usage.turns == 2
        assert info.usage.total_tokens == simulator.truth().total.total_tokens

    def test_a_session_that_rested_goes_on(self, pool: PoolBench, simulator: Simulator) -> None:
        """Its conversation is the same, in the next request as in the archive, however often it rests."""
        if pool.mode == "fresh":
            pytest.skip("a fresh agent is gone after its turn")
        ask(pool, "s", say("one " + "word " * 4_000, text="ok"))
        before = pool.host("s").snapshot()

        pool.host("s").rest()
        pool.host("s").rest()
        resting = pool.host("s").snapshot()
        report = ask(pool, "s", say("two", text="Four."))

        first, second = message_counts(simulator)
        assert resting == before
        assert second == first + 2
        assert (report.outcome, report.answer) == (Outcome.ANSWERED, "Four.")
        assert report.usage.total_tokens == simulator.truth().requests[-1].reported_tokens
        pool.evict_all()
        assert ask(pool, "s", "three").outcome is Outcome.ANSWERED
        assert message_counts(simulator)[2] == second + 2

    def test_two_tenants_share_nothing(self, pool: PoolBench, simulator: Simulator) -> None:
        """The same session id, another conversation."""
        ask(pool, "s", "one", tenant="globex")

        ask(pool, "s", "two", tenant="acme")

        first, second = message_counts(simulator)
        assert second == first

    def test_turns_of_one_session_run_one_after_the_other(self, pool: PoolBench, simulator: Simulator) -> None:
        """Three turns at once: each sends one more exchange than the last."""
        futures = [pool.submit("s", f"turn {n}") for n in range(3)]

        assert [future.result(TURN_S).outcome for future in futures] == [Outcome.ANSWERED] * 3

        first, second, third = message_counts(simulator)
        assert (second, third) == (first + 2, first + 4)

    def test_a_turn_ends_at_its_time_limit_and_the_session_goes_on(self, pool: PoolBench) -> None:
        """The model hangs before its first byte; the report is there within limit and grace."""
        profile = a_profile(turn_timeout=0.3, cancel_grace=2, tool_timeout=0.2)

        report = ask(pool, "s", say("hang", fault="hang"), profile=profile)

        assert report.outcome is Outcome.TURN_TIMEOUT
        assert ask(pool, "s").outcome is Outcome.ANSWERED

    @pytest.mark.parametrize(("reason", "outcome"), [("cancelled", "cancelled"), ("shutdown", "shutdown")])
    def test_a_turn_can_be_cancelled_and_the_session_goes_on(
        self, pool: PoolBench, simulator: Simulator, reason: str, outcome: str
    ) -> None:
        """From another thread, while the model thinks; the reason decides the outcome."""
        future = pool.submit("s", say("hang", fault="hang"))
        simulator.wait_for(calls=1)

        assert pool.pool.cancel(KEY, reason)

        assert future.result(TURN_S).outcome == outcome
        assert ask(pool, "s").outcome is Outcome.ANSWERED

    def test_a_cancel_in_the_first_moment_is_not_lost(self, pool: PoolBench) -> None:
        """Between the grant and the agent's first step there is no turn to be cancelled yet."""
        future = pool.submit("s", say("hang", fault="hang"))

        eventually(lambda: pool.pool.cancel(KEY))

        assert future.result(TURN_S).outcome is Outcome.CANCELLED

    def test_a_model_that_fails_is_reported_and_the_session_goes_on(self, pool: PoolBench) -> None:
        """The provider's refusal is an outcome, not an exception."""
        report = ask(pool, "s", say("fail", fault="400"))

        assert report.outcome is Outcome.MODEL_ERROR
        assert ask(pool, "s").outcome is Outcome.ANSWERED

    def test_a_deleted_session_begins_anew(self, pool: PoolBench, simulator: Simulator) -> None:
        """Agent, archive and working directory are gone."""
        ask(pool, "s", "one")

        assert pool.pool.delete(KEY)

        assert pool.pool.session(KEY) is None
        ask(pool, "s", "two")
        first, second = message_counts(simulator)
        assert second == first

    def test_sessions_work_in_private_directories(self, pool: PoolBench) -> None:
        """Everything below the state directory is closed to others."""
        ask(pool, "a")
        ask(pool, "b")

        state = pool.archive.root.parent
        directories = {path.stat().st_mode & 0o777 for path in state.rglob("*") if path.is_dir()}
        files = {path.stat().st_mode & 0o777 for path in state.rglob("*") if path.is_file()}

        assert directories == {0o700}
        assert files == {0o600}

    def test_an_order_that_cannot_be_hosted_is_an_error_and_frees_its_place(self, pool: PoolBench) -> None:
        """A state directory with a file where the session's own should be."""
        place = pool.archive.root / "t-acme" / "s-blocked"
        place.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        place.write_text("")

        with pytest.raises(GovError):
            ask(pool, "blocked")

        assert ask(pool, "s").outcome is Outcome.ANSWERED

    def test_closing_the_pool_ends_turns_and_leaves_nothing_in_memory(
        self, pool: PoolBench, simulator: Simulator
    ) -> None:
        """A turn in flight is told why; nothing is resident afterwards."""
        future = pool.submit("s", say("hang", fault="hang"))
        simulator.wait_for(calls=1)

        pool.close()

        assert future.result(TURN_S).outcome is Outcome.SHUTDOWN
        stats = pool.stats()
        assert stats.resident == 0
        assert stats.sessions[SessionState.STUCK] == 0


__all__ = ["HostingContract", "a_model"]
