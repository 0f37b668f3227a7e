"""What every store promises: one suite over memory, SQLite and Redis."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from agentao_gov.budget import (
    Balance,
    Crossing,
    MemoryStore,
    Reservation,
    ReservationLostError,
    ReservationState,
    Scope,
    Store,
    StoreSettings,
)
from agentao_gov.budget.reservation import Price
from agentao_gov.budget.store import Refused, Waiting
from tests.budget.calls import PLENTY, balance, call, idle, scopes
from tests.budget.stores import OpenStore
from tests.support.clock import FakeClock


def granted(answer: Reservation | Refused | Waiting) -> Reservation:
    assert isinstance(answer, Reservation), answer
    return answer


def test_a_reservation_is_held_in_every_scope(store: Store) -> None:
    """Prompt and granted output count against tenant, user, session and turn at once."""
    limits = scopes()

    held = granted(store.reserve(call("c-1", limits)))

    assert (held.prompt_tokens, held.output_tokens) == (100, 100)
    assert [(b.used, b.reserved) for b in store.balances(limits)] == [(0, 200)] * 4


def test_settling_replaces_the_reservation_by_what_was_used(store: Store) -> None:
    """Nothing stays held, and exactly the usage counts."""
    limits = scopes()
    store.reserve(call("c-1", limits))
    store.dispatch("c-1")

    done = store.settle("c-1", 80, 20, 0)

    assert done.posted
    assert [(b.used, b.reserved, b.estimated) for b in store.balances(limits)] == [(100, 0, 0)] * 4


def test_the_output_shrinks_to_what_remains(store: Store) -> None:
    """A budget can be used to its last tokens."""
    limits = scopes(session=160)

    held = granted(store.reserve(call("c-1", limits)))

    assert held.output_tokens == 60


def test_less_than_the_least_output_is_exhausted_when_nothing_is_held(store: Store) -> None:
    """Nobody could give anything back, so waiting would be for the next window."""
    limits = scopes(session=209)
    store.reserve(call("c-1", limits))
    store.settle("c-1", 100, 0, 0)

    answer = store.reserve(call("c-2", limits, output=(10, 50)))

    assert isinstance(answer, Refused)
    assert (answer.reason, str(answer.scope)) == ("exhausted", "session:acme/s-1")
    assert (answer.limit, answer.used, answer.reserved, answer.asked) == (209, 100, 0, 110)


def test_a_call_larger_than_the_budget_is_impossible(store: Store) -> None:
    """It is told so at once, whatever else is held."""
    limits = scopes(user=105)

    answer = store.reserve(call("c-1", limits))

    assert isinstance(answer, Refused)
    assert (answer.reason, answer.scope.kind, answer.retry_after_s) == ("impossible", "user", None)


def test_a_refusal_changes_no_balance(store: Store) -> None:
    """A denied call leaves no trace."""
    limits = scopes(user=105)

    store.reserve(call("c-1", limits))

    assert [(b.used, b.reserved) for b in store.balances(limits)] == [(0, 0)] * 4
    assert store.all_balances("all") == ()
    assert store.verify().balances == 0


def test_a_refusal_forgets_nothing_that_a_neighbour_spent(open_store: OpenStore) -> None:
    """The first thing an opening does may be to refuse: the balance it goes by is everyone's."""
    here, there = open_store(), open_store()
    limits = scopes(turn=300)
    there.reserve(call("c-1", limits))
    there.charge("c-1", 195, 0)

    refused = here.reserve(call("c-2", limits, prompt=246))

    assert isinstance(refused, Refused)
    assert [(b.used, b.reserved) for b in here.balances(limits)] == [(195, 0)] * 4
    assert here.verify().ok


def test_the_same_id_is_the_same_reservation(store: Store) -> None:
    """A repeated request holds nothing twice."""
    limits = scopes()
    first = store.reserve(call("c-1", limits))

    again = store.reserve(call("c-1", limits))

    assert again == first
    assert balance(store, limits).reserved == 200


def test_the_same_id_is_found_when_the_budget_is_used_up(store: Store) -> None:
    """A repeated request is not refused because of itself."""
    limits = scopes(session=200)
    first = store.reserve(call("c-1", limits))

    again = store.reserve(call("c-1", limits))

    assert again == first


