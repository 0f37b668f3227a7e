"""From the core's refusal to the error its caller meets, with the figures and the next step."""

from __future__ import annotations

from agentao_gov.errors import (
    CapacityError,
    DrainingError,
    GovError,
    InternalError,
    QueueFullError,
    QueueTimeoutError,
    SessionNotFoundError,
    SessionStuckError,
    StoreError,
    TenantSessionLimitError,
    UserSessionLimitError,
)
from agentao_gov.pool.effects import Refuse

__all__ = ["error_of"]


def error_of(refusal: Refuse, cause: GovError | None = None) -> GovError:
    """The error for one refusal. `cause`: why the opening failed, where it did."""
    key, retry_after_s = refusal.key, refusal.retry_after_s
    figures = f"{refusal.busy} turns run, {refusal.waiting} wait, {refusal.resident} sessions are in memory"
    if refusal.reason == "open_failed":
        return cause if cause is not None else InternalError(f"Session {key} could not be opened.")
    if refusal.reason == "stuck":
        return SessionStuckError(str(key))
    if refusal.reason == "deleted":
        return SessionNotFoundError(f"Session {key.session!r} was deleted while the turn waited for it.")
    if refusal.reason == "store":
        return StoreError(
            "No session can leave memory, because the session directory cannot be written.",
            hint="See the log for the reason; make room under `[state] dir`.",
            retry_after_s=retry_after_s,
        )
    capacity = _CAPACITY.get(refusal.reason, QueueTimeoutError)
    return capacity(_text(refusal, figures), hint=_HINTS.get(refusal.reason), retry_after_s=retry_after_s)


def _text(refusal: Refuse, figures: str) -> str:
    tenant = refusal.key.tenant
    match refusal.reason:
        case "draining":
            return "The service is shutting down and takes no new turns."
        case "queue_full":
            return f"The waiting room is full: {figures}."
        case "tenant_session_limit":
            return f"All of the {refusal.limit} sessions that tenant {tenant!r} may have at once are busy."
        case "user_session_limit":
            return f"All of the {refusal.limit} sessions that a user of tenant {tenant!r} may have at once are busy."
        case "open_timeout":
            return f"Session {refusal.key.session!r} was not ready after {refusal.waited_s:.1f} s."
        case _:
            return f"The turn waited {refusal.waited_s:.1f} s without getting a place: {figures}."


_CAPACITY: dict[str, type[CapacityError]] = {
    "draining": DrainingError,
    "queue_full": QueueFullError,
    "queue_timeout": QueueTimeoutError,
    "tenant_session_limit": TenantSessionLimitError,
    "user_session_limit": UserSessionLimitError,
    "open_timeout": QueueTimeoutError,
}
_HINTS = {
    "queue_full": "Raise `[pool] max_busy` or `queue_limit`, or send fewer turns at once.",
    "queue_timeout": "Raise `[pool] max_busy` or `queue_timeout`, or send fewer turns at once.",
    "tenant_session_limit": "Wait for a turn to end, or raise the tenant's `max_sessions`.",
    "user_session_limit": "Wait for a turn to end, or raise the tenant's `max_sessions_per_user`.",
    "open_timeout": "See the start-up time limits of the profile's MCP servers.",
}
