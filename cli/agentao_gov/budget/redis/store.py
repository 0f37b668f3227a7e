"""The ledger in Redis or Valkey, for deployments on many machines. Its clock is the server's. Extra: `redis`."""

from __future__ import annotations

import contextlib
import itertools
import json
import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

from agentao_gov.budget import failpoints
from agentao_gov.budget.admission import QueueTicket, fair_order
from agentao_gov.budget.balance import BalanceRecord, balance_name, within_window
from agentao_gov.budget.journal import (
    DAY_MS,
    Checkpoint,
    Cut,
    Totals,
    decode,
    over_by,
    piece,
    plan,
    replay,
    verify_records,
)
from agentao_gov.budget.redis.session import (
    RedisSession,
    WaitingCall,
    balance_of,
    balance_record_of,
    call_record_of,
    crossings_of,
    guard,
    journal_rows,
    link,
    read_checkpoint,
    refused,
    reservation_of,
    write_checkpoint,
)
from agentao_gov.budget.reservation import check_usage
from agentao_gov.budget.store import (
    JournalRow,
    Refused,
    Settlement,
    Store,
    StoreSettings,
    Verification,
    Waiting,
    decode_request,
    encode_request,
)
from agentao_gov.budget.types import (
    Balance,
    Reservation,
    ReservationLostError,
    ReserveRequest,
    ScopeLimit,
)
from agentao_gov.clock import Clock
from agentao_gov.errors import StoreError
from agentao_gov.process.owner import Owner, this_process

_PAGE = 1_000


class RedisReader:
    """Reads balances, journal and records through `session`. Thread-safe; methods are described in Store."""

    def __init__(self, session: RedisSession) -> None:
        self._session = session

    def balances(self, scopes: Sequence[ScopeLimit]) -> tuple[Balance, ...]:
        now_s = self._session.call("look")["now"] / 1000
        keys = [self._session.key(scope, now_s) for scope in scopes]
        with guard():
            pipe = self._session.client.pipeline(transaction=True)
            for key in keys:
                pipe.hgetall(self._line_key(balance_name(key)))
            records = pipe.execute()
        return tuple(
            (balance_record_of(balance_name(key), record) if record else BalanceRecord(key)).public(scope.limit)
            for key, scope, record in zip(keys, scopes, records, strict=True)
        )

    def all_balances(self, window: str | None = None) -> tuple[Balance, ...]:
        now_s = self._session.call("look")["now"] / 1000
        found = []
        for name, record in self._lines().items():
            balance = balance_record_of(name, record)
            scope, timezone, day = balance.key
            today = self._session.calendar.window(timezone, now_s).name
            if scope.kind != "turn" and (window or today) in ("all", day):
                found.append(balance.public(balance.limit))
        return tuple(sorted(found, key=lambda b: (b.window, b.scope)))

    def journal(self) -> Iterable[JournalRow]:
        return journal_rows(self._entries(), self.checkpoint().number)

    def checkpoint(self) -> Checkpoint:
        """What stands for the entries that are no longer there."""
        with guard():
            return read_checkpoint(self._session.client.get(self._session.key_of("checkpoint")))

    def checkpoint_size(self) -> int:
        """Its length, without reading it."""
        with guard():
            return int(self._session.client.strlen(self._session.key_of("checkpoint")))

    def entries_at(self, *places: int) -> list[list[str]]:
        """The entries at these places of the journal, from its beginning or (negative) its end; empty beyond it."""
        with guard():
            pipe = self._session.client.pipeline(transaction=True)
            for place in places:
                pipe.lrange(self._session.key_of("journal"), place, place)
            return [_strings(found) for found in pipe.execute()]

    def oldest(self, count: int) -> list[str]:
        """The first entries of the journal."""
        with guard():
            return _strings(self._session.client.lrange(self._session.key_of("journal"), 0, count - 1))

    def moved(self, sums: Mapping[str, Totals]) -> set[str]:
        """Lines that something was posted to after these sums; one that has expired has not."""
        with guard():
            pipe = self._session.client.pipeline(transaction=False)
            for name in sums:
                pipe.hmget(self._line_key(name), "used", "reserved", "estimated", "granted")
            found = pipe.execute()
        return {
            name
            for (name, then), now in zip(sums.items(), found, strict=True)
            if any(now)
            and [int(figure or 0) for figure in now] != [then.used, then.reserved, then.estimated, then.granted]
        }

    def _entries(self) -> Iterator[str]:
        start = 0
        while True:
            with guard():
                page = _strings(self._session.client.lrange(self._session.prefix + "journal", start, start + _PAGE - 1))
            yield from page
            if len(page) < _PAGE:
                return
            start += _PAGE

    def verify(self) -> Verification:
        """Read between two looks at the journal's end, so that nothing moved meanwhile."""
        while True:
            before = self._session.call("look")["last"]
            checkpoint = self.checkpoint()
            rows = list(self.journal())
            found: list[str] = []
            balances = _readable("balance", self._lines(), balance_record_of, found)
            calls = _readable("reservation", self._calls(), call_record_of, found)
            if self._session.call("look")["last"] == before:
                result = replay(rows, link, checkpoint.replay())
                return verify_records(result, checkpoint, balances, calls, found=found, expires=True)

    def _calls(self) -> dict[str, dict[str, str]]:
        client, prefix = self._session.client, self._session.key_of("call:")
        with guard():
            names = [str(key) for key in client.scan_iter(prefix + "*", count=_PAGE)]
            return {name.removeprefix(prefix): client.hgetall(name) for name in names}

    def _lines(self) -> dict[str, dict[str, str]]:
        with guard():
            names = sorted(_strings(self._session.client.smembers(self._session.key_of("lines"))))
            pipe = self._session.client.pipeline(transaction=True)
            for name in names:
                pipe.hgetall(self._line_key(name))
            records = pipe.execute()
        return {name: record for name, record in zip(names, records, strict=True) if record}

    def _line_key(self, name: str) -> str:
        return self._session.key_of(f"line:{name}")