def test_settling_twice_posts_once(store: Store) -> None:
    """A replayed settlement is harmless."""
    limits = scopes()
    store.reserve(call("c-1", limits))
    store.settle("c-1", 80, 20, 0)

    done = store.settle("c-1", 80, 20, 0)

    assert not done.posted
    assert balance(store, limits).used == 100


def test_releasing_gives_everything_back(store: Store) -> None:
    """A call that was not sent costs nothing, and again is harmless."""
    limits = scopes()
    store.reserve(call("c-1", limits))

    store.release("c-1")
    store.release("c-1")

    assert idle(store, limits)
    assert balance(store, limits).used == 0


def test_an_estimate_is_flagged_and_corrected_once(store: Store) -> None:
    """Usage that arrives late replaces the estimate; a second arrival changes nothing."""
    limits = scopes()
    store.reserve(call("c-1", limits))
    store.dispatch("c-1")
    store.charge("c-1", 100, 60)
    estimated = balance(store, limits)

    store.settle("c-1", 90, 15, 0)
    store.settle("c-1", 70, 5, 0)

    corrected = balance(store, limits)
    assert (estimated.used, estimated.estimated, estimated.reserved) == (160, 160, 0)
    assert (corrected.used, corrected.estimated, corrected.reserved) == (105, 0, 0)


def test_an_estimate_does_not_replace_what_is_known(store: Store) -> None:
    """Charging after settling changes nothing."""
    limits = scopes()
    store.reserve(call("c-1", limits))
    store.settle("c-1", 80, 20, 0)

    done = store.charge("c-1", 100, 100)

    assert not done.posted
    assert balance(store, limits).used == 100


def test_a_released_call_cannot_be_sent(store: Store) -> None:
    """Whoever was given up by its neighbours must not spend tokens that were given back."""
    store.reserve(call("c-1"))
    store.release("c-1")

    with pytest.raises(ReservationLostError):
        store.dispatch("c-1")


def test_usage_of_a_released_call_counts_all_the_same(store: Store) -> None:
    """What was really used is never lost."""
    limits = scopes()
    store.reserve(call("c-1", limits))
    store.release("c-1")

    store.settle("c-1", 80, 20, 0)

    assert (balance(store, limits).used, balance(store, limits).reserved) == (100, 0)


def test_an_unknown_reservation_is_lost(store: Store) -> None:
    """No step of a call that was never reserved is accepted."""
    for step in (
        lambda: store.dispatch("nobody"),
        lambda: store.settle("nobody", 1, 1, 0),
        lambda: store.charge("nobody", 1, 1),
        lambda: store.release("nobody"),
        lambda: store.extend("nobody", 5),
    ):
        with pytest.raises(ReservationLostError):
            step()


def test_impossible_usage_is_refused(store: Store) -> None:
    """Negative tokens would be money printed."""
    limits = scopes()
    store.reserve(call("c-1", limits))

    with pytest.raises(ValueError, match="usage"):
        store.settle("c-1", -1, 0, 0)

    assert balance(store, limits).reserved == 200


def test_a_stream_is_extended_as_far_as_there_is_room(store: Store) -> None:
    """An extension gets what is free, at once, and then nothing."""
    limits = scopes(session=250)
    store.reserve(call("c-1", limits))

    more = [store.extend("c-1", 30), store.extend("c-1", 30), store.extend("c-1", 30)]

    assert more == [30, 20, 0]
    assert balance(store, limits, "session").reserved == 250


def test_a_finished_call_is_not_extended(store: Store) -> None:
    """Nothing may be held for a call that has ended."""
    limits = scopes()
    store.reserve(call("c-1", limits))
    store.settle("c-1", 1, 1, 0)

    assert store.extend("c-1", 10) == 0
    assert idle(store, limits)


def test_usage_above_the_reservation_is_recorded_in_full(store: Store) -> None:
    """The overshoot is the under-estimate, and everyone after it sees it."""
    limits = scopes(session=500)
    store.reserve(call("c-1", limits))

    store.settle("c-1", 5200, 100, 0)
    answer = store.reserve(call("c-2", limits))

    assert balance(store, limits, "session").used == 5300
    assert isinstance(answer, Refused)


