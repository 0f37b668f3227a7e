"""What a session process asks of the ledger is booked on its own scopes, whatever it says."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any

import pytest

from agentao_gov.budget import MemoryStore, StoreSettings, TokenLedger
from agentao_gov.budget.store import Settlement
from agentao_gov.budget.types import Balance, ReservationLostError, Scope, ScopeLimit
from agentao_gov.clock import SYSTEM_CLOCK
from agentao_gov.errors import BudgetImpossibleError, StoreError
from agentao_gov.worker.owner_ledger import OwnerLedger
from agentao_gov.worker.peer import WireError
from agentao_gov.worker.wire import decode_error
from tests.governor.harness import HANG_S

ACME = ScopeLimit(Scope("tenant", "acme"), 10_000)


class Desk:
    """A desk over a ledger in memory, asked the way a wire would."""

    def __init__(self, store: MemoryStore | None = None) -> None:
        store = store or MemoryStore(SYSTEM_CLOCK, StoreSettings())
        self.ledger = TokenLedger(store, SYSTEM_CLOCK, heartbeat_s=None)
        self.desk = OwnerLedger(self.ledger, "acme", "gpt-4.1")
        self.desk.begin("ann", (ACME,))

    def ask(self, op: str, **params: Any) -> Any:
        answers: list[Any] = []
        answered = threading.Event()

        def answer(value: Any) -> None:
            answers.append(value)
            answered.set()

        self.desk.handle({"op": op, **params}, answer)
        assert answered.wait(HANG_S)
        return answers[0]

    def reserve(self, number: str = "r1", prompt: int = 1_000, output: int = 500, **more: Any) -> Any:
        return self.ask(
            "reserve",
            id=number,
            prompt_tokens=prompt,
            output_tokens_min=1,
            output_tokens_max=output,
            remaining_s=5,
            **more,
        )

    def balance(self, limit: ScopeLimit = ACME) -> Balance:
        (balance,) = self.ledger.balances((limit,))
        return balance


class FailingStore(MemoryStore):
    """A store that cannot take a post, as a full disk."""

    error: type[StoreError] = StoreError

    def settle(self, reservation_id: str, prompt: int, completion: int, estimated: int) -> Settlement:
        raise self.error("disk full")

    def charge(self, reservation_id: str, prompt: int, completion: int) -> Settlement:
        raise self.error("disk full")


@pytest.fixture
def desk() -> Desk:
    return Desk()


def test_a_call_is_reserved_sent_and_settled(desk: Desk) -> None:
    """The ordinary way; what is left is exactly what was used."""
    assert desk.reserve()["output_tokens"] == 500
    desk.ask("dispatch", id="r1")
    desk.ask("settle", id="r1", prompt_tokens=900, completion_tokens=50, estimated_tokens=0)

    assert (desk.balance().used, desk.balance().reserved) == (950, 0)
    assert (desk.desk.usage().total_tokens, desk.desk.usage().llm_calls) == (950, 1)


def test_scopes_that_a_process_names_are_not_looked_at(desk: Desk) -> None:
    """A process taken over by its tools cannot spend another tenant's tokens, nor lift its own limit."""
    other = ScopeLimit(Scope("tenant", "other"), None)

    desk.reserve(scopes=[{"kind": "tenant", "key": "other", "limit": None}], tenant="other")
    refused = desk.reserve("r2", prompt=20_000, scopes=[])

    assert desk.balance(other).reserved == 0
    assert desk.balance().reserved == 1_500
    assert isinstance(refused, WireError)
    assert isinstance(decode_error(refused.data, refused.message), BudgetImpossibleError)


@pytest.mark.parametrize("op", ["dispatch", "settle", "charge_estimate", "release", "extend"])
def test_a_reservation_of_somebody_else_is_not_touched(desk: Desk, op: str) -> None:
    """Only what this session reserved can be settled by it."""
    theirs = Desk()
    theirs.reserve("theirs")

    answer = desk.ask(op, id="theirs", prompt_tokens=0, completion_tokens=0, estimated_tokens=0, output_tokens=1)

    assert isinstance(answer, WireError)
    assert "not its own" in answer.message


def test_a_name_that_another_session_uses_is_another_reservation(desk: Desk) -> None:
    """The ledger answers a known id with the reservation it has: a process must not get at another's by its name."""
    theirs = Desk()
    theirs.ledger, theirs.desk = desk.ledger, OwnerLedger(desk.ledger, "other", "gpt-4.1")
    others = ScopeLimit(Scope("tenant", "other"), 50_000)
    theirs.desk.begin("bob", (others,))
    theirs.reserve("r1", prompt=7_000, output=500)

    desk.reserve("r1")
    desk.ask("release", id="r1")

    assert desk.balance(others).reserved == 7_500
    assert desk.balance().reserved == 0


