"""Every error a user can meet, drawn as one tree.

    GovError                            code, exit_code, http_status, hint
    ├── UsageError                      wrong flags or arguments
    ├── ConfigError                     the file, profile, tenant or time zone is wrong
    │   └── UnknownProfileError         no profile of that name; carries the names there are
    ├── BadRequestError                 an HTTP body or header that cannot be understood
    │   └── TooLargeError               a body or message over its limit
    ├── AuthError                       no API key, or one that names no tenant
    ├── ForbiddenOriginError            a web page elsewhere reached for a service without keys
    ├── ProfileNotAllowedError          the tenant may not use this profile
    ├── NotFoundError                   no such path
    │   └── SessionNotFoundError        no such session, or another tenant's
    ├── CapacityError                   no room now; carries counts and a Retry-After
    │   ├── TenantSessionLimitError     every session of the tenant is busy and the cap is reached
    │   ├── UserSessionLimitError       the same for one user
    │   ├── QueueFullError              the waiting room is full
    │   ├── QueueTimeoutError           waited as long as allowed
    │   └── DrainingError               the service is on its way down
    ├── BudgetError                     a token budget says no; carries scope and figures
    │   ├── BudgetExhaustedError        spent for this window: retry when the next one opens
    │   └── BudgetImpossibleError       larger than the whole budget: retrying never helps
    ├── StoreError                      the ledger or the session archive cannot be used
    ├── ModelError                      the model or its provider failed
    ├── TurnTimeoutError                the turn met its deadline
    ├── SessionStuckError               an earlier turn never came back: the session is quarantined
    └── InternalError                   ours to mend; the traceback is in a file

Each class maps to exactly one exit code and one HTTP status (`contract.md`, "Exit codes" and "HTTP service").
`message` says what happened with the figures, `hint` says what to do next; both are written for the operator.
`public_message` is what a tenant may read over HTTP: never the hint, which is about the operator's files.
"""

from __future__ import annotations

from typing import ClassVar

__all__ = [
    "AuthError",
    "BadRequestError",
    "BudgetError",
    "BudgetExhaustedError",
    "BudgetImpossibleError",
    "CapacityError",
    "ConfigError",
    "DrainingError",
    "ForbiddenOriginError",
    "GovError",
    "InternalError",
    "ModelError",
    "NotFoundError",
    "ProfileNotAllowedError",
    "QueueFullError",
    "QueueTimeoutError",
    "SessionNotFoundError",
    "SessionStuckError",
    "StoreError",
    "TenantSessionLimitError",
    "TooLargeError",
    "TurnTimeoutError",
    "UnknownProfileError",
    "UsageError",
    "UserSessionLimitError",
]