def test_a_call_that_will_fit_waits_and_is_served(store: Store) -> None:
    """Waiting instead of refusing: the tokens go to the waiting call in the step that gives them back."""
    limits = scopes(session=200)
    noticed: list[str] = []
    store.settings = StoreSettings(notice=noticed.extend)
    store.reserve(call("c-1", limits))
    waiting = store.reserve(call("c-2", limits))

    store.settle("c-1", 50, 0, 0)

    assert isinstance(waiting, Waiting)
    assert noticed == ["c-2"]
    assert granted(store.reserve(call("c-2", limits))).output_tokens == 50


def test_a_newcomer_does_not_overtake(store: Store) -> None:
    """What is free is kept for the call that waits for more of it."""
    limits = scopes(session=300)
    store.reserve(call("c-1", limits))
    store.reserve(call("big", limits, prompt=150))

    newcomer = store.reserve(call("small", limits, prompt=20, output=(1, 5)))

    assert isinstance(newcomer, Waiting)
    store.settle("c-1", 10, 10, 0)
    assert granted(store.reserve(call("big", limits, prompt=150))).output_tokens == 100


def test_who_waits_for_another_budget_is_no_obstacle(store: Store) -> None:
    """Only those who need the same tokens stand behind each other."""
    tight = scopes(session=200)
    other = scopes(session=200, names=("acme", "ann", "s-2", "t-2"))
    store.reserve(call("c-1", tight))
    store.reserve(call("c-2", tight))

    assert isinstance(store.reserve(call("c-3", other)), Reservation)


def test_a_waiting_call_is_refused_when_nothing_can_come_back(store: Store) -> None:
    """The wait ends with the figures as soon as it is hopeless."""
    limits = scopes(session=200)
    noticed: list[str] = []
    store.settings = StoreSettings(notice=noticed.extend)
    store.reserve(call("c-1", limits))
    store.reserve(call("c-2", limits))

    store.settle("c-1", 100, 100, 0)

    assert noticed == ["c-2"]
    assert isinstance(store.reserve(call("c-2", limits)), Refused)


def test_a_withdrawn_call_waits_no_more(store: Store) -> None:
    """Who left the queue is not served."""
    limits = scopes(session=200)
    store.reserve(call("c-1", limits))
    store.reserve(call("c-2", limits))

    store.withdraw("c-2")
    store.settle("c-1", 10, 0, 0)

    assert idle(store, limits)


def test_withdrawing_gives_back_a_grant_that_came_too_late(store: Store) -> None:
    """A call that was served and cancelled in the same moment holds nothing."""
    limits = scopes(session=200)
    store.reserve(call("c-1", limits))
    store.reserve(call("c-2", limits))
    store.settle("c-1", 10, 0, 0)

    store.withdraw("c-2")

    assert idle(store, limits)
    assert balance(store, limits).used == 10


def test_users_of_a_tenant_take_turns(store: Store) -> None:
    """Ann's three calls do not stand before Bob's one."""
    tight = {
        user: scopes(tenant=200, names=("acme", user, f"s-{user}", f"t-{user}")) for user in ("holder", "ann", "bob")
    }
    order: list[str] = []
    store.settings = StoreSettings(notice=order.extend)
    store.reserve(call("first", tight["holder"]))
    for name in ("ann-1", "ann-2", "ann-3", "bob-1"):
        store.reserve(call(name, tight[name.split("-")[0]]))

    store.release("first")
    for _ in range(4):
        store.release(order[-1])

    assert order == ["ann-1", "bob-1", "ann-2", "ann-3"]


def test_a_grant_adds_to_todays_window_alone(store: Store, clock: FakeClock) -> None:
    """An exhausted session goes on after a grant, and tomorrow's limit is the old one."""
    limits = scopes(session=200)
    store.reserve(call("c-1", limits))
    store.settle("c-1", 150, 50, 0)

    after = store.grant(limits[2], 300)
    answer = store.reserve(call("c-2", limits))
    clock.advance(86_400)

    assert (after.limit, after.granted) == (500, 300)
    assert isinstance(answer, Reservation)
    assert balance(store, limits, "session").limit == 200


