"""Every error a user can meet, drawn as one tree.

    GovError                            ending, hint
    ├── UsageError                      wrong flags or arguments
    ├── ConfigError                     the file, profile, tenant or time zone is wrong
    │   └── UnknownProfileError         no profile of that name; carries the names there are
    ├── BadRequestError                 an HTTP body or header that cannot be understood
    │   ├── TooLargeError               a body or message over its limit
    │   ├── HeadTooLargeError           a path with its headers over the limit
    │   └── MethodNotAllowedError       a path that does not take the method
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
    │   ├── OverloadedError             descriptors or time ran out before the request was looked at
    │   └── DrainingError               the service is on its way down
    ├── BudgetError                     a token budget says no; carries scope and figures
    │   ├── BudgetExhaustedError        spent for this window: retry when the next one opens
    │   └── BudgetImpossibleError       larger than the whole budget: retrying never helps
    ├── StoreError                      the ledger or the session archive cannot be used
    │   └── SessionDamagedError         what is kept of one session cannot be read
    ├── ModelError                      the model or its provider failed
    ├── TurnTimeoutError                the turn met its deadline
    ├── TurnCancelledError              the turn was cancelled before there was a report
    ├── SessionStuckError               an earlier turn never came back: the session is quarantined
    └── InternalError                   ours to mend; the traceback is in a file

Each class names its row in `endings.py`, which holds the exit code, HTTP status, code and words of every ending.
`message` says what happened with the figures, `hint` says what to do next; both are written for the operator.
`public_message` is what a tenant may read over HTTP: never the hint, which is about the operator's files.
"""

from __future__ import annotations

from typing import ClassVar

from agentao_gov.endings import ENDINGS, Ending


