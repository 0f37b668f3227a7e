"""Waiting for tokens: parks a thread until its call is answered, its deadline passes or its turn is cancelled."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Literal

from agentao_gov.budget.store import Store
from agentao_gov.budget.types import ReserveRequest, Scope, ScopeLimit
from agentao_gov.clock import Deadline

__all__ = ["WaitingRoom", "decode_request", "encode_request"]


#: How often a parked thread looks at its deadline and its `cancelled` event: two events cannot be waited for at once.
_SLICE_S = 0.05
#: How often one of the parked threads asks the store for news from other processes; grows while there is none.
_ASK_S_MIN = 0.001
_ASK_S_MAX = 0.02
#: How often the queue is looked at even without news: midnight and changed limits make no noise.
_SERVE_S = 0.5

End = Literal["answered", "deadline", "cancelled"]


class WaitingRoom:
    """The threads of this process that wait for tokens. One of them at a time watches for other processes."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._lock = threading.Lock()
        #: Who waits; under the lock.
        self._tickets: dict[str, threading.Event] = {}
        #: Held by the thread that asks the store for news.
        self._watch = threading.Lock()

    def notice(self, ids: Iterable[str]) -> None:
        """Wakes those of `ids` that wait here."""
        for call_id in ids:
            with self._lock:
                event = self._tickets.get(call_id)
            if event is not None:
                event.set()

    @contextmanager
    def ticket(self, call_id: str) -> Iterator[threading.Event]:
        """Registers before the store is asked, so that no answer can slip past."""
        event = threading.Event()
        with self._lock:
            self._tickets[call_id] = event
        try:
            yield event
        finally:
            with self._lock:
                self._tickets.pop(call_id, None)

    def wait(self, event: threading.Event, deadline: Deadline, cancelled: threading.Event | None) -> End:
        """Parks until one of the three ends. Another process's answer is seen within about 20 ms."""
        while True:
            if event.is_set():
                event.clear()
                return "answered"
            if cancelled is not None and cancelled.is_set():
                return "cancelled"
            if deadline.passed:
                return "deadline"
            if self._watch.acquire(blocking=False):
                try:
                    self._watch_store(event, deadline, cancelled)
                finally:
                    self._watch.release()
            else:
                event.wait(min(_SLICE_S, max(0.001, deadline.remaining_s())))

    def _watch_store(self, event: threading.Event, deadline: Deadline, cancelled: threading.Event | None) -> None:
        pause_s, since_served_s = _ASK_S_MIN, 0.0
        while not (event.is_set() or deadline.passed or (cancelled is not None and cancelled.is_set())):
            with self._lock:
                waiting = [call_id for call_id, parked in self._tickets.items() if not parked.is_set()]
            news = self._store.answered(waiting)
            if news:
                self.notice(news)
                pause_s = _ASK_S_MIN
            event.wait(pause_s)
            since_served_s += pause_s
            pause_s = min(_ASK_S_MAX, pause_s * 1.5)
            if since_served_s >= _SERVE_S:
                self._store.serve_waiting()
                since_served_s = 0.0


# A waiting call as text, so that any process can serve it.


def encode_request(request: ReserveRequest) -> str:
    """A waiting call as text, for any process to serve."""
    scopes = [[s.scope.kind, s.scope.key, s.limit, s.timezone] for s in request.scopes]
    return json.dumps(
        [
            request.id,
            scopes,
            request.prompt_tokens,
            request.output_tokens_min,
            request.output_tokens_max,
            request.tenant,
            request.user,
            request.model,
        ]
    )


def decode_request(text: str) -> ReserveRequest:
    """What `encode_request` wrote."""
    call_id, scopes, *rest = json.loads(text)
    limits = tuple(ScopeLimit(Scope(kind, key), limit, timezone) for kind, key, limit, timezone in scopes)
    return ReserveRequest(call_id, limits, *rest)