def test_a_grant_wakes_those_who_wait(store: Store) -> None:
    """Who waits does not have to wait for the others any more."""
    limits = scopes(session=200)
    noticed: list[str] = []
    store.settings = StoreSettings(notice=noticed.extend)
    store.reserve(call("c-1", limits))
    store.reserve(call("c-2", limits))

    store.grant(limits[2], 300)

    assert noticed == ["c-2"]


def test_a_new_day_is_a_new_window(store: Store, clock: FakeClock) -> None:
    """What is reserved before midnight settles there, and the next call counts in the new day."""
    limits = scopes(session=300)
    yesterday = store.balances(limits)[2].window
    store.reserve(call("c-1", limits))
    clock.advance(86_400)

    store.settle("c-1", 100, 50, 0)
    store.reserve(call("c-2", limits))

    old = [b for b in store.all_balances(yesterday) if b.scope.kind == "session"]
    assert [(b.used, b.reserved) for b in old] == [(150, 0)]
    assert balance(store, limits, "session").reserved == 200


def test_waiting_calls_go_on_in_the_new_day(store: Store, clock: FakeClock) -> None:
    """Midnight makes no noise, so the queue is looked at again."""
    limits = scopes(session=200)
    noticed: list[str] = []
    store.settings = StoreSettings(notice=noticed.extend)
    store.reserve(call("c-1", limits))
    store.reserve(call("c-2", limits))
    clock.advance(86_400)

    store.serve_waiting()

    assert noticed == ["c-2"]


def test_a_turns_budget_does_not_start_anew_at_midnight(store: Store, clock: FakeClock) -> None:
    """A turn is one window, however long it runs."""
    limits = scopes(turn=200)
    store.reserve(call("c-1", limits))
    store.settle("c-1", 150, 50, 0)
    clock.advance(86_400)

    answer = store.reserve(call("c-2", limits))

    assert isinstance(answer, Refused)
    assert (answer.scope.kind, answer.retry_after_s) == ("turn", None)


def test_a_clock_that_steps_back_opens_no_window_again(store: Store, clock: FakeClock) -> None:
    """The ledger stays in the later day, where it already spent."""
    limits = scopes()
    clock.advance(86_400 - clock.time() % 86_400 + 60)
    store.reserve(call("c-1", limits))
    today = balance(store, limits).window

    clock.step_wall(-7200)

    assert granted(store.reserve(call("c-2", limits))).windows[0] == today
    assert balance(store, limits).reserved == 400


def test_a_soft_threshold_fires_once_per_crossing(store: Store) -> None:
    """Each fraction is reported once, and again only after a grant took the balance below it."""
    limits = scopes(session=1000)
    store.settings = StoreSettings(warn_at=(0.8, 0.95))
    crossings: list[Crossing] = []

    def spend(name: str, tokens: int) -> None:
        store.reserve(call(name, limits, prompt=tokens, output=(0, 0)))
        crossings.extend(store.settle(name, tokens, 0, 0).crossings)

    spend("c-1", 790)
    spend("c-2", 20)
    spend("c-3", 20)
    spend("c-4", 140)
    store.grant(limits[2], 1000)
    spend("c-5", 700)

    assert [(c.scope.kind, c.threshold, c.used, c.limit) for c in crossings] == [
        ("session", 0.8, 810, 1000),
        ("session", 0.95, 970, 1000),
        ("session", 0.8, 1670, 2000),
    ]


def test_cost_is_counted_beside_tokens_and_unpriced_is_said(store: Store) -> None:
    """A model without a price is never free: its tokens are listed as unpriced."""
    limits = scopes()
    store.settings = StoreSettings(price=lambda model: Price(2_000_000, 8_000_000) if model == "priced" else None)
    store.reserve(call("c-1", limits, model="priced"))
    store.settle("c-1", 80, 20, 0)
    store.reserve(call("c-2", limits, model="other"))

    store.settle("c-2", 30, 5, 0)

    total = balance(store, limits)
    assert total.cost_pico_usd == 80 * 2_000_000 + 20 * 8_000_000
    assert (total.used, total.unpriced) == (135, 35)


def test_an_unlimited_scope_is_recorded(store: Store) -> None:
    """No limit means no refusal, not no record."""
    limits = scopes(tenant=None, user=None)
    store.reserve(call("c-1", limits))

    store.settle("c-1", 80, 20, 0)

    assert (balance(store, limits).limit, balance(store, limits).used) == (None, 100)


