"""The ledger as the governor sees it: reserve with waiting, settle, and one policy for a store that fails."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Literal

from agentao_gov.budget.store import (
    BudgetEvent,
    BudgetObserver,
    Refusal,
    Refused,
    Settlement,
    Store,
    StoreFailureAllowed,
    StoreSettings,
    Waiting,
)
from agentao_gov.budget.types import (
    CALL_TOKENS_MAX,
    LIMIT_TOKENS_MAX,
    Balance,
    CancelledWait,
    Ledger,
    Reservation,
    ReservationLostError,
    ReserveRequest,
    Scope,
    ScopeLimit,
)
from agentao_gov.clock import SYSTEM_CLOCK, Clock, Deadline
from agentao_gov.errors import (
    BudgetExhaustedError,
    BudgetImpossibleError,
    ConfigError,
    StoreError,
    TurnTimeoutError,
    UsageError,
)

# ── waiting ───────────────────────────────────────────────────────────────────────────────────────

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

    def __init__(self, store: Callable[[], Store]) -> None:
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
            news = self._store().answered(waiting)
            if news:
                self.notice(news)
                pause_s = _ASK_S_MIN
            event.wait(pause_s)
            since_served_s += pause_s
            pause_s = min(_ASK_S_MAX, pause_s * 1.5)
            if since_served_s >= _SERVE_S:
                self._store().serve_waiting()
                since_served_s = 0.0


# ── heartbeat ─────────────────────────────────────────────────────────────────────────────────────


class LedgerHeartbeat:
    """Says every few seconds that this process lives; that also resolves what dead ones left in the ledger.

    A daemon thread of its own, so that no slow call can silence it. `beat` is called every `every_s` seconds.
    """

    def __init__(self, beat: Callable[[], None], every_s: float) -> None:
        self._beat = beat
        self._every_s = every_s
        #: Why the last beat could not be made; None after one that could.
        self.failure: StoreError | None = None
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="ledger-heartbeat", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Ends the thread and waits for it."""
        self._stopped.set()
        if threading.current_thread() is not self._thread:
            self._thread.join(timeout=10)

    def _run(self) -> None:
        while not self._stopped.wait(self._every_s):
            try:
                self._beat()
                self.failure = None
            except StoreError as error:
                self.failure = error
                # The next call of a turn meets the same error and fails closed; here it is only worth a line.
                _log.warning("token ledger heartbeat failed: %s", error)
            except Exception as error:
                # Whatever it is: a heart that stops lets neighbours take what this process holds.
                self.failure = StoreError(f"The token ledger's heartbeat failed: {type(error).__name__}.")
                _log.exception("token ledger heartbeat failed")


#: Postings kept for a store that is down. A process has far fewer calls in flight; beyond it recovery takes over.
_OWED_MAX = 10_000

_log = logging.getLogger(__name__)


