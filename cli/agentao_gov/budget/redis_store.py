"""The ledger in Redis or Valkey, for deployments on many machines. Its clock is the server's. Extra: `redis`."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

from agentao_gov.budget import failpoints
from agentao_gov.budget.book import LineKey, line_name, within_window
from agentao_gov.budget.errors import ReservationLostError
from agentao_gov.budget.mark import Mark
from agentao_gov.budget.owner import Owner, gone, this_process
from agentao_gov.budget.queue import Attempted, Ticket, fair_order, serve
from agentao_gov.budget.redis_keys import (
    SCRIPT,
    balance_of,
    crossings_of,
    journal_rows,
    refused,
    reservation_of,
    verify_records,
)
from agentao_gov.budget.sqlite_rows import decode_request, encode_request
from agentao_gov.budget.states import check_usage
from agentao_gov.budget.store import JournalRow, Refused, Settlement, StoreSettings, Verification, Waiting
from agentao_gov.budget.types import Balance, Reservation, ReserveRequest, Scope, ScopeKind, ScopeLimit
from agentao_gov.budget.windows import TURN_WINDOW, WindowCalendar
from agentao_gov.clock import Clock
from agentao_gov.errors import ConfigError, StoreError

__all__ = ["RedisStore"]

#: How long the records of a finished call and its turn stay, for repeated and late settlements.
_KEEP_MS = 7 * 86_400_000
#: A turn's line is open for ever; any time the clock can show.
_ALWAYS_MS = 1 << 50
#: How long one process may serve the queue before another may think that it died.
_SERVING_MS = 2_000
#: Tries to agree with the server on the day; one is enough but at midnight.
_STALE_TRIES = 5
_PAGE = 1_000

_UNLOCK = """
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
if redis.call('DEL', KEYS[2]) == 1 then redis.call('PEXPIRE', KEYS[1], ARGV[2]) return 1 end
redis.call('DEL', KEYS[1])
return 0
"""


class RedisStore:
    """Implements Store. Thread-safe; one connection pool. `clock` replaces the server's clock, for tests.

    `mark` is a file on this machine that remembers how far the ledger had come: a server that was restored from an
    older copy, or lost its last writes, is refused.
    """

    def __init__(
        self,
        url: str,
        settings: StoreSettings | None = None,
        *,
        clock: Clock | None = None,
        name: str = "ledger",
        lease_s: float = 30.0,
        timeout_s: float = 2.0,
        mark: Path | None = None,
    ) -> None:
        #: Any: the client's own annotations mix its synchronous and asynchronous answers.
        self._redis: Any = _connect(url, timeout_s)
        self.settings = settings or StoreSettings()
        self._clock = clock
        self._lease_ms = int(lease_s * 1000)
        self._prefix = f"agentao-gov:{{{name}}}:"
        self._script = self._redis.register_script(SCRIPT)
        self._unlock = self._redis.register_script(_UNLOCK)
        self.owner: Owner = this_process()
        self._calendar = WindowCalendar()
        #: The server's clock less ours, in ms; learnt from each answer.
        self._offset_ms = 0.0
        #: The furthest entry this process has seen.
        self._last = 0
        self._answered = -1
        self._mark: Mark | None = None
        self._ledger_id = secrets.token_hex(16)
        self._ledger_id = str(self._call("create")["ledger"])
        if mark is not None:
            self._mark = Mark(mark)
            self._mark.admit(self._ledger_id, self._last)
        self._check_eviction()
        self.heartbeat()

    # ── calls ─────────────────────────────────────────────────────────────────────────────────────

    def reserve(self, request: ReserveRequest) -> Reservation | Refused | Waiting:
        """See Store."""
        failpoints.reach("before_reserve")
        answer = self._ask(request)
        if answer.get("queued"):
            self.serve_waiting()
            answer = self._ask(request, direct=True) if not self._waits(request.id) else {"answer": "queue"}
        if "reservation" in answer:
            return reservation_of(answer["reservation"])
        if answer["answer"] == "queue":
            return Waiting(request.scopes[0].scope)
        blocking = request.scopes[int(answer["blocking"][0]) - 1]
        if answer["answer"] == "wait":
            return Waiting(blocking.scope)
        now_s = answer["now"] / 1000
        return refused(answer, request, within_window(self._calendar, self._key(blocking, now_s), now_s))

    def _ask(self, request: ReserveRequest, *, direct: bool = False) -> dict[str, Any]:
        stored = json.dumps([self.owner.id, encode_request(request)])
        return self._fresh("reserve", request.scopes, request=self._request(request), direct=direct, stored=stored)

    def _request(self, request: ReserveRequest) -> dict[str, Any]:
        price = self.settings.price(request.model)
        return {
            "id": request.id,
            "prompt": request.prompt_tokens,
            "output_min": request.output_tokens_min,
            "output_max": request.output_tokens_max,
            "price_prompt": price.prompt if price else None,
            "price_completion": price.completion if price else None,
        }

    def withdraw(self, reservation_id: str) -> None:
        """See Store."""
        if self._call("withdraw", id=reservation_id)["freed"]:
            self._serve_if_waiting()

    def dispatch(self, reservation_id: str) -> None:
        """See Store."""
        answer = self._call("dispatch", id=reservation_id)
        if answer.get("error") == "state":
            raise ReservationLostError(f"Reservation {reservation_id} is {answer['state']} and cannot be sent.")

    def extend(self, reservation_id: str, output_tokens: int) -> int:
        """See Store."""
        return int(self._call("extend", id=reservation_id, tokens=output_tokens)["more"])

    def settle(self, reservation_id: str, prompt: int, completion: int, estimated: int) -> Settlement:
        """See Store."""
        failpoints.reach("before_settle")
        check_usage(prompt, completion, estimated)
        return self._finished(
            self._call("settle", id=reservation_id, prompt=prompt, completion=completion, estimated=estimated)
        )

    def charge(self, reservation_id: str, prompt: int, completion: int) -> Settlement:
        """See Store."""
        check_usage(prompt, completion, 0)
        return self._finished(self._call("charge", id=reservation_id, prompt=prompt, completion=completion))

    def release(self, reservation_id: str) -> None:
        """See Store."""
        self._finished(self._call("release", id=reservation_id))

    def _finished(self, answer: dict[str, Any]) -> Settlement:
        if answer.get("freed") and answer["waiting_calls"]:
            self.serve_waiting()
        return Settlement(bool(answer["posted"]), crossings_of(answer))

    # ── waiting ───────────────────────────────────────────────────────────────────────────────────

    def answered(self, reservation_ids: Sequence[str]) -> list[str]:
        """See Store."""
        with _guard():
            count = int(self._redis.hget(self._prefix + "meta", "answered") or 0)
            if count == self._answered:
                return []
            self._answered = count
            waiting = set(self._strings(self._redis.zrange(self._prefix + "waiters", 0, -1)))
        return [call_id for call_id in reservation_ids if call_id not in waiting]

    def _waits(self, call_id: str) -> bool:
        with _guard():
            return self._redis.zscore(self._prefix + "waiters", call_id) is not None

    def _serve_if_waiting(self) -> None:
        with _guard():
            waiting = self._redis.zcard(self._prefix + "waiters")
        if waiting:
            self.serve_waiting()

    def serve_waiting(self) -> None:
        """See Store. One process at a time; whoever comes meanwhile makes it look once more."""
        lock, again, token = self._prefix + "serving", self._prefix + "again", secrets.token_hex(8)
        with _guard():
            if not self._redis.set(lock, token, nx=True, px=_SERVING_MS):
                self._redis.set(again, "1", px=_SERVING_MS)
                # Whoever serves may have finished between the two; then nobody would look again.
                if not self._redis.set(lock, token, nx=True, px=_SERVING_MS):
                    return
            more = True
            while more:
                self._serve_round()
                more = bool(self._unlock(keys=[lock, again], args=[token, _SERVING_MS]))

    def _serve_round(self) -> None:
        stored = self._redis.hgetall(self._prefix + "waiting")
        numbers = self._redis.zrange(self._prefix + "waiters", 0, -1, withscores=True)
        served = {
            (tenant, user): int(number)
            for name, number in self._redis.hgetall(self._prefix + "served").items()
            for tenant, user in [json.loads(name)]
        }
        requests: dict[str, tuple[str, ReserveRequest]] = {}
        tickets = []
        for call_id, number in numbers:
            text = stored.get(call_id)
            if text is None:
                continue
            owner, encoded = json.loads(text)
            request = decode_request(encoded)
            requests[request.id] = (owner, request)
            scopes = tuple(limit.scope for limit in request.scopes)
            tickets.append(Ticket(request.id, int(number), request.tenant, request.user, scopes))
        answered: list[str] = []
        serve(fair_order(tickets, served), lambda ticket: self._serve_one(ticket, *requests[ticket.id], answered))
        if answered:
            self.settings.notice(answered)

    def _serve_one(self, ticket: Ticket, owner: str, request: ReserveRequest, answered: list[str]) -> Attempted:
        answer = self._fresh(
            "serve",
            request.scopes,
            request=self._request(request),
            waiter=owner,
            tenant=json.dumps([ticket.tenant, None]),
            user=json.dumps([ticket.tenant, ticket.user]),
        )
        if answer.get("answer") == "wait":
            return tuple(request.scopes[int(position) - 1].scope for position in answer["blocking"])
        answered.append(ticket.id)
        return "served" if "reservation" in answer else "refused"

    # ── owners ────────────────────────────────────────────────────────────────────────────────────

    def heartbeat(self) -> None:
        """See Store. Neighbours on this machine are told dead by their process, others by their silence."""
        with _guard():
            owners = self._redis.hgetall(self._prefix + "owners")
        lost = [owner.id for text in owners.values() if gone(owner := Owner(**json.loads(text)), self.owner)]
        if lost:
            failpoints.reach("during_recovery")
        about = json.dumps(asdict(self.owner))
        answer = self._call("beat", about=about, gone=lost, lease_ms=self._lease_ms)
        if self._mark is not None:
            self._mark.on_disk(self._last)
        if answer["freed"]:
            self._serve_if_waiting()

    def close(self) -> None:
        """See Store. Idempotent."""
        self._redis.close()
        if self._mark is not None:
            self._mark.close()
            self._mark = None

    def _check_eviction(self) -> None:
        """A server that may throw keys away would forget spending."""
        import redis

        try:
            policy = self._redis.config_get("maxmemory-policy").get("maxmemory-policy", "noeviction")
        except redis.RedisError:
            # Hosted servers hide their configuration; there the operator has to know.
            return
        if policy != "noeviction":
            raise StoreError(
                f"The Redis server may evict the ledger's keys (maxmemory-policy {policy}).",
                hint="Set maxmemory-policy noeviction, or use a server of its own for the ledger.",
            )

    # ── balances ──────────────────────────────────────────────────────────────────────────────────

    def grant(self, scope: ScopeLimit, tokens: int) -> Balance:
        """See Store."""
        answer = self._fresh("grant", (scope,), tokens=tokens)
        self._serve_if_waiting()
        return balance_of(answer["line"])

    def balances(self, scopes: Sequence[ScopeLimit]) -> tuple[Balance, ...]:
        """See Store."""
        now_s = self._call("look")["now"] / 1000
        keys = [self._key(scope, now_s) for scope in scopes]
        with _guard():
            pipe = self._redis.pipeline(transaction=True)
            for key in keys:
                pipe.hgetall(self._line(line_name(key)))
            records = pipe.execute()
        return tuple(
            _balance(key, scope.limit, record) for key, scope, record in zip(keys, scopes, records, strict=True)
        )

    def all_balances(self, window: str | None = None) -> tuple[Balance, ...]:
        """See Store."""
        now_s = self._call("look")["now"] / 1000
        found = []
        for record in self._records("lines", self._line).values():
            today = self._calendar.window(record["timezone"], now_s).name
            if record["kind"] != "turn" and (window or today) in ("all", record["window"]):
                limit = int(record["limit"]) if record["limit"] else None
                scope = Scope(cast("ScopeKind", record["kind"]), record["key"])
                found.append(_balance((scope, record["timezone"], record["window"]), limit, record))
        return tuple(sorted(found, key=lambda b: (b.window, b.scope)))

    def journal(self) -> Iterable[JournalRow]:
        """See Store."""
        return journal_rows(self._entries())

    def _entries(self) -> Iterator[str]:
        start = 0
        while True:
            with _guard():
                page = self._strings(self._redis.lrange(self._prefix + "journal", start, start + _PAGE - 1))
            yield from page
            if len(page) < _PAGE:
                return
            start += _PAGE

    def verify(self) -> Verification:
        """See Store. Read between two looks at the journal's end, so that nothing moved meanwhile."""
        while True:
            before = self._call("look")["last"]
            rows = list(self.journal())
            lines = self._records("lines", self._line)
            with _guard():
                names = [str(key) for key in self._redis.scan_iter(self._prefix + "call:*", count=_PAGE)]
                calls = {name.removeprefix(self._prefix + "call:"): self._redis.hgetall(name) for name in names}
            if self._call("look")["last"] == before:
                return verify_records(iter(rows), lines, calls)

    def _records(self, members: str, key: Callable[[str], str]) -> dict[str, dict[str, str]]:
        with _guard():
            names = sorted(self._strings(self._redis.smembers(self._prefix + members)))
            pipe = self._redis.pipeline(transaction=True)
            for name in names:
                pipe.hgetall(key(name))
            records = pipe.execute()
        return {name: record for name, record in zip(names, records, strict=True) if record}

    # ── inside ────────────────────────────────────────────────────────────────────────────────────

    def _fresh(self, op: str, scopes: Sequence[ScopeLimit], **arguments: Any) -> dict[str, Any]:
        """A step that names windows: repeated where the server is in another day than was thought."""
        for _ in range(_STALE_TRIES):
            named = [self._scope(scope) for scope in scopes]
            answer = self._call(op, scopes=named, **arguments)
            if not answer.get("stale"):
                return answer
        raise StoreError("The Redis server's clock jumps: no window could be agreed on.")

    def _scope(self, scope: ScopeLimit) -> dict[str, Any]:
        now_s = self._now_ms() / 1000
        key = self._key(scope, now_s)
        start_ms, end_ms = 0, _ALWAYS_MS
        if scope.scope.kind != "turn":
            window = self._calendar.window(scope.timezone, now_s)
            start_ms, end_ms = window.start_s * 1000, window.end_s * 1000
        return {
            "name": line_name(key),
            "kind": scope.scope.kind,
            "key": scope.scope.key,
            "timezone": scope.timezone,
            "window": key[2],
            "limit": scope.limit,
            "start_ms": start_ms,
            "end_ms": end_ms,
        }

    def _key(self, scope: ScopeLimit, now_s: float) -> LineKey:
        if scope.scope.kind == "turn":
            return (scope.scope, scope.timezone, TURN_WINDOW)
        return (scope.scope, scope.timezone, self._calendar.window(scope.timezone, now_s).name)

    def _now_ms(self) -> float:
        return time.monotonic() * 1000 + self._offset_ms

    def _call(self, op: str, **arguments: Any) -> dict[str, Any]:
        """One step on the server."""
        now = None if self._clock is None else int(self._clock.time() * 1000)
        record = {
            "op": op,
            "ledger": self._ledger_id,
            "owner": self.owner.id,
            "seen": self._last,
            "now": now,
            "warn_at": self.settings.warn_at,
            "keep_ms": _KEEP_MS,
            **arguments,
        }
        if op in ("reserve", "dispatch", "settle"):
            failpoints.reach(f"before_{op}_commit")
        with _guard():
            answer: dict[str, Any] = json.loads(self._script(keys=[self._prefix], args=[json.dumps(record)]))
        if op in ("reserve", "dispatch", "settle"):
            failpoints.reach(f"after_{op}_commit")
        self._check(answer, str(arguments.get("id", "")))
        self._last = max(self._last, int(answer["last"]))
        self._offset_ms = answer["now"] - time.monotonic() * 1000
        if self._mark is not None:
            self._mark.advance(self._last)
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
            case "older":
                raise StoreError(
                    f"The Redis ledger ends at entry {answer['last']:,}, not at {self._last:,}: an older copy.",
                    hint="Restore the newer one. Spending would be forgotten, so nothing is admitted.",
                )

    def _line(self, name: str) -> str:
        return f"{self._prefix}line:{name}"

    @staticmethod
    def _strings(values: Iterable[Any]) -> list[str]:
        return [str(value) for value in values]


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
        return redis.Redis.from_url(
            url,
            decode_responses=True,
            socket_timeout=timeout_s,
            socket_connect_timeout=timeout_s,
            health_check_interval=15,
            # A step may have happened although its answer was lost, and a grant must not happen twice.
            retry=Retry(NoBackoff(), 0),
        )
    except ValueError as error:
        raise ConfigError("[budget] store is no Redis address.", hint="Write redis://HOST:PORT/DB.") from error


@contextmanager
def _guard() -> Iterator[None]:
    """What a lost server means."""
    import redis

    try:
        yield
    except redis.RedisError as error:
        raise StoreError(
            f"The token ledger in Redis cannot be used: {type(error).__name__}: {error}.",
            hint="Check that the server runs, is reachable and has memory left.",
        ) from error


def _balance(key: LineKey, limit: int | None, record: dict[str, str]) -> Balance:
    scope, timezone, window = key

    def amount(field: str) -> int:
        return int(record.get(field) or 0)

    granted = amount("granted")
    return Balance(
        scope,
        window,
        timezone,
        None if limit is None else limit + granted,
        amount("used"),
        amount("reserved"),
        amount("estimated"),
        granted,
        amount("cost"),
        amount("unpriced"),
    )