def test_the_journal_reproduces_every_balance(store: Store, clock: FakeClock) -> None:
    """Replaying all that happened gives what stands there."""
    limits = scopes(session=5_000, tenant=20_000)
    for number in range(40):
        name = f"c-{number}"
        store.reserve(call(name, limits))
        store.extend(name, 7) if number % 3 == 0 else store.dispatch(name)
        match number % 4:
            case 1:
                store.charge(name, 100, 100)
            case 2:
                store.release(name)
            case _:
                store.settle(name, 60, 30, 5)
        clock.advance(3600)
    store.charge("c-0", 1, 1)
    store.settle("c-1", 9, 9, 0)
    store.grant(limits[2], 50)

    result = store.verify()

    assert result.ok, result.problems
    assert result.reservations == 40


def test_two_openings_share_one_ledger(open_store: OpenStore) -> None:
    """What one holds the other sees, and gives back what the other waits for."""
    here, there = open_store(), open_store()
    limits = scopes(session=200)
    here.reserve(call("c-1", limits))

    waiting = there.reserve(call("c-2", limits))
    here.settle("c-1", 40, 0, 0)

    assert isinstance(waiting, Waiting)
    if here is not there:
        assert there.answered(["c-2"]) == ["c-2"]
    assert granted(there.reserve(call("c-2", limits))).output_tokens == 60
    assert balance(here, limits).reserved == 160


