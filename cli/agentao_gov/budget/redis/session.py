"""One process's session with the Redis server: steps of the script, windows by the server's clock, the mark."""

from __future__ import annotations

import hashlib
import json
import secrets
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, cast

from agentao_gov.budget import failpoints
from agentao_gov.budget.admission import Answer
from agentao_gov.budget.balance import BalanceKey, BalanceRecord, balance_name, refusal
from agentao_gov.budget.high_water import HighWater
from agentao_gov.budget.journal import Checkpoint
from agentao_gov.budget.reservation import CallRecord, Holding, Price
from agentao_gov.budget.store import Crossing, JournalRow, Refused, StoreSettings
from agentao_gov.budget.types import (
    Balance,
    Reservation,
    ReservationLostError,
    ReservationState,
    ReserveRequest,
    Scope,
    ScopeKind,
    ScopeLimit,
)
from agentao_gov.budget.windows import TURN_WINDOW, WindowCalendar
from agentao_gov.clock import Clock
from agentao_gov.errors import ConfigError, StoreError

SCRIPT = Path(__file__).with_name("ledger.lua").read_text(encoding="utf-8")

#: The script can only compute SHA-1: enough to find damage and careless edits, not an adversary with the password.
_GENESIS = bytes(20)
_HASH_DIGITS = 40


def link(previous: bytes, text: str) -> bytes:
    """The hash of an entry in Redis."""
    return hashlib.sha1((previous.hex() + text).encode(), usedforsecurity=False).digest()


def reservation_of(answer: dict[str, Any]) -> Reservation:
    """A reservation as the script tells it."""
    return Reservation(
        answer["id"],
        int(answer["prompt"]),
        int(answer["output"]),
        tuple(answer["windows"]),
        ReservationState(answer["state"]),
    )


def balance_of(told: dict[str, Any]) -> Balance:
    """A balance as the script tells it."""
    limit = told.get("limit")
    return Balance(
        Scope(cast("ScopeKind", told["kind"]), told["key"]),
        told["window"],
        told["timezone"],
        None if limit is None else int(limit),
        int(told["used"]),
        int(told["reserved"]),
        int(told["estimated"]),
        int(told["granted"]),
        int(told["cost"]),
        int(told["unpriced"]),
    )


def refused(answer: dict[str, Any], request: ReserveRequest, retry_after_s: float | None) -> Refused:
    """A refusal with the figures of the scope that says no."""
    return refusal(Answer(answer["answer"]), balance_of(answer["balance"]), request, retry_after_s)


def crossings_of(answer: dict[str, Any]) -> tuple[Crossing, ...]:
    """Soft thresholds passed; Lua writes an empty list as an object."""
    found = []
    for told in answer.get("crossings") or ():
        balance = balance_of(told)
        found.append(Crossing(balance.scope, balance.window, told["threshold"], balance.used, balance.limit or 0))
    return tuple(found)


def read_checkpoint(text: str | None) -> Checkpoint:
    """What stands for the entries that are no longer there."""
    if text is None:
        return Checkpoint(hash=_GENESIS)
    number, digest, body = json.loads(text)
    return Checkpoint(number, bytes.fromhex(digest), body)


def write_checkpoint(checkpoint: Checkpoint) -> str:
    """What `read_checkpoint` reads."""
    return json.dumps([checkpoint.number, checkpoint.hash.hex(), checkpoint.body])


def journal_rows(texts: Iterable[str], after: int) -> Iterator[JournalRow]:
    """Entries as the list keeps them: hash, then text. `after` is the number of the checkpoint before them."""
    for number, entry in enumerate(texts, start=after + 1):
        yield number, entry[_HASH_DIGITS:], bytes.fromhex(entry[:_HASH_DIGITS])


def balance_record_of(name: str, record: dict[str, str]) -> BalanceRecord:
    """A balance as the server keeps it. Raises KeyError or ValueError where a field is missing or no number."""
    scope = Scope(cast("ScopeKind", record["kind"]), record["key"])
    amounts = [int(record[field]) for field in ("granted", "used", "reserved", "estimated", "cost", "unpriced")]
    limit = int(record["limit"]) if record["limit"] else None
    return BalanceRecord((scope, record["timezone"], record["window"]), name, limit, *amounts)


def call_record_of(call_id: str, record: dict[str, str]) -> CallRecord:
    """A reservation as the server keeps it. Raises KeyError or ValueError where a field is missing or no number."""
    price = Price(int(record["price_prompt"]), int(record["price_completion"])) if record["price_prompt"] else None
    fields = ("held_prompt", "held_output", "used", "estimated", "cost", "unpriced")
    prompt, output, used, estimated, cost, unpriced = (int(record[field]) for field in fields)
    holding = Holding(ReservationState(record["state"]), prompt, output, used, estimated, cost, unpriced, price)
    return CallRecord(call_id, record["owner"], tuple(json.loads(record["lines"])), holding)


