"""The ledger as a session process has it: every reservation goes up the wire to the owner's.

So there is one ledger per service whatever its store, one queue for those who wait, and a process that runs a tenant's
tools holds neither the ledger's file nor its password. The owner names the scopes itself; what is sent is the amount.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from agentao.acp.server import AcpServer, JsonRpcHandlerError, PendingRequestCancelled

from agentao_gov.budget.types import Balance, Reservation, ReservationState, ReserveRequest, Scope, ScopeLimit
from agentao_gov.clock import Deadline
from agentao_gov.errors import StoreError
from agentao_gov.worker.wire import LEDGER, decode_error

#: The owner answers in milliseconds; longer means it hangs, and a hung store is one that cannot be used.
_ANSWER_S_MAX = 30.0


class WireLedger:
    """Implements `Ledger` over the wire. Thread-safe."""

    def __init__(self, server: AcpServer) -> None:
        self._server = server

    def reserve(
        self, request: ReserveRequest, *, deadline: Deadline, cancelled: threading.Event | None = None
    ) -> Reservation:
        """See Ledger."""
        asked = {
            "id": request.id,
            "prompt_tokens": request.prompt_tokens,
            "output_tokens_min": request.output_tokens_min,
            "output_tokens_max": request.output_tokens_max,
            "remaining_s": min(deadline.remaining_s(), 1e9),
        }
        stop: Callable[[], bool] | None = cancelled.is_set if cancelled is not None else None
        answer = self._call("reserve", asked, deadline.remaining_s() + _ANSWER_S_MAX, stop)
        return Reservation(
            id=request.id,
            prompt_tokens=int(answer["prompt_tokens"]),
            output_tokens=int(answer["output_tokens"]),
            windows=tuple(answer["windows"]),
            state=ReservationState(answer["state"]),
        )

    def dispatch(self, reservation_id: str) -> None:
        """See Ledger."""
        self._call("dispatch", {"id": reservation_id})

    def extend(self, reservation_id: str, output_tokens: int) -> int:
        """See Ledger."""
        return int(self._call("extend", {"id": reservation_id, "output_tokens": output_tokens})["granted"])

    def settle(
        self, reservation_id: str, prompt_tokens: int, completion_tokens: int, *, estimated_tokens: int = 0
    ) -> None:
        """See Ledger."""
        used = {"id": reservation_id, "prompt_tokens": prompt_tokens, "completion_tokens": completion_tokens}
        self._call("settle", {**used, "estimated_tokens": estimated_tokens})

    def charge_estimate(self, reservation_id: str, prompt_tokens: int, completion_tokens: int) -> None:
        """See Ledger."""
        used = {"id": reservation_id, "prompt_tokens": prompt_tokens, "completion_tokens": completion_tokens}
        self._call("charge_estimate", used)

    def release(self, reservation_id: str) -> None:
        """See Ledger."""
        self._call("release", {"id": reservation_id})

    def balances(self, scopes: Sequence[ScopeLimit]) -> tuple[Balance, ...]:
        """See Ledger. The owner answers for the scopes of the turn in flight, with their true limits."""
        del scopes
        answer = self._call("balances", {})
        return tuple(
            Balance(**{**entry, "scope": Scope(entry["scope"]["kind"], entry["scope"]["key"])})
            for entry in answer["balances"]
        )

    def _call(
        self,
        operation: str,
        params: Mapping[str, Any],
        within_s: float = _ANSWER_S_MAX,
        stop: Callable[[], bool] | None = None,
    ) -> Any:
        """Asks and waits. A set `stop` is passed on, and the owner answers with CancelledWait."""
        pending = self._server.call(LEDGER, {"op": operation, **params})
        try:
            if stop is not None:
                told = False
                # Polled, because an event cannot be waited for together with an answer; only while tokens are waited
                # for, which is rare.
                while not pending.event.wait(0.02):
                    if stop() and not told:
                        told = True
                        self._server.write_notification(LEDGER, {"op": "cancel", "id": params["id"]})
            return pending.wait(within_s)
        except JsonRpcHandlerError as error:
            raise decode_error(error.data or {}, str(error.message)) from None
        except (TimeoutError, PendingRequestCancelled, OSError) as error:
            raise StoreError(f"The ledger cannot be reached: {error}") from error
