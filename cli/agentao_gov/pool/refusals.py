"""From the core's refusal to the error its caller meets: one telling for the tenant, one with all figures."""

from __future__ import annotations

from agentao_gov.errors import (
    DrainingError,
    GovError,
    InternalError,
    QueueFullError,
    QueueTimeoutError,
    SessionNotFoundError,
    SessionStuckError,
    StoreError,
    TenantSessionLimitError,
    TurnTimeoutError,
    UserSessionLimitError,
)
from agentao_gov.pool.effects import Refuse

__all__ = ["error_of"]

_OPENING_HANGS = "The building of its agent hangs: see the profile's MCP servers and the session directory's disk."


def error_of(refusal: Refuse, cause: GovError | None = None) -> GovError:
    """The error for one refusal. `cause`: why the opening failed, where it did.

    How full the pool is, and what would make it larger, is for the operator: a tenant must not learn others' load.
    """
    session, tenant, waited_s = refusal.key.session, refusal.key.tenant, refusal.waited_s
    figures = f"{refusal.busy} turns run, {refusal.waiting} wait, {refusal.resident} sessions are in memory"
    retry_after_s = refusal.retry_after_s
    match refusal.reason:
        case "draining":
            return DrainingError("The service is shutting down and takes no new turns.", retry_after_s=retry_after_s)
        case "queue_full":
            return QueueFullError(
                f"The waiting room is full: {figures}.",
                hint="Raise `[pool] max_busy` or `queue_limit`, or send fewer turns at once.",
                outside="Too many turns are waiting already.",
                retry_after_s=retry_after_s,
            )
        case "queue_timeout":
            return QueueTimeoutError(
                f"The turn waited {waited_s:.1f} s without getting a place: {figures}.",
                hint="Raise `[pool] max_busy` or `queue_timeout`, or send fewer turns at once.",
                outside=f"The turn waited {waited_s:.1f} s without getting a place.",
                retry_after_s=retry_after_s,
            )
        case "tenant_session_limit":
            return TenantSessionLimitError(
                f"All of the {refusal.limit} sessions that tenant {tenant!r} may have at once are busy.",
                hint="Wait for a turn to end, or raise the tenant's `max_sessions`.",
                retry_after_s=retry_after_s,
            )
        case "user_session_limit":
            return UserSessionLimitError(
                f"All of the {refusal.limit} sessions that a user of tenant {tenant!r} may have at once are busy.",
                hint="Wait for a turn to end, or raise the tenant's `max_sessions_per_user`.",
                retry_after_s=retry_after_s,
            )
        case "open_timeout":
            return TurnTimeoutError(
                f"Session {session!r} was not ready after {waited_s:.1f} s, so the turn met its time limit.",
                hint=_OPENING_HANGS,
            )
        case "open_hung":
            return TurnTimeoutError(
                f"Session {session!r} was not ready within the limit for openings; the turn waited {waited_s:.1f} s.",
                hint=_OPENING_HANGS,
            )
        case "store":
            return StoreError(
                "No session can leave memory, because the session directory cannot be written.",
                hint="See the log for the reason; make room under `[state] dir`.",
                retry_after_s=retry_after_s,
            )
        case "stuck":
            return SessionStuckError(str(refusal.key))
        case "deleted":
            return SessionNotFoundError(f"Session {session!r} was deleted while the turn waited for it.")
        case "open_failed":
            return cause if cause is not None else InternalError(f"Session {refusal.key} could not be opened.")
