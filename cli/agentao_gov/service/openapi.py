"""`/openapi.json`: the service's own description, from the models that requests are really checked against."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

from agentao_gov.governor.report import TurnReport
from agentao_gov.governor.types import SESSION_ID
from agentao_gov.service.bodies import ChatBody, TurnBody

__all__ = ["openapi_document"]

_SESSION_ID = {"type": "string", "pattern": f"^{SESSION_ID.pattern}$"}
_SESSION_HEADER = {
    "name": "X-Session-Id",
    "in": "header",
    "required": False,
    "description": "Names a session: the last user message is its next turn. Without it the turn is a fresh agent's.",
    "schema": _SESSION_ID,
}
_SESSION_PATH = {
    "name": "session_id",
    "in": "path",
    "required": True,
    "schema": _SESSION_ID,
}
_MODEL_PATH = {"name": "model_id", "in": "path", "required": True, "schema": {"type": "string"}}

_ERRORS = {
    "400": "`invalid_request`, `budget_impossible`",
    "401": "`invalid_api_key`",
    "403": "`profile_not_allowed`",
    "404": "`session_not_found`, `not_found`",
    "409": "`cancelled`",
    "413": "`too_large`",
    "422": "`max_iterations`, `repeat_guard`",
    "429": "`budget_exhausted`, `tenant_session_limit`, `user_session_limit`, `queue_full`, `queue_timeout`",
    "500": "`stuck`, `internal_error`",
    "502": "`model_error`, `incomplete`",
    "503": "`draining`, `ledger_unavailable`",
    "504": "`turn_timeout`",
}


def _schemas() -> dict[str, Any]:
    template = "#/components/schemas/{model}"
    out: dict[str, Any] = {}
    for model in (ChatBody, TurnBody, TurnReport):
        schema = model.model_json_schema(ref_template=template, by_alias=True)
        out.update(schema.pop("$defs", {}))
        out[model.__name__] = schema
    out["Error"] = {
        "type": "object",
        "required": ["error"],
        "properties": {
            "error": {
                "type": "object",
                "required": ["message", "type", "code", "param"],
                "properties": {
                    "message": {"type": "string"},
                    "type": {"type": "string"},
                    "code": {"type": "string"},
                    "param": {"type": ["string", "null"]},
                },
            },
            "agentao_gov": {"$ref": "#/components/schemas/TurnReport"},
        },
    }
    return out


def _json(ref: str | None) -> dict[str, Any]:
    schema: dict[str, Any] = {"$ref": f"#/components/schemas/{ref}"} if ref else {"type": "object"}
    return {"application/json": {"schema": schema}}


def _operation(
    summary: str,
    *codes: str,
    body: str | None = None,
    answer: str | None = None,
    streams: bool = False,
    parameters: list[dict[str, Any]] | None = None,
    open_: bool = False,
) -> dict[str, Any]:
    content = _json(answer)
    if streams:
        content["text/event-stream"] = {"schema": {"type": "string"}}
    responses: dict[str, Any] = {"200": {"description": "Done.", "content": content}}
    for code in codes:
        responses[code] = {"description": _ERRORS[code], "content": _json("Error")}
    operation: dict[str, Any] = {"summary": summary, "responses": responses}
    if body:
        operation["requestBody"] = {"required": True, "content": _json(body)}
    if parameters:
        operation["parameters"] = parameters
    if open_:
        operation["security"] = []
    return operation


def _paths() -> dict[str, Any]:
    turn = ("400", "401", "403", "409", "413", "422", "429", "500", "502", "503", "504")
    own = ("400", "401", "404")
    on_session = [_SESSION_PATH]
    return {
        "/v1/chat/completions": {
            "post": _operation(
                "One turn, OpenAI-compatible; `model` is the profile.",
                *turn, body="ChatBody", streams=True, parameters=[_SESSION_HEADER],
            )
        },
        "/v1/models": {"get": _operation("The profiles this tenant may use.", "401")},
        "/v1/models/{model_id}": {"get": _operation("One profile.", "401", "403", parameters=[_MODEL_PATH])},
        "/v1/sessions": {"get": _operation("The tenant's sessions, hibernated ones too.", "401")},
        "/v1/sessions/{session_id}": {
            "get": _operation("State and usage of a session.", *own, parameters=on_session),
            "delete": _operation("Remove a session: memory, archive, directory.", *own, parameters=on_session),
        },
        "/v1/sessions/{session_id}/turns": {
            "post": _operation(
                "One turn; `Accept: text/event-stream` streams `text`, `tool` and a last `report`.",
                *turn, body="TurnBody", answer="TurnReport", streams=True, parameters=on_session,
            )
        },
        "/v1/sessions/{session_id}/cancel": {
            "post": _operation("Cancel the turn in flight.", *own, parameters=on_session)
        },
        "/v1/status": {"get": _operation("How the instance is.", "401")},
        "/healthz": {"get": _operation("Alive.", open_=True)},
        "/readyz": {"get": _operation("Ready for traffic.", "503", open_=True)},
        "/metrics": {"get": _operation("Prometheus metrics.", open_=True)},
    }  # fmt: skip


def openapi_document() -> dict[str, Any]:
    """The OpenAPI 3.1 document."""
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "agentao-gov",
            "version": version("agentao-gov"),
            "description": "Agent sessions under limits. Every answer to a turn carries its TurnReport.",
            "license": {"name": "MIT", "identifier": "MIT"},
        },
        "security": [{"key": []}, {}],
        "paths": _paths(),
        "components": {
            "schemas": _schemas(),
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
    }
