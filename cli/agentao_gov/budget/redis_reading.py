"""Balances, journal and proof of a ledger in Redis: everything that only reads."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, cast

from agentao_gov.budget.balance import LineKey, line_name
from agentao_gov.budget.journal import Checkpoint, Totals
from agentao_gov.budget.redis_keys import journal_rows, read_checkpoint, verify_records
from agentao_gov.budget.redis_session import RedisSession, guard
from agentao_gov.budget.store import JournalRow, Verification
from agentao_gov.budget.types import Balance, Scope, ScopeKind, ScopeLimit

__all__ = ["RedisReader"]

_PAGE = 1_000


class RedisReader:
    """Reads through a session. Thread-safe."""

    def __init__(self, session: RedisSession) -> None:
        self._session = session

    def balances(self, scopes: Sequence[ScopeLimit]) -> tuple[Balance, ...]:
        """See Store."""
        now_s = self._session.call("look")["now"] / 1000
        keys = [self._session.line(scope, now_s) for scope in scopes]
        with guard():
            pipe = self._session.client.pipeline(transaction=True)
            for key in keys:
                pipe.hgetall(self._line_key(line_name(key)))
            records = pipe.execute()
        return tuple(
            _balance(key, scope.limit, record) for key, scope, record in zip(keys, scopes, records, strict=True)
        )

    def all_balances(self, window: str | None = None) -> tuple[Balance, ...]:
        """See Store."""
        now_s = self._session.call("look")["now"] / 1000
        found = []
        for record in self._lines().values():
            today = self._session.calendar.window(record["timezone"], now_s).name
            if record["kind"] != "turn" and (window or today) in ("all", record["window"]):
                limit = int(record["limit"]) if record["limit"] else None
                scope = Scope(cast("ScopeKind", record["kind"]), record["key"])
                found.append(_balance((scope, record["timezone"], record["window"]), limit, record))
        return tuple(sorted(found, key=lambda b: (b.window, b.scope)))

    def journal(self) -> Iterable[JournalRow]:
        """See Store."""
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
        """See Store. Read between two looks at the journal's end, so that nothing moved meanwhile."""
        while True:
            before = self._session.call("look")["last"]
            checkpoint = self.checkpoint()
            rows = list(self.journal())
            lines = self._lines()
            calls = self._calls()
            if self._session.call("look")["last"] == before:
                return verify_records(checkpoint, rows, lines, calls)

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


def _strings(values: Iterable[Any]) -> list[str]:
    return [str(value) for value in values]


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