def test_a_name_is_used_for_one_reservation_at_a_time(desk: Desk) -> None:
    """Asked for twice it is refused; after its end it is a new one, and what was settled stays as it is."""
    desk.reserve()
    twice = desk.reserve()
    desk.ask("dispatch", id="r1")
    desk.ask("settle", id="r1", prompt_tokens=900, completion_tokens=50, estimated_tokens=0)
    again = desk.ask("settle", id="r1", prompt_tokens=1, completion_tokens=0, estimated_tokens=0)
    desk.reserve()
    desk.ask("release", id="r1")

    assert isinstance(twice, WireError)
    assert isinstance(again, WireError)
    assert (desk.balance().used, desk.balance().reserved) == (950, 0)


def test_tokens_that_belong_to_no_turn_are_refused(desk: Desk) -> None:
    """Before its first turn a process has nobody's budget to spend from."""
    early = OwnerLedger(desk.ledger, "acme", "gpt-4.1")
    desk.desk = early

    assert isinstance(desk.reserve(), WireError)


@pytest.mark.parametrize("tokens", [-1, 1.5, "many", True, None, 1 << 40])
def test_amounts_that_are_none_never_reach_the_ledger(desk: Desk, tokens: Any) -> None:
    """Negative settlements would mint tokens."""
    desk.reserve()
    desk.ask("dispatch", id="r1")

    answer = desk.ask("settle", id="r1", prompt_tokens=tokens, completion_tokens=0, estimated_tokens=0)

    assert isinstance(answer, WireError)
    assert desk.balance().used == 0


@pytest.mark.parametrize("params", [{"op": "dispatch"}, {"op": "nonsense", "id": "r1"}, {}])
def test_requests_without_sense_are_answered_as_such(desk: Desk, params: Mapping[str, Any]) -> None:
    """An error goes back; nothing is raised on the reader's thread."""
    desk.reserve()
    answers: list[Any] = []

    desk.desk.handle(params, answers.append)

    assert isinstance(answers[0], WireError)


def test_what_a_dead_process_held_is_charged_or_given_back(desk: Desk) -> None:
    """Sent calls are charged whole, because nobody knows; those not sent cost nothing."""
    desk.reserve("sent", prompt=1_000, output=500)
    desk.ask("dispatch", id="sent")
    desk.reserve("not sent", prompt=2_000, output=500)

    desk.desk.abandon()

    assert (desk.balance().used, desk.balance().reserved, desk.balance().estimated) == (1_500, 0, 1_500)


def test_a_wait_of_a_dead_process_ends(desk: Desk) -> None:
    """A reservation that waits for others' tokens is called off, and holds nothing."""
    holder = Desk()
    holder.ledger, holder.desk = desk.ledger, OwnerLedger(desk.ledger, "acme", "gpt-4.1")
    holder.desk.begin("bob", (ACME,))
    holder.reserve("held", prompt=9_000, output=500)
    answers: list[Any] = []
    answered = threading.Event()

    def take(answer: Any) -> None:
        answers.append(answer)
        answered.set()

    waiting = {"op": "reserve", "id": "w", "prompt_tokens": 5_000, "output_tokens_min": 1, "output_tokens_max": 1}
    desk.desk.handle({**waiting, "remaining_s": 60}, take)

    # Until the wait is registered there is nothing to call off: called off again and again.
    while not answered.wait(0.01):
        desk.desk.abandon()

    assert isinstance(answers[0], WireError)
    assert desk.balance().reserved == 9_500


@pytest.mark.parametrize("way", ["settle", "charge_estimate", "abandon"])
@pytest.mark.parametrize(("error", "booked"), [(StoreError, True), (ReservationLostError, False)])
def test_a_post_that_the_ledger_owes_is_in_the_report_s_usage(way: str, error: type[StoreError], booked: bool) -> None:
    """It is made once the store works again; a reservation that is lost is another's, and never charged here."""
    store = FailingStore(SYSTEM_CLOCK, StoreSettings())
    store.error = error
    desk = Desk(store)
    desk.reserve(prompt=1_000, output=500)
    desk.ask("dispatch", id="r1")

    if way == "abandon":
        desk.desk.abandon()
    else:
        answer = desk.ask(way, id="r1", prompt_tokens=1_000, completion_tokens=500, estimated_tokens=0)
        assert isinstance(answer, WireError)

    assert desk.desk.usage().total_tokens == (1_500 if booked else 0)


def test_errors_cross_the_wire_as_themselves() -> None:
    """Class, message, hint and figures."""
    from agentao_gov.worker.wire import encode_error

    error = BudgetImpossibleError(
        "too much", scope="tenant:acme", limit_tokens=1, used_tokens=2, reserved_tokens=3, asked_tokens=4, hint="less"
    )

    again = decode_error(encode_error(error), "")
    store = decode_error(encode_error(StoreError("down")), "")

    assert isinstance(again, BudgetImpossibleError)
    assert (again.message, again.hint, again.asked_tokens) == ("too much", "less", 4)
    assert isinstance(store, StoreError)