#: How long the records of a finished call and its turn stay, for repeated and late settlements.
_KEEP_MS = 7 * 86_400_000
#: A turn's line is open for ever; any time the clock can show.
_ALWAYS_MS = 1 << 50
#: Tries to agree with the server on the day; one is enough but at midnight.
_STALE_TRIES = 5
#: Open connections of one process, at most.
_CONNECTIONS = 32


class WaitingCall(NamedTuple):
    """A queued call as the script serves it. `tenant` and `user` are its names in the table of who was served."""

    request: dict[str, Any]
    scopes: Sequence[ScopeLimit]
    waiter: str
    tenant: str
    user: str


class RedisSession:
    """Speaks to the script. Thread-safe."""

    def __init__(self, url: str, name: str, owner_id: str, clock: Clock | None, timeout_s: float) -> None:
        #: Any: the client's own annotations mix its synchronous and asynchronous answers.
        self.client: Any = _connect(url, timeout_s)
        self.settings = StoreSettings()
        self.prefix = f"agentao-gov:{{{name}}}:"
        self.calendar = WindowCalendar()
        self._owner_id = owner_id
        self._clock = clock
        self._script = self.client.register_script(SCRIPT)
        #: The server's clock less ours, in ms; learnt from each answer.
        self._offset_ms = 0.0
        #: The furthest entry this process has seen; only ever grows, so a race between threads does no harm.
        self._last = 0
        self._high_water: HighWater | None = None
        #: Set while the server may throw keys away: nothing is admitted then.
        self._evicts: StoreError | None = None
        self._ledger_id = secrets.token_hex(16)
        self._ledger_id = str(self.call("create")["ledger"])
        self.check_eviction()

    def admit(self, mark: Path) -> None:
        """Compares the ledger with this machine's mark of it."""
        high_water = HighWater(mark)
        # Before the look: neighbours write meanwhile, and move the mark on.
        before = high_water.read()
        high_water.admit(self._ledger_id, int(self.call("look")["last"]), before)
        self._high_water = high_water

    def keep_mark(self) -> None:
        """Notes how far the ledger is for good; once per heartbeat."""
        if self._high_water is not None:
            self._high_water.on_disk(self._last)

    def close(self) -> None:
        """Ends connections. Idempotent."""
        self.client.close()
        if self._high_water is not None:
            self._high_water.close()
            self._high_water = None

    def key_of(self, suffix: str) -> str:
        """A key of this ledger."""
        return self.prefix + suffix

    def fresh(self, op: str, scopes: Sequence[ScopeLimit], **arguments: Any) -> dict[str, Any]:
        """A step that names windows."""
        return self._fresh(op, lambda: {"scopes": [self._scope(scope) for scope in scopes], **arguments})

    def serve(self, calls: Sequence[WaitingCall]) -> Iterable[str]:
        """Lets queued calls try in this order, all in one step; returns the ids that were answered."""

        def tickets() -> dict[str, Any]:
            # A turn's calls name the same scopes again and again.
            named = {scope: self._scope(scope) for call in calls for scope in call.scopes}
            return {
                "tickets": [{**call._asdict(), "scopes": [named[scope] for scope in call.scopes]} for call in calls]
            }

        answered: Iterable[str] = self._fresh("serve", tickets)["answered"]
        return answered

    def _fresh(self, op: str, arguments: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Repeats a step where the server is in another day than was thought."""
        for _ in range(_STALE_TRIES):
            answer = self.call(op, **arguments())
            if not answer.get("stale"):
                return answer
        raise StoreError("The Redis server's clock jumps: no window could be agreed on.")

    def _scope(self, scope: ScopeLimit) -> dict[str, Any]:
        now_s = self._now_ms() / 1000
        key = self.key(scope, now_s)
        start_ms, end_ms = 0, _ALWAYS_MS
        if scope.scope.kind != "turn":
            window = self.calendar.window(scope.timezone, now_s)
            start_ms, end_ms = window.start_s * 1000, window.end_s * 1000
        return {
            "name": balance_name(key),
            "kind": scope.scope.kind,
            "key": scope.scope.key,
            "timezone": scope.timezone,
            "window": key[2],
            "limit": scope.limit,
            "start_ms": start_ms,
            "end_ms": end_ms,
        }

    def key(self, scope: ScopeLimit, now_s: float) -> BalanceKey:
        """Where a call reserved now posts to."""
        if scope.scope.kind == "turn":
            return (scope.scope, scope.timezone, TURN_WINDOW)
        return (scope.scope, scope.timezone, self.calendar.window(scope.timezone, now_s).name)

    def _now_ms(self) -> float:
        return time.monotonic() * 1000 + self._offset_ms

    def call(self, op: str, **arguments: Any) -> dict[str, Any]:
        """One step on the server."""
        now = None if self._clock is None else int(self._clock.time() * 1000)
        record = {
            "op": op,
            "ledger": self._ledger_id,
            "owner": self._owner_id,
            "seen": self._last,
            "now": now,
            "warn_at": self.settings.warn_at,
            "keep_ms": _KEEP_MS,
            **arguments,
        }
        if op == "reserve" and self._evicts is not None:
            raise self._evicts
        if op in ("reserve", "dispatch", "settle"):
            failpoints.reach(f"before_{op}_commit")
        with guard():
            answer: dict[str, Any] = json.loads(self._script(keys=[self.prefix], args=[json.dumps(record)]))
        if op in ("reserve", "dispatch", "settle"):
            failpoints.reach(f"after_{op}_commit")
        self._check(answer, str(arguments.get("id", "")))
        self._last = max(self._last, int(answer["last"]))
        self._offset_ms = answer["now"] - time.monotonic() * 1000
        if self._high_water is not None:
            self._high_water.advance(self._last)
        return answer

    def _check(self, answer: dict[str, Any], call_id: str) -> None:
        match answer.get("error"):
            case "unknown":
                raise ReservationLostError(f"There is no reservation {call_id}.")
            case "lost":
                raise StoreError(
                    "The Redis server no longer has this ledger.",
                    hint="Restore it; or restart, and remove the .mark file, to begin a new one.",
                )
            case "vanished":
                raise StoreError(
                    f"The Redis ledger has lost {answer['what']}: it was evicted, deleted or not restored.",
                    hint="Restore the server's data. Spending would be forgotten, so nothing is admitted.",
                )
            case "older":
                raise StoreError(
                    f"The Redis ledger ends at entry {answer['last']:,}, not at {self._last:,}: an older copy.",
                    hint="Restore the newer one. Spending would be forgotten, so nothing is admitted.",
                )

    def check_eviction(self) -> None:
        """Raises StoreError for a server that may throw keys away, and from then on for every reservation.

        It would forget spending. The policy can be changed at any time: called at the start and with every heartbeat.
        """
        import redis

        try:
            policy = self.client.config_get("maxmemory-policy").get("maxmemory-policy", "noeviction")
        except redis.ResponseError:
            # Hosted servers hide their configuration; there the operator has to know.
            return
        except redis.RedisError as error:
            raise _lost(error) from error
        self._evicts = None
        if policy != "noeviction":
            self._evicts = StoreError(
                f"The Redis server may evict the ledger's keys (maxmemory-policy {policy}).",
                hint="Set maxmemory-policy noeviction, or use a server of its own for the ledger.",
            )
            raise self._evicts


def _connect(url: str, timeout_s: float) -> Any:
    try:
        import redis
        from redis.backoff import NoBackoff
        from redis.retry import Retry
    except ImportError as error:
        raise ConfigError(
            "The ledger is configured to be in Redis, but the client is not installed.",
            hint="pip install 'agentao-gov[redis]'",
        ) from error
    try:
        pool = redis.BlockingConnectionPool.from_url(
            url,
            # The server does one step at a time: more connections would only wait there. Who finds none waits for one;
            # the client's ordinary pool fails beyond 100 calls at once.
            max_connections=_CONNECTIONS,
            timeout=timeout_s,
            decode_responses=True,
            socket_timeout=timeout_s,
            socket_connect_timeout=timeout_s,
            health_check_interval=15,
            # A step may have happened although its answer was lost, and a grant must not happen twice.
            retry=Retry(NoBackoff(), 0),
        )
        return redis.Redis.from_pool(pool)
    except ValueError as error:
        raise ConfigError("[budget] store is no Redis address.", hint="Write redis://HOST:PORT/DB.") from error


@contextmanager
def guard() -> Iterator[None]:
    """What a lost server means."""
    import redis

    try:
        yield
    except redis.RedisError as error:
        raise _lost(error) from error


def _lost(error: Exception) -> StoreError:
    return StoreError(
        f"The token ledger in Redis cannot be used: {type(error).__name__}: {str(error).rstrip('.')}.",
        hint="Check that the server runs, is reachable and has memory left.",
    )