class GovError(Exception):
    """The root: `code` is the machine's word for it, `hint` the operator's next step."""

    code: ClassVar[str] = "internal_error"
    exit_code: ClassVar[int] = 10
    http_status: ClassVar[int] = 500
    #: OpenAI's error `type` for this code.
    http_type: ClassVar[str] = "server_error"
    #: What a tenant reads instead of the message, where that names the operator's files, addresses or providers.
    told_outside: ClassVar[str | None] = None

    def __init__(
        self,
        message: str,
        *,
        hint: str | None = None,
        outside: str | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        """`outside`: what a tenant reads instead of this one message."""
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.outside = outside
        #: Seconds after which trying again may help; None where waiting never helps.
        self.retry_after_s = retry_after_s

    def __str__(self) -> str:
        return f"{self.message} {self.hint}" if self.hint else self.message

    @property
    def public_message(self) -> str:
        """Safe for a tenant; `str(error)` is for the log and the operator's own terminal."""
        return self.outside or self.told_outside or self.message


class UsageError(GovError):
    """Raised when flags or arguments make no sense together."""

    code = "usage"
    exit_code = 2
    http_status = 400
    http_type = "invalid_request_error"


class ConfigError(GovError):
    """Raised when a deployment file, a profile, a tenant or a time zone is wrong."""

    code = "invalid_configuration"
    exit_code = 3
    told_outside: ClassVar[str | None] = "The service's configuration is wrong; its operator has the details."


class UnknownProfileError(ConfigError):
    """Raised when no profile of the given name exists."""

    code = "profile_not_allowed"
    http_status = 403
    http_type = "permission_error"
    told_outside = None

    def __init__(self, name: str, known: list[str], *, hint: str | None = None) -> None:
        super().__init__(f"There is no profile {name!r}; there are: {', '.join(sorted(known)) or 'none'}.", hint=hint)
        self.name = name
        self.known = sorted(known)


class BadRequestError(GovError):
    """Raised when an HTTP request cannot be understood."""

    code = "invalid_request"
    exit_code = 2
    http_status = 400
    http_type = "invalid_request_error"

    def __init__(self, message: str, *, param: str | None = None, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.param = param


class TooLargeError(BadRequestError):
    """Raised when a body or a message is over its limit."""

    code = "too_large"
    http_status = 413


class AuthError(GovError):
    """Raised when a request carries no API key, or one that names no tenant."""

    code = "invalid_api_key"
    exit_code = 3
    http_status = 401
    http_type = "authentication_error"


class ForbiddenOriginError(GovError):
    """Raised when a web page elsewhere reaches for a service that asks for no key."""

    code = "forbidden_origin"
    exit_code = 3
    http_status = 403
    http_type = "permission_error"

    def __init__(self, message: str) -> None:
        super().__init__(message, hint="Create a key with `agentao-gov tenant new NAME`.")


class ProfileNotAllowedError(GovError):
    """Raised when the tenant may not use the profile it asked for."""

    code = "profile_not_allowed"
    exit_code = 3
    http_status = 403
    http_type = "permission_error"


class NotFoundError(GovError):
    """Raised when nothing lives at a path."""

    code = "not_found"
    exit_code = 2
    http_status = 404
    http_type = "invalid_request_error"


class SessionNotFoundError(NotFoundError):
    """Raised when a session does not exist, or belongs to another tenant: the two look alike on purpose."""

    code = "session_not_found"


class CapacityError(GovError):
    """Raised when there is no room now; `retry_after_s` says when trying again makes sense."""

    code = "capacity"
    exit_code = 8
    http_status = 429
    http_type = "rate_limit_error"


class TenantSessionLimitError(CapacityError):
    """Raised when a tenant is at its cap and every session of it is busy."""

    code = "tenant_session_limit"


class UserSessionLimitError(CapacityError):
    """Raised when a user is at their cap and every session of theirs is busy."""

    code = "user_session_limit"


class QueueFullError(CapacityError):
    """Raised when the waiting room for turns is full."""

    code = "queue_full"


class QueueTimeoutError(CapacityError):
    """Raised when a turn waited `queue_timeout` without getting a place."""

    code = "queue_timeout"


class DrainingError(CapacityError):
    """Raised when the service takes no new turns because it is shutting down."""

    code = "draining"
    http_status = 503
    http_type = "server_error"


class BudgetError(GovError):
    """A token budget says no. Fields: the scope that refused, its limit and what is already used and reserved."""

    exit_code = 6
    http_type = "insufficient_quota"

    def __init__(
        self,
        message: str,
        *,
        scope: str,
        limit_tokens: int,
        used_tokens: int,
        reserved_tokens: int,
        asked_tokens: int,
        hint: str | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message, hint=hint, retry_after_s=retry_after_s)
        self.scope = scope
        self.limit_tokens = limit_tokens
        self.used_tokens = used_tokens
        self.reserved_tokens = reserved_tokens
        self.asked_tokens = asked_tokens


class BudgetExhaustedError(BudgetError):
    """Raised when a budget is spent for its window; `retry_after_s` is the time until the next window."""

    code = "budget_exhausted"
    http_status = 429


class BudgetImpossibleError(BudgetError):
    """Raised when a request is larger than the whole budget."""

    code = "budget_impossible"
    http_status = 400


class StoreError(GovError):
    """Raised when the ledger or another store cannot be read or written; no model call is made then."""

    code = "ledger_unavailable"
    exit_code = 9
    http_status = 503
    told_outside = "A store of the service cannot be used at the moment."


class ModelError(GovError):
    """Raised when the model, its endpoint or its provider failed."""

    code = "model_error"
    exit_code = 4
    http_status = 502
    told_outside = "The model or its provider failed."


class TurnTimeoutError(GovError):
    """Raised when a turn met its deadline and its caller wants an exception."""

    code = "turn_timeout"
    exit_code = 5
    http_status = 504


class SessionStuckError(GovError):
    """Raised when a session is quarantined because an earlier turn of it never came back."""

    code = "stuck"
    exit_code = 5

    def __init__(self, session: str) -> None:
        super().__init__(
            f"Session {session} is quarantined: an earlier turn of it never came back. Start another session.",
            hint="A restart of the service frees this one.",
        )
        self.session = session


class InternalError(GovError):
    """Raised for what should not happen; the traceback is in the file that `hint` names."""

    told_outside = "Something failed inside the service; its operator has the details."