R = TypeVar("R")


def _readable(
    what: str, records: dict[str, dict[str, str]], read: Callable[[str, dict[str, str]], R], found: list[str]
) -> list[R]:
    """Records as values; one that cannot be read is added to `found` instead."""
    values = []
    for name, record in records.items():
        try:
            values.append(read(name, record))
        except (KeyError, ValueError, TypeError) as error:
            found.append(f"{what} {name} cannot be read: {type(error).__name__} {error}")
    return values


def _strings(values: Iterable[Any]) -> list[str]:
    return [str(value) for value in values]


#: Balances looked for with each heartbeat: one that a server threw away is noticed before anybody asks for it.
_SAMPLE = 50
#: How long one process may serve the queue before another may think that it died.
_SERVING_MS = 2_000

_UNLOCK = """
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
if redis.call('DEL', KEYS[2]) == 1 then redis.call('PEXPIRE', KEYS[1], ARGV[2]) return 1 end
redis.call('DEL', KEYS[1])
return 0
"""


class RedisStore(Store):
    """Implements Store on a Redis or Valkey server at `url`. Thread-safe; methods are described in Store.

    `settings` are what the ledger sets later. `clock` replaces the server's, for tests. `name` tells ledgers on one
    server apart. `lease_s`: seconds of silence after which an owner on another machine is taken for dead. `timeout_s`:
    seconds to wait for the server. `mark` is a file on this machine that remembers how far the ledger had come: a
    server that was restored from an older copy, or lost its last writes, is refused. `retain_s`: seconds that entries
    of the journal are kept. Raises StoreError, and ConfigError for an address that is none.
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
        retain_s: float = 30 * 86_400.0,
    ) -> None:
        self.owner: Owner = this_process()
        self._session = RedisSession(url, name, self.owner.id, clock, timeout_s)
        self.settings = settings or StoreSettings()
        self._reader = RedisReader(self._session)
        self._redis = self._session.client
        self._unlock = self._redis.register_script(_UNLOCK)
        self._retain_ms = retain_s * 1000
        self._lease_ms = int(lease_s * 1000)
        self._answered = -1
        self._closed = False
        if mark is not None:
            self._session.admit(mark)
        self.heartbeat()

    @property
    def settings(self) -> StoreSettings:
        """What the ledger told this store."""
        return self._session.settings

    @settings.setter
    def settings(self, settings: StoreSettings) -> None:
        self._session.settings = settings

    # ── calls ─────────────────────────────────────────────────────────────────────────────────────

    def reserve(self, request: ReserveRequest) -> Reservation | Refused | Waiting:
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
        return refused(
            answer, request, within_window(self._session.calendar, self._session.key(blocking, now_s), now_s)
        )

    def _ask(self, request: ReserveRequest, *, direct: bool = False) -> dict[str, Any]:
        stored = json.dumps([self.owner.id, encode_request(request)])
        return self._session.fresh(
            "reserve", request.scopes, request=self._request(request), direct=direct, stored=stored
        )

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
        if self._session.call("withdraw", id=reservation_id)["freed"]:
            self._serve_if_waiting()

    def dispatch(self, reservation_id: str) -> None:
        answer = self._session.call("dispatch", id=reservation_id)
        if answer.get("error") == "state":
            raise ReservationLostError(f"Reservation {reservation_id} is {answer['state']} and cannot be sent.")

    def extend(self, reservation_id: str, output_tokens: int) -> int:
        return int(self._session.call("extend", id=reservation_id, tokens=output_tokens)["more"])

    def settle(self, reservation_id: str, prompt: int, completion: int, estimated: int) -> Settlement:
        failpoints.reach("before_settle")
        check_usage(prompt, completion, estimated)
        return self._finished(
            self._session.call("settle", id=reservation_id, prompt=prompt, completion=completion, estimated=estimated)
        )

    def charge(self, reservation_id: str, prompt: int, completion: int) -> Settlement:
        check_usage(prompt, completion, 0)
        return self._finished(self._session.call("charge", id=reservation_id, prompt=prompt, completion=completion))

    def release(self, reservation_id: str) -> None:
        self._finished(self._session.call("release", id=reservation_id))

    def _finished(self, answer: dict[str, Any]) -> Settlement:
        if answer.get("freed") and answer["waiting_calls"]:
            self.serve_waiting()
        return Settlement(bool(answer["posted"]), crossings_of(answer))

    # ── waiting ───────────────────────────────────────────────────────────────────────────────────

    def answered(self, reservation_ids: Sequence[str]) -> list[str]:
        with guard():
            count = int(self._redis.hget(self._session.prefix + "meta", "answered") or 0)
            if count == self._answered:
                return []
            self._answered = count
            waiting = set(map(str, self._redis.zrange(self._session.prefix + "waiters", 0, -1)))
        return [call_id for call_id in reservation_ids if call_id not in waiting]

    def _waits(self, call_id: str) -> bool:
        with guard():
            return self._redis.zscore(self._session.prefix + "waiters", call_id) is not None

    def _serve_if_waiting(self) -> None:
        with guard():
            waiting = self._redis.zcard(self._session.prefix + "waiters")
        if waiting:
            self.serve_waiting()

    def serve_waiting(self) -> None:
        """One process at a time; whoever comes meanwhile makes it look once more."""
        lock, again, token = self._session.prefix + "serving", self._session.prefix + "again", secrets.token_hex(8)
        with guard():
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
        stored = self._redis.hgetall(self._session.prefix + "waiting")
        numbers = self._redis.zrange(self._session.prefix + "waiters", 0, -1, withscores=True)
        served = {
            (tenant, user): int(number)
            for name, number in self._redis.hgetall(self._session.prefix + "served").items()
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
            tickets.append(QueueTicket(request.id, int(number), request.tenant, request.user, ()))
        order = [requests[ticket.id] for ticket in fair_order(tickets, served)]
        # An empty list comes back as an object.
        answered = list(self._session.serve([self._waiting(owner, request) for owner, request in order]))
        if answered:
            self.settings.notice(answered)

    def _waiting(self, owner: str, request: ReserveRequest) -> WaitingCall:
        tenant, user = json.dumps([request.tenant, None]), json.dumps([request.tenant, request.user])
        return WaitingCall(self._request(request), request.scopes, owner, tenant, user)

    # ── owners ────────────────────────────────────────────────────────────────────────────────────

    def heartbeat(self) -> None:
        """Neighbours on this machine are told dead by their process, others by their silence."""
        with guard():
            owners = self._redis.hgetall(self._session.prefix + "owners")
        self._session.check_eviction()
        lost = [owner.id for text in owners.values() if (owner := Owner(**json.loads(text))).gone]
        if lost:
            failpoints.reach("during_recovery")
        self._cut_old(self._beat(lost))
        self._session.keep_mark()

    def _cut_old(self, now_ms: float) -> None:
        """Replaces the oldest part of the journal by a checkpoint where enough is older than is kept."""
        count = piece(self._reader.checkpoint_size())
        first, nth, last = (self._times(texts) for texts in self._reader.entries_at(0, count - 1, -1))
        # By the ledger's own time: a clock that is ahead for a moment makes nothing old.
        before_ms = min([now_ms, *last]) - self._retain_ms
        if not any(at_ms < before_ms for at_ms in nth) and not any(at_ms < before_ms - DAY_MS for at_ms in first):
            return
        checkpoint = self._reader.checkpoint()
        texts = self._reader.oldest(count)
        times = list(itertools.takewhile(lambda at_ms: at_ms < before_ms, self._times(texts)))
        rows = list(journal_rows(texts[: len(times)], checkpoint.number))
        if not rows:
            return
        held = self._session.call("held")["names"]
        planned = plan(checkpoint, rows, over_by(times[-1]), held, link, moved=self._reader.moved)
        if planned is not None:
            self.cut(planned)

    def cut(self, planned: Cut) -> None:
        """Puts the checkpoint in the place of what it adds up, unless a neighbour or a new call came between."""
        self._session.call(
            "cut",
            before=planned.before,
            number=planned.after.number,
            checkpoint=write_checkpoint(planned.after),
            calls=planned.calls,
            names=list(planned.over),
            note=planned.after.note(),
        )

    @staticmethod
    def _times(texts: list[str]) -> list[int]:
        return [decode(text).at_ms for _, text, _ in journal_rows(texts, 0)]

    def _beat(self, lost: list[str]) -> float:
        """Returns the server's time in milliseconds."""
        about = json.dumps(asdict(self.owner))
        answer = self._session.call("beat", about=about, gone=lost, lease_ms=self._lease_ms, sample=_SAMPLE)
        if answer["freed"]:
            self._serve_if_waiting()
        return float(answer["now"])

    def close(self) -> None:
        """What is still held is resolved as if the owner had died. Idempotent."""
        if self._closed:
            return
        self._closed = True
        # A server that is gone is no reason not to end: then a neighbour resolves what is left.
        with contextlib.suppress(StoreError):
            self._beat([self.owner.id])
        self._session.close()

    # ── balances ──────────────────────────────────────────────────────────────────────────────────

    def grant(self, scope: ScopeLimit, tokens: int) -> Balance:
        answer = self._session.fresh("grant", (scope,), tokens=tokens)
        self._serve_if_waiting()
        return balance_of(answer["balance"])

    def balances(self, scopes: Sequence[ScopeLimit]) -> tuple[Balance, ...]:
        return self._reader.balances(scopes)

    def all_balances(self, window: str | None = None) -> tuple[Balance, ...]:
        return self._reader.all_balances(window)

    def journal(self) -> Iterable[JournalRow]:
        return self._reader.journal()

    def verify(self) -> Verification:
        return self._reader.verify()