class TokenLedger(Ledger):
    """Implements `Ledger` over a store. Thread-safe; one per process.

    `store`: where the record is kept; the ledger closes it. Where it could not be opened yet, what opens it: each
    heartbeat tries, and until then every step raises what the last try did. `clock`: time for waits. `settings`: prices
    and soft thresholds, passed on to the store. `on_store_failure`: whether calls are refused, or allowed without a
    record, while the store cannot answer. `heartbeat_s`: seconds between signs of life, each of which resolves what
    dead processes left; None: there are none, for a ledger that is used for a moment. `close` ends them.
    """

    def __init__(
        self,
        store: Store | Callable[[], Store],
        clock: Clock = SYSTEM_CLOCK,
        *,
        settings: StoreSettings | None = None,
        on_store_failure: Literal["refuse", "allow"] = "refuse",
        heartbeat_s: float | None = 5.0,
    ) -> None:
        self._clock = clock
        self._allow = on_store_failure == "allow"
        self._room = WaitingRoom(lambda: self.store)
        self._settings = settings or StoreSettings()
        self._settings.notice = self._room.notice
        #: Set once, by the constructor or by a heartbeat.
        self._store: Store | None = None
        self._reopen: Callable[[], Store] | None = None
        #: Why the store is not open, as long as it is not.
        self._unopened = StoreError("The token ledger has not been opened.")
        if callable(store):
            self._reopen = store
            with contextlib.suppress(StoreError):
                self._open(store)
        else:
            self._use(store)
        self._lock = threading.Lock()
        #: Calls let through without a record, see `on_store_failure`; under the lock.
        self._unrecorded: set[str] = set()
        #: Who watches; replaced, never changed, so that it is read without the lock.
        self._observers: tuple[BudgetObserver, ...] = ()
        #: Postings that the store could not take, until the heartbeat has made them; under the lock.
        self._owed: dict[tuple[str, str], Callable[[], None]] = {}
        self._heartbeat = LedgerHeartbeat(self._beat, heartbeat_s) if heartbeat_s is not None else None

    @property
    def store(self) -> Store:
        """Where the ledger is kept. Raises StoreError as long as it could not be opened."""
        if self._store is None:
            raise StoreError(self._unopened.message, hint=self._unopened.hint)
        return self._store

    def _open(self, reopen: Callable[[], Store]) -> None:
        try:
            self._use(reopen())
        except StoreError as error:
            self._unopened = error
            raise

    def _use(self, store: Store) -> None:
        store.settings = self._settings
        self._store = store

    def subscribe(self, observer: BudgetObserver) -> None:
        """Tells `observer` of every refusal, crossing of a soft threshold and unrecorded call from now on."""
        with self._lock:
            self._observers = (*self._observers, observer)

    # ── Ledger ────────────────────────────────────────────────────────────────────────────────────

    def reserve(
        self, request: ReserveRequest, *, deadline: Deadline, cancelled: threading.Event | None = None
    ) -> Reservation:
        _check(request)
        try:
            return self._reserve(request, deadline, cancelled)
        except StoreError as error:
            self._let_through("reserve", error, request.id)
            windows = tuple("unrecorded" for _ in request.scopes)
            return Reservation(request.id, request.prompt_tokens, request.output_tokens_max, windows)

    def _reserve(self, request: ReserveRequest, deadline: Deadline, cancelled: threading.Event | None) -> Reservation:
        def withdraw() -> None:
            self.store.withdraw(request.id)

        with self._room.ticket(request.id) as event:
            try:
                while isinstance(answer := self.store.reserve(request), Waiting):
                    self._wait(event, answer.scope, request, deadline, cancelled)
            except StoreError:
                # It may have been granted although the answer was lost.
                self._owe("withdraw", request.id, withdraw)
                raise
            except BaseException:
                # Whatever ended the wait, the place in the queue, or the grant that came with it, is given back.
                self._post("withdraw", request.id, withdraw)
                raise
        if isinstance(answer, Refused):
            raise self._refused(answer)
        return answer

    def _wait(
        self,
        event: threading.Event,
        scope: Scope,
        request: ReserveRequest,
        deadline: Deadline,
        cancelled: threading.Event | None,
    ) -> None:
        end = self._room.wait(event, deadline, cancelled)
        if end != "answered":
            raise self._ended(end, scope, request)

    def dispatch(self, reservation_id: str) -> None:
        if self._is_unrecorded(reservation_id):
            return
        try:
            self.store.dispatch(reservation_id)
        except ReservationLostError:
            raise
        except StoreError as error:
            self._let_through("dispatch", error)

    def extend(self, reservation_id: str, output_tokens: int) -> int:
        if self._is_unrecorded(reservation_id):
            return output_tokens
        try:
            return self.store.extend(reservation_id, output_tokens)
        except ReservationLostError:
            raise
        except StoreError as error:
            self._let_through("extend", error)
            return output_tokens

    def settle(
        self, reservation_id: str, prompt_tokens: int, completion_tokens: int, *, estimated_tokens: int = 0
    ) -> None:
        prompt, completion = _believable(prompt_tokens), _believable(completion_tokens)
        estimated = min(estimated_tokens, prompt + completion)
        self._end(
            "settle",
            reservation_id,
            lambda: self._report(self.store.settle(reservation_id, prompt, completion, estimated)),
        )

    def charge_estimate(self, reservation_id: str, prompt_tokens: int, completion_tokens: int) -> None:
        prompt, completion = _believable(prompt_tokens), _believable(completion_tokens)
        self._end("charge", reservation_id, lambda: self._report(self.store.charge(reservation_id, prompt, completion)))

    def release(self, reservation_id: str) -> None:
        self._end("release", reservation_id, lambda: self.store.release(reservation_id))

    def balances(self, scopes: Sequence[ScopeLimit]) -> tuple[Balance, ...]:
        return self.store.balances(scopes)

    # ── for commands and the service ──────────────────────────────────────────────────────────────

    def grant(self, scope: ScopeLimit, tokens: int) -> Balance:
        """Adds `tokens` to the limit of `scope` for today's window alone; those who wait may go on.

        Raises ConfigError where the scope has no limit, UsageError for an amount that is none.
        """
        if scope.limit is None:
            raise ConfigError(f"{scope.scope} has no limit that a grant could add to.")
        if not 0 < tokens <= LIMIT_TOKENS_MAX:
            raise UsageError(f"A grant is 1 to {LIMIT_TOKENS_MAX:,} tokens, not {tokens:,}.")
        return self.store.grant(scope, tokens)

    def check(self) -> None:
        """Raises StoreError when the last heartbeat could not write to the store: then no call can either."""
        if self._heartbeat is not None and (failure := self._heartbeat.failure) is not None:
            raise failure

    def close(self) -> None:
        """Ends the heartbeat and the store. Idempotent."""
        if self._heartbeat is not None:
            self._heartbeat.stop()
        if self._store is not None:
            self._store.close()

    # ── inside ────────────────────────────────────────────────────────────────────────────────────

    def _refused(self, refused: Refused) -> BudgetExhaustedError | BudgetImpossibleError:
        self._tell(Refusal(refused.scope.kind, refused.scope.key, refused.reason))
        figures = f"{refused.used:,} of {refused.limit:,} tokens used, {refused.reserved:,} reserved"
        name = f"{refused.scope.kind} {refused.scope.key}" if refused.scope.kind != "turn" else "this turn"
        if refused.reason == "impossible":
            return BudgetImpossibleError(
                f"The call needs {refused.asked:,} tokens, more than the whole budget of {name} ({refused.limit:,}).",
                hint="Send less, or raise the limit.",
                scope=str(refused.scope),
                limit_tokens=refused.limit,
                used_tokens=refused.used,
                reserved_tokens=refused.reserved,
                asked_tokens=refused.asked,
            )
        return BudgetExhaustedError(
            f"The token budget of {name} is exhausted: {figures}, the call needs {refused.asked:,}.",
            hint=_hint(refused),
            retry_after_s=refused.retry_after_s,
            scope=str(refused.scope),
            limit_tokens=refused.limit,
            used_tokens=refused.used,
            reserved_tokens=refused.reserved,
            asked_tokens=refused.asked,
        )

    def _ended(
        self, end: Literal["deadline", "cancelled"], scope: Scope, request: ReserveRequest
    ) -> TurnTimeoutError | CancelledWait:
        self._tell(Refusal(scope.kind, scope.key, end))
        asked = request.prompt_tokens + request.output_tokens_min
        if end == "cancelled":
            return CancelledWait(f"The wait for {asked:,} tokens of {scope} was cancelled.")
        return TurnTimeoutError(
            f"The turn's deadline passed while it waited for {asked:,} tokens of {scope}, which others hold.",
            hint="Allow the turn more time, raise the budget, or run fewer turns at once.",
        )

    def _end(self, operation: str, call_id: str, post: Callable[[], None]) -> None:
        if self._forget_unrecorded(call_id):
            return
        try:
            self._post(operation, call_id, post)
        except ReservationLostError:
            raise
        except StoreError as error:
            self._let_through(operation, error)

    def _post(self, operation: str, call_id: str, post: Callable[[], None]) -> None:
        """Posts now; what the store cannot take now is tried again by the heartbeat, or tokens would stay held."""
        try:
            post()
        except ReservationLostError:
            raise
        except StoreError:
            self._owe(operation, call_id, post)
            raise

    def _owe(self, operation: str, call_id: str, post: Callable[[], None]) -> None:
        with self._lock:
            if len(self._owed) < _OWED_MAX:
                self._owed[(operation, call_id)] = post

    def _beat(self) -> None:
        if self._store is None and self._reopen is not None:
            self._open(self._reopen)
        self.store.heartbeat()
        with self._lock:
            owed = dict(self._owed)
        failure: Exception | None = None
        for key, post in owed.items():
            try:
                with contextlib.suppress(ReservationLostError):
                    post()
            except Exception as error:
                # One that never succeeds must not keep the others from being made.
                failure = error
                continue
            with self._lock:
                self._owed.pop(key, None)
        if failure is not None:
            raise failure

    def _report(self, settlement: Settlement) -> None:
        for crossing in settlement.crossings:
            _log.warning(
                "%s has used %s of its %s tokens in window %s: past %d %%",
                crossing.scope,
                f"{crossing.used:,}",
                f"{crossing.limit:,}",
                crossing.window,
                round(crossing.threshold * 100),
            )
            self._tell(crossing)

    def _tell(self, event: BudgetEvent) -> None:
        for observer in self._observers:
            observer(event)

    def _let_through(self, operation: str, error: StoreError, call_id: str | None = None) -> None:
        """Re-raises, unless the operator chose to run without a ledger: then says so, each time."""
        if not self._allow:
            raise error
        _log.warning("token ledger unusable, %s let through unrecorded (on_store_failure=allow): %s", operation, error)
        self._tell(StoreFailureAllowed(operation, error.message))
        if call_id is not None:
            with self._lock:
                self._unrecorded.add(call_id)

    def _is_unrecorded(self, call_id: str) -> bool:
        return self._allow and call_id in self._unrecorded

    def _forget_unrecorded(self, call_id: str) -> bool:
        if not self._is_unrecorded(call_id):
            return False
        with self._lock:
            self._unrecorded.discard(call_id)
        return True


def _check(request: ReserveRequest) -> None:
    if request.prompt_tokens < 0 or not 0 <= request.output_tokens_min <= request.output_tokens_max:
        raise ValueError(f"not a reservation: {request}")


def _believable(tokens: int) -> int:
    if tokens > CALL_TOKENS_MAX:
        _log.warning("a call of %s tokens was reported; %s are counted", f"{tokens:,}", f"{CALL_TOKENS_MAX:,}")
    return min(tokens, CALL_TOKENS_MAX)


def _hint(refused: Refused) -> str:
    if refused.retry_after_s is None:
        return "Raise turn_tokens, or ask for less in one turn."
    return (
        f"The next window opens in {_spell(refused.retry_after_s)}; "
        f"`agentao-gov budget grant {refused.scope} TOKENS` adds to today's."
    )


def _spell(seconds: float) -> str:
    minutes = int(seconds // 60)
    return f"{minutes // 60} h {minutes % 60:02d} min" if minutes >= 60 else f"{minutes} min"
