"""A store that could not be opened yet: for operators who would rather go on without a ledger than stop."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from agentao_gov.budget.store import JournalRow, Refused, Settlement, Store, StoreSettings, Verification, Waiting
from agentao_gov.budget.types import Balance, Reservation, ReserveRequest, ScopeLimit
from agentao_gov.errors import StoreError

__all__ = ["LateStore"]


class LateStore:
    """Implements Store: every step raises what the opening did, until a heartbeat's try succeeds. Thread-safe."""

    def __init__(self, error: StoreError, reopen: Callable[[], Store]) -> None:
        self._error = error
        self._reopen = reopen
        #: Set once.
        self._store: Store | None = None
        self._settings = StoreSettings()

    @property
    def settings(self) -> StoreSettings:
        """What the ledger told this store."""
        return self._settings

    @settings.setter
    def settings(self, settings: StoreSettings) -> None:
        self._settings = settings
        if self._store is not None:
            self._store.settings = settings

    def _opened(self) -> Store:
        if self._store is None:
            raise StoreError(self._error.message, hint=self._error.hint)
        return self._store

    def heartbeat(self) -> None:
        """See Store."""
        if self._store is None:
            store = self._reopen()
            store.settings = self._settings
            self._store = store
        self._store.heartbeat()

    def reserve(self, request: ReserveRequest) -> Reservation | Refused | Waiting:
        """See Store."""
        return self._opened().reserve(request)

    def withdraw(self, reservation_id: str) -> None:
        """See Store."""
        self._opened().withdraw(reservation_id)

    def dispatch(self, reservation_id: str) -> None:
        """See Store."""
        self._opened().dispatch(reservation_id)

    def extend(self, reservation_id: str, output_tokens: int) -> int:
        """See Store."""
        return self._opened().extend(reservation_id, output_tokens)

    def settle(self, reservation_id: str, prompt: int, completion: int, estimated: int) -> Settlement:
        """See Store."""
        return self._opened().settle(reservation_id, prompt, completion, estimated)

    def charge(self, reservation_id: str, prompt: int, completion: int) -> Settlement:
        """See Store."""
        return self._opened().charge(reservation_id, prompt, completion)

    def release(self, reservation_id: str) -> None:
        """See Store."""
        self._opened().release(reservation_id)

    def grant(self, scope: ScopeLimit, tokens: int) -> Balance:
        """See Store."""
        return self._opened().grant(scope, tokens)

    def balances(self, scopes: Sequence[ScopeLimit]) -> tuple[Balance, ...]:
        """See Store."""
        return self._opened().balances(scopes)

    def all_balances(self, window: str | None = None) -> tuple[Balance, ...]:
        """See Store."""
        return self._opened().all_balances(window)

    def answered(self, reservation_ids: Sequence[str]) -> list[str]:
        """See Store."""
        return self._opened().answered(reservation_ids)

    def serve_waiting(self) -> None:
        """See Store."""
        self._opened().serve_waiting()

    def journal(self) -> Iterable[JournalRow]:
        """See Store."""
        return self._opened().journal()

    def verify(self) -> Verification:
        """See Store."""
        return self._opened().verify()

    def close(self) -> None:
        """See Store."""
        if self._store is not None:
            self._store.close()
