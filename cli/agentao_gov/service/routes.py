"""Every operation of the HTTP API: its path, what it takes, what it answers and how it may end.

The application's routes (`app.py`) and the OpenAPI document (`openapi.py`) are both made from `OPERATIONS`, so that
neither has a path, a method or a status that the other lacks.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import Response

from agentao_gov.endings import ENDINGS, Ending, Outcome
from agentao_gov.governor.report import TurnReport
from agentao_gov.service import answers
from agentao_gov.service.bodies import ChatBody, TurnBody
from agentao_gov.service.endpoints import Endpoints

#: How any request may end, before its path is even looked at.
_ANY = ("head_too_large", "internal_error")
#: How every request may end that needs a key.
_KEYED = ("invalid_api_key", "forbidden_origin", "queue_full")
_ONE_SESSION = ("invalid_request", "session_not_found", "ledger_unavailable", "overloaded")
#: How a turn may end, beside its outcomes, before it begins.
_REFUSALS = ("capacity", "tenant_session_limit", "user_session_limit", "queue_full", "queue_timeout", "draining")
_TURN = (
    *("invalid_request", "too_large", "profile_not_allowed", *_REFUSALS),
    *(outcome.error_code for outcome in Outcome if outcome is not Outcome.ANSWERED),
)


@dataclass(frozen=True, slots=True)
class Operation:
    """One method of one path. Its `operationId` is the handler's name."""

    method: str
    #: In Starlette's and OpenAPI's form, which are the same.
    path: str
    handler: Callable[[Endpoints, Request], Awaitable[Response]]
    #: For the document: what it does.
    summary: str
    #: What a 200 holds: a JSON shape, or the media type of a text.
    answer: Any
    #: Codes of the endings that it alone may have, beside those of all operations.
    codes: tuple[str, ...] = ()
    body: type[BaseModel] | None = None
    #: Whether a client may ask for server-sent events instead.
    streams: bool = False
    #: Whether it needs a key where there are any.
    keyed: bool = True
    #: A status other than 200 whose body is the answer's shape too.
    also: int | None = None

    @property
    def endings(self) -> tuple[Ending, ...]:
        """Every ending that is not a 200, each once."""
        codes = (*_ANY, *(_KEYED if self.keyed else ()), *self.codes)
        return tuple(ENDINGS[code] for code in dict.fromkeys(codes))


OPERATIONS = (
    Operation(
        "POST", "/v1/chat/completions", Endpoints.create_chat_completion,
        "One turn, OpenAI-compatible; `model` is the profile.",
        answers.ChatCompletion, _TURN, ChatBody, streams=True,
    ),
    Operation(
        "GET", "/v1/models", Endpoints.list_models, "The profiles this tenant may use.", answers.ModelList,
    ),
    Operation(
        "GET", "/v1/models/{model_id}", Endpoints.get_model, "One profile.", answers.Model, ("profile_not_allowed",),
    ),
    Operation(
        "GET", "/v1/sessions", Endpoints.list_sessions, "The tenant's sessions, hibernated ones too.",
        answers.SessionList, ("invalid_request", "ledger_unavailable"),
    ),
    Operation(
        "GET", "/v1/sessions/{session_id}", Endpoints.get_session, "State and usage of a session.",
        answers.Session, _ONE_SESSION,
    ),
    Operation(
        "DELETE", "/v1/sessions/{session_id}", Endpoints.delete_session,
        "Remove a session: memory, archive, directory.", answers.Deleted, _ONE_SESSION,
    ),
    Operation(
        "POST", "/v1/sessions/{session_id}/turns", Endpoints.run_turn,
        "One turn; `Accept: text/event-stream` streams `text`, `tool` and a last `report`.",
        TurnReport, _TURN, TurnBody, streams=True,
    ),
    Operation(
        "POST", "/v1/sessions/{session_id}/cancel", Endpoints.cancel_turn, "Cancel the turn in flight.",
        answers.Cancelled, _ONE_SESSION,
    ),
    Operation("GET", "/v1/status", Endpoints.get_status, "How the instance is.", answers.ServiceStatus),
    Operation("GET", "/healthz", Endpoints.get_health, "Alive.", answers.Health, keyed=False),
    Operation("GET", "/health", Endpoints.get_health_alias, "The same as /healthz.", answers.Health, keyed=False),
    Operation(
        "GET", "/readyz", Endpoints.get_readiness, "Ready for traffic; 503 says why not.", answers.Readiness,
        keyed=False, also=503,
    ),
    Operation(
        "GET", "/metrics", Endpoints.get_metrics, "Prometheus metrics.", "text/plain", ("invalid_api_key",),
        keyed=False,
    ),
)  # fmt: skip
