"""What only callers of the ledger meet; the errors a user can meet stand in `agentao_gov.errors`."""

from __future__ import annotations

from agentao_gov.errors import GovError, StoreError

__all__ = ["CancelledWait", "ReservationLostError"]


class CancelledWait(GovError):
    """Raised when the `cancelled` event ends a wait for tokens: nothing is held any more."""

    code = "cancelled"
    exit_code = 130
    http_status = 409


class ReservationLostError(StoreError):
    """Raised when a reservation is no longer its owner's: reclaimed after silence, or never there.

    A call whose `dispatch` raises this must not be sent: its tokens were given back and may be spent already.
    """
