"""The ledger in Redis: what only a server can do to it. What goes missing is refused, never started anew."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from agentao_gov.budget import RedisStore, Reservation, TokenLedger
from agentao_gov.clock import Clock, Deadline
from agentao_gov.errors import StoreError
from tests.budget.calls import balance, call, scopes
from tests.support.clock import FakeClock
from tests.support.redis_server import RedisServer

pytestmark = pytest.mark.redis

LIMITS = scopes(tenant=2_000)
DAY_S = 86_400


@pytest.fixture
def store(redis_server: RedisServer, clock: FakeClock) -> Iterator[RedisStore]:
    """One opening, on a server that may be harmed."""
    opened = RedisStore(redis_server.url, clock=clock)
    yield opened
    opened.close()


def key_of(server: RedisServer, kind: str) -> str:
    """The key of the only balance of that kind of scope."""
    found = server.ask("KEYS", f"agentao-gov:*line:{kind}:*")
    assert isinstance(found, list)
    (key,) = found
    return str(key)


def test_a_balance_that_was_evicted_is_not_started_anew(
    store: RedisStore, redis_server: RedisServer, clock: FakeClock
) -> None:
    """Not a single call is admitted from then on, by anyone; the heartbeat, the proof and a new opening say so."""
    store.reserve(call("c-1", LIMITS))
    store.settle("c-1", 1_500, 0, 0)
    redis_server.ask("DEL", key_of(redis_server, "tenant"))

    for attempt in range(2):
        with pytest.raises(StoreError, match="has lost balance tenant:acme") as caught:
            store.reserve(call(f"later-{attempt}", LIMITS))
        assert caught.value.exit_code == 9
    with pytest.raises(StoreError, match="has lost balance"):
        store.heartbeat()
    with pytest.raises(StoreError, match="has lost balance"):
        RedisStore(redis_server.url, clock=clock)
    assert any("tenant:acme" in problem and "journal only" in problem for problem in store.verify().problems)


def test_a_balance_that_goes_under_a_call_in_flight_is_a_store_error(
    store: RedisStore, redis_server: RedisServer
) -> None:
    """Nothing of the step is written, and the proof still reads what is left."""
    store.reserve(call("c-1", LIMITS))
    store.dispatch("c-1")
    redis_server.ask("DEL", key_of(redis_server, "user"))

    with pytest.raises(StoreError, match="has lost balance user:acme/ann"):
        store.settle("c-1", 50, 5, 0)

    assert redis_server.ask("HGET", key_of(redis_server, "tenant"), "used") == "0"
    assert redis_server.ask("KEYS", "agentao-gov:*line:user:*") == []
    assert not store.verify().ok


def test_a_balance_that_is_half_there_is_named_by_the_proof(store: RedisStore, redis_server: RedisServer) -> None:
    """A record that cannot be read is a problem of the ledger, not a fault of the program."""
    store.reserve(call("c-1", LIMITS))
    redis_server.ask("HDEL", key_of(redis_server, "session"), "kind", "timezone")

    problems = store.verify().problems

    assert any("balance session:acme/s-1" in problem and "cannot be read" in problem for problem in problems)


LOSSES: dict[str, tuple[tuple[str, ...], str]] = {
    "balance": (("DEL", "line:tenant:acme UTC {day}"), "balance tenant:acme"),
    "all balances' names": (("DEL", "lines"), "the list of balances"),
    "journal": (("LTRIM", "journal", "3", "-1"), "part of the journal"),
}


@pytest.mark.parametrize("loss", LOSSES)
def test_the_heartbeat_notices_what_nobody_asks_for(store: RedisStore, redis_server: RedisServer, loss: str) -> None:
    """The service stops being ready before the next call meets it."""
    ledger = TokenLedger(store, heartbeat_s=None)
    held = ledger.reserve(call("c-1", LIMITS), deadline=Deadline.after(10))
    (command, suffix, *rest), lost = LOSSES[loss]
    redis_server.ask(command, f"agentao-gov:{{ledger}}:{suffix.format(day=held.windows[0])}", *rest)

    with pytest.raises(StoreError, match=f"has lost {lost}"):
        store.heartbeat()


def test_a_reservation_that_went_is_a_store_error(store: RedisStore, redis_server: RedisServer) -> None:
    """Its tokens are held for ever: that is more than a reservation nobody knows."""
    store.reserve(call("c-1", LIMITS))
    redis_server.ask("DEL", "agentao-gov:{ledger}:call:c-1")

    with pytest.raises(StoreError, match="has lost reservation c-1"):
        store.settle("c-1", 5, 5, 0)


def test_a_server_that_begins_to_evict_admits_nobody(store: RedisStore, redis_server: RedisServer) -> None:
    """The policy is looked at with every heartbeat; calls in flight settle, and all goes on when it is set back."""
    store.reserve(call("c-1", LIMITS))
    redis_server.ask("CONFIG", "SET", "maxmemory-policy", "allkeys-lru")

    with pytest.raises(StoreError, match="allkeys-lru"):
        store.heartbeat()
    with pytest.raises(StoreError, match="noeviction"):
        store.reserve(call("c-2", LIMITS))
    settlement = store.settle("c-1", 5, 5, 0)
    redis_server.ask("CONFIG", "SET", "maxmemory-policy", "noeviction")
    store.heartbeat()

    assert settlement.posted
    assert isinstance(store.reserve(call("c-2", LIMITS)), Reservation)


def test_a_turn_whose_record_had_its_time_is_not_lost(
    store: RedisStore, redis_server: RedisServer, clock: FakeClock
) -> None:
    """The server lets go of ended turns by itself; before that time the same is a loss."""
    turn = scopes(names=("acme", "ann", "s-1", "t-rested"))
    for name, days in (("first", 8), ("second", 6)):
        store.reserve(call(name, turn))
        store.settle(name, 5, 5, 0)
        clock.advance(days * DAY_S)
        # The server's clock is not the test's.
        redis_server.ask("DEL", key_of(redis_server, "turn"))
        if name == "first":
            store.heartbeat()
            assert balance(store, turn, "turn").used == 0

    with pytest.raises(StoreError, match="has lost balance turn:t-rested"):
        store.reserve(call("third", turn))


def test_redis_says_so_where_an_open_call_has_lost_its_balance(redis_ledger: Callable[[Clock], RedisStore]) -> None:
    """And where less than nothing is reserved."""
    store = redis_ledger(FakeClock())
    store.reserve(call("c-1", scopes()))
    names = {name.partition(":")[0]: name for name in store._redis.smembers(store._session.key_of("lines"))}
    store._redis.delete(store._session.key_of(f"line:{names['turn']}"))
    store._redis.hset(store._session.key_of(f"line:{names['user']}"), "reserved", -20)

    problems = store.verify().problems

    assert any("c-1 holds tokens of a balance that is not there" in problem for problem in problems)
    assert any("-20 tokens are reserved" in problem for problem in problems)
    store.close()


def test_a_turn_in_redis_outlives_the_time_after_its_last_call(redis_ledger: Callable[[Clock], RedisStore]) -> None:
    """Its record expires only while nothing is open on it."""
    store = redis_ledger(FakeClock())
    limits = scopes()
    store.reserve(call("c-1", limits))
    store.reserve(call("c-2", limits))
    line = store._session.key_of("line:turn:t-1 UTC turn")

    store.settle("c-1", 5, 5, 0)
    held = store._redis.pttl(line)
    store.settle("c-2", 5, 5, 0)
    ended = store._redis.pttl(line)
    store.reserve(call("c-3", limits))

    assert held == -1
    assert ended > 0
    assert store._redis.pttl(line) == -1
    store.close()