class GovError(Exception):
    """The root. What each class means to scripts and clients is its row of the table of endings."""

    ending: ClassVar[Ending] = ENDINGS["internal_error"]

    def __init__(
        self,
        message: str,
        *,
        hint: str | None = None,
        outside: str | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        """Says what happened.

        `message`: with the figures, for the operator. `hint`: the operator's next step. `outside`: what a tenant reads
        instead of this one message. `retry_after_s`: seconds after which trying again may help; None where only the
        ending's own rule counts.
        """
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.outside = outside
        self.retry_after_s = retry_after_s

    def __str__(self) -> str:
        return f"{self.message} {self.hint}" if self.hint else self.message

    @property
    def code(self) -> str:
        """The machine's word for it, in JSON."""
        return self.ending.code

    @property
    def exit_code(self) -> int:
        """What a command that met it ends with."""
        return self.ending.exit_code

    @property
    def http_status(self) -> int:
        """The status of the HTTP answer."""
        return self.ending.http_status

    @property
    def http_type(self) -> str:
        """OpenAI's error `type`."""
        return self.ending.http_type

    @property
    def public_message(self) -> str:
        """Safe for a tenant; `str(error)` is for the log and the operator's own terminal."""
        return self.outside or self.ending.told or self.message


class UsageError(GovError):
    """Raised when flags or arguments make no sense together."""

    ending = ENDINGS["usage"]


class ConfigError(GovError):
    """Raised when a deployment file, a profile, a tenant or a time zone is wrong."""

    ending = ENDINGS["invalid_configuration"]


class UnknownProfileError(ConfigError):
    """Raised when no profile of the given name exists."""

    ending = ENDINGS["profile_not_allowed"]

    def __init__(self, name: str, known: list[str], *, hint: str | None = None) -> None:
        super().__init__(f"There is no profile {name!r}; there are: {', '.join(sorted(known)) or 'none'}.", hint=hint)
        self.name = name
        self.known = sorted(known)


class BadRequestError(GovError):
    """Raised when an HTTP request cannot be understood."""

    ending = ENDINGS["invalid_request"]

    def __init__(self, message: str, *, param: str | None = None, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.param = param


class TooLargeError(BadRequestError):
    """Raised when a body or a message is over its limit."""

    ending = ENDINGS["too_large"]


class HeadTooLargeError(BadRequestError):
    """Raised when a request's path and headers together are over their limit."""

    ending = ENDINGS["head_too_large"]


class MethodNotAllowedError(BadRequestError):
    """Raised when a path does not take the request's method."""

    ending = ENDINGS["method_not_allowed"]


class AuthError(GovError):
    """Raised when a request carries no API key, or one that names no tenant."""

    ending = ENDINGS["invalid_api_key"]


class ForbiddenOriginError(GovError):
    """Raised when a web page elsewhere reaches for a service that asks for no key."""

    ending = ENDINGS["forbidden_origin"]

    def __init__(self, message: str) -> None:
        super().__init__(message, hint="Create a key with `agentao-gov tenant new NAME`.")


class ProfileNotAllowedError(GovError):
    """Raised when the tenant may not use the profile it asked for."""

    ending = ENDINGS["profile_not_allowed"]


class NotFoundError(GovError):
    """Raised when nothing lives at a path."""

    ending = ENDINGS["not_found"]


class SessionNotFoundError(NotFoundError):
    """Raised when a session does not exist, or belongs to another tenant: the two look alike on purpose."""

    ending = ENDINGS["session_not_found"]


class CapacityError(GovError):
    """Raised when there is no room now; `retry_after_s` says when trying again makes sense."""

    ending = ENDINGS["capacity"]


class TenantSessionLimitError(CapacityError):
    """Raised when a tenant is at its cap and every session of it is busy."""

    ending = ENDINGS["tenant_session_limit"]


class UserSessionLimitError(CapacityError):
    """Raised when a user is at their cap and every session of theirs is busy."""

    ending = ENDINGS["user_session_limit"]


class QueueFullError(CapacityError):
    """Raised when the waiting room for turns is full."""

    ending = ENDINGS["queue_full"]


class QueueTimeoutError(CapacityError):
    """Raised when a turn waited `queue_timeout` without getting a place."""

    ending = ENDINGS["queue_timeout"]


class OverloadedError(CapacityError):
    """Raised when the service has no descriptors, or a worker no time, for a request that is right."""

    ending = ENDINGS["overloaded"]


class DrainingError(CapacityError):
    """Raised when the service takes no new turns because it is shutting down."""

    ending = ENDINGS["draining"]


class BudgetError(GovError):
    """A token budget says no. Fields: the scope that refused, its limit and what is already used and reserved."""

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

    ending = ENDINGS["budget_exhausted"]


class BudgetImpossibleError(BudgetError):
    """Raised when a request is larger than the whole budget."""

    ending = ENDINGS["budget_impossible"]


class StoreError(GovError):
    """Raised when the ledger or another store cannot be read or written; no model call is made then."""

    ending = ENDINGS["ledger_unavailable"]


class SessionDamagedError(StoreError):
    """Raised when what is kept of one session cannot be read: asking again never helps, other sessions go on."""

    ending = ENDINGS["session_damaged"]


class ModelError(GovError):
    """Raised when the model, its endpoint or its provider failed."""

    ending = ENDINGS["model_error"]


class TurnTimeoutError(GovError):
    """Raised when a turn met its deadline and its caller wants an exception."""

    ending = ENDINGS["turn_timeout"]


class TurnCancelledError(GovError):
    """Raised when a turn was cancelled before it could report."""

    ending = ENDINGS["cancelled"]


class SessionStuckError(GovError):
    """Raised when a session is quarantined because an earlier turn of it never came back."""

    ending = ENDINGS["stuck"]

    def __init__(self, session: str) -> None:
        super().__init__(
            f"Session {session} is quarantined: an earlier turn of it never came back. Start another session.",
            hint="A restart of the service frees this one.",
        )
        self.session = session


class InternalError(GovError):
    """Raised for what should not happen; the traceback is in the file that `hint` names."""