def test_many_threads_never_exceed_a_limit(store: Store) -> None:
    """32 streams at once on one budget: what is used and held never passes the limit."""
    limits = scopes(session=20_000)
    errors: list[str] = []

    def stream(number: int) -> None:
        for turn in range(6):
            name = f"{number}-{turn}"
            answer = store.reserve(call(name, limits))
            if isinstance(answer, Waiting):
                store.withdraw(name)
                continue
            if isinstance(answer, Refused):
                return
            now = balance(store, limits, "session")
            if now.used + now.reserved > 20_000:
                errors.append(str(now))
            store.settle(name, 90, answer.output_tokens, 0)

    threads = [threading.Thread(target=stream, args=(number,)) for number in range(32)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert errors == []
    assert idle(store, limits)
    assert balance(store, limits, "session").used <= 20_000


def test_the_balance_of_something_new_is_zero(store: Store) -> None:
    """Asking creates nothing."""
    limits = scopes(names=("new", "ann", "s", "t"))

    found: Balance = balance(store, limits)

    assert (found.used, found.reserved, found.limit) == (0, 0, PLENTY)
    assert store.all_balances() == ()


def test_a_states_value_is_its_name_in_every_store(store: Store) -> None:
    """A repeated request tells how far the call is."""
    store.reserve(call("c-1"))
    store.dispatch("c-1")

    assert granted(store.reserve(call("c-1"))).state is ReservationState.DISPATCHED


def test_who_can_never_fit_is_told_so_although_others_wait(store: Store) -> None:
    """A hopeless call does not queue behind those who have hope."""
    tight = scopes(session=200)
    spent = scopes(session=50, names=("acme", "ann", "s-2", "t-2"))
    store.reserve(call("c-1", tight))
    store.reserve(call("c-2", tight))

    answer = store.reserve(call("c-3", spent))

    assert isinstance(answer, Refused)
    assert answer.reason == "impossible"


def test_a_hundred_calls_in_flight_over_midnight_settle_in_their_own_day(store: Store, clock: FakeClock) -> None:
    """Shanghai's midnight and UTC's are different instants, and each call stays where it was reserved."""
    clock.advance((57_600 - clock.time() % 86_400) % 86_400 - 30)
    limits = {zone: scopes(names=(zone[:3], "u", "s", "t"), timezone=zone) for zone in ("UTC", "Asia/Shanghai")}
    before = {zone: balance(store, limits[zone]).window for zone in limits}
    for number in range(50):
        for zone in limits:
            store.reserve(call(f"{zone}-{number}", limits[zone]))
    clock.advance(60)

    for number in range(50):
        for zone in limits:
            store.settle(f"{zone}-{number}", 10, 5, 0)
            store.reserve(call(f"next-{zone}-{number}", limits[zone]))
            store.release(f"next-{zone}-{number}")

    now = {zone: balance(store, limits[zone]).window for zone in limits}
    assert now["UTC"] == before["UTC"]
    assert now["Asia/Shanghai"] > before["Asia/Shanghai"]
    for zone in limits:
        used = [b.used for b in store.all_balances(before[zone]) if b.scope == Scope("tenant", zone[:3])]
        assert used == [50 * 15]
    assert idle(store, limits["UTC"])
    assert idle(store, limits["Asia/Shanghai"])


@pytest.mark.parametrize("open_store", ["sqlite", pytest.param("redis", marks=pytest.mark.redis)], indirect=True)
def test_an_owner_that_is_silent_for_a_lease_is_resolved_and_settles_late_once(
    open_store: OpenStore, clock: FakeClock
) -> None:
    """Not sent is given back and cannot be sent any more; sent is charged, and its real usage is a correction."""
    here, zombie = open_store(), open_store()
    limits = scopes()
    zombie.reserve(call("held", limits))
    zombie.reserve(call("sent", limits))
    zombie.dispatch("sent")
    here.heartbeat()
    clock.advance(29)
    here.heartbeat()
    alive = balance(here, limits)

    clock.advance(2)
    here.heartbeat()

    resolved = balance(here, limits)
    with pytest.raises(ReservationLostError):
        zombie.dispatch("held")
    zombie.settle("sent", 70, 30, 0)
    zombie.settle("sent", 99, 99, 0)
    corrected = balance(here, limits)
    assert (alive.reserved, alive.used) == (400, 0)
    assert (resolved.reserved, resolved.used, resolved.estimated) == (0, 200, 200)
    assert (corrected.reserved, corrected.used, corrected.estimated) == (0, 100, 0)
    assert here.verify().ok


@pytest.mark.parametrize("open_store", ["sqlite", pytest.param("redis", marks=pytest.mark.redis)], indirect=True)
def test_a_slow_owner_that_beats_keeps_what_it_holds(open_store: OpenStore, clock: FakeClock) -> None:
    """A call may take as long as it takes, as long as its process says that it lives."""
    here, slow = open_store(), open_store()
    limits = scopes()
    slow.reserve(call("held", limits))

    for _ in range(12):
        clock.advance(20)
        slow.heartbeat()
        here.heartbeat()

    assert balance(here, limits).reserved == 200
    slow.dispatch("held")


@pytest.mark.parametrize("open_store", ["sqlite", pytest.param("redis", marks=pytest.mark.redis)], indirect=True)
def test_closing_resolves_what_was_left_open(open_store: OpenStore) -> None:
    """As if the owner had died, but at once: given back, charged, and out of the queue."""
    here, leaving = open_store(), open_store()
    limits = scopes(session=400)
    leaving.reserve(call("held", limits))
    leaving.reserve(call("sent", limits))
    leaving.dispatch("sent")
    leaving.reserve(call("waits", limits))

    leaving.close()

    left = balance(here, limits, "session")
    assert (left.reserved, left.used, left.estimated) == (0, 200, 200)
    assert isinstance(here.reserve(call("next", limits)), Reservation)


def test_a_step_happens_as_a_whole_or_not_at_all(clock: FakeClock) -> None:
    """A call whose balance is lost posts to none of the others, and the proof says so."""
    store = MemoryStore(clock)
    limits = scopes()
    store.reserve(call("c-1", limits))
    store._records.kept.pop("turn:t-1 UTC turn")

    with pytest.raises(KeyError):
        store.settle("c-1", 5, 5, 0)

    left = balance(store, limits)
    assert (left.used, left.reserved) == (0, 200)
    assert any("holds tokens of a balance that is not there" in problem for problem in store.verify().problems)


def test_more_threads_at_once_than_a_client_has_connections_are_all_served(open_store: OpenStore) -> None:
    """A pool of sessions asks from as many threads as it has turns; none of them is refused for that."""
    store, limits = open_store(), scopes()
    together = threading.Barrier(160)

    def reserve(number: int) -> object:
        together.wait(20)
        return store.reserve(call(f"c-{number}", limits))

    with ThreadPoolExecutor(160) as threads:
        answers = list(threads.map(reserve, range(160)))

    assert [type(answer) for answer in answers] == [Reservation] * 160
    assert balance(store, limits).reserved == 160 * 200
