"""`/openapi.json`: made from the routes, the table of endings, and the models that requests and answers really have."""

from __future__ import annotations

import re
from importlib.metadata import version
from typing import Any

from pydantic import BaseModel, TypeAdapter

from agentao_gov.endings import ENDINGS, Ending
from agentao_gov.governor.report import TurnReport
from agentao_gov.governor.types import SESSION_ID
from agentao_gov.service.bodies import PAGE_DEFAULT, PAGE_MAX
from agentao_gov.service.routes import OPERATIONS, Operation

_REF = "#/components/schemas/{model}"
_SESSION_ID = {"type": "string", "pattern": f"^{SESSION_ID.pattern}$"}
#: What stands in braces in a path.
_PATH_SCHEMAS = {"session_id": _SESSION_ID, "model_id": {"type": "string"}}
_PARAMETERS: dict[str, list[dict[str, Any]]] = {
    "create_chat_completion": [
        {
            "name": "X-Session-Id",
            "in": "header",
            "required": False,
            "description": "Names a session: the last user message is its next turn. Without it a fresh agent runs it.",
            "schema": _SESSION_ID,
        }
    ],
    "list_sessions": [
        {
            "name": "limit",
            "in": "query",
            "required": False,
            "schema": {"type": "integer", "minimum": 1, "maximum": PAGE_MAX, "default": PAGE_DEFAULT},
        },
        {
            "name": "after",
            "in": "query",
            "required": False,
            "description": "The `last_id` of the page before.",
            "schema": _SESSION_ID,
        },
    ],
    "get_status": [
        {
            "name": "history",
            "in": "query",
            "required": False,
            "allowEmptyValue": True,
            "description": "Adds the last minutes, one figure a second.",
            "schema": {"type": "string"},
        }
    ],
}
_RETRY_HEADERS = {
    "Retry-After": {"description": "Seconds after which asking again may help.", "schema": {"type": "integer"}},
    "x-should-retry": {
        "description": "`false`: an SDK must not repeat the request by itself.",
        "schema": {"const": "false"},
    },
}


def openapi_document() -> dict[str, Any]:
    """The OpenAPI 3.1 document."""
    paths: dict[str, Any] = {}
    for operation in OPERATIONS:
        paths.setdefault(operation.path, {})[operation.method.lower()] = _operation(operation)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "agentao-gov",
            "version": version("agentao-gov"),
            "description": "Agent sessions under limits. Every answer to a turn carries its TurnReport.",
            "license": {"name": "MIT", "identifier": "MIT"},
        },
        "security": [{"key": []}, {}],
        "paths": paths,
        "components": {
            "schemas": _schemas(),
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
    }


def _operation(operation: Operation) -> dict[str, Any]:
    name = operation.handler.__name__
    out: dict[str, Any] = {"operationId": name, "summary": operation.summary, "responses": _responses(operation)}
    inside = [
        {"name": part, "in": "path", "required": True, "schema": _PATH_SCHEMAS[part]}
        for part in re.findall(r"{(\w+)}", operation.path)
    ]
    if parameters := inside + _PARAMETERS.get(name, []):
        out["parameters"] = parameters
    if operation.body is not None:
        out["requestBody"] = {"required": True, "content": _json(operation.body.__name__)}
    if not operation.keyed:
        out["security"] = []
    return out


def _responses(operation: Operation) -> dict[str, Any]:
    if isinstance(operation.answer, str):
        content: dict[str, Any] = {operation.answer: {"schema": {"type": "string"}}}
    else:
        content = _json(operation.answer.__name__)
    also = {} if operation.also is None else {str(operation.also): {"description": "Not now.", "content": content}}
    if operation.streams:
        content = content | {"text/event-stream": {"schema": {"type": "string"}}}
    by_status: dict[int, list[Ending]] = {}
    for ending in operation.endings:
        by_status.setdefault(ending.http_status, []).append(ending)
    failures = {
        str(status): {
            "description": "\n".join(f"`{ending.code}`: {ending.sentence}" for ending in by_status[status]),
            "headers": _RETRY_HEADERS,
            "content": _json("Error"),
        }
        for status in sorted(by_status)
    }
    return {"200": {"description": "Done.", "content": content}} | failures | also


def _json(name: str) -> dict[str, Any]:
    return {"application/json": {"schema": {"$ref": _REF.format(model=name)}}}


def _schemas() -> dict[str, Any]:
    out: dict[str, Any] = {}
    shapes = [TurnReport, *(shape for operation in OPERATIONS for shape in (operation.body, operation.answer))]
    for shape in shapes:
        if shape is None or isinstance(shape, str):
            continue
        if isinstance(shape, type) and issubclass(shape, BaseModel):
            schema = shape.model_json_schema(ref_template=_REF, by_alias=True)
        else:
            schema = TypeAdapter(shape).json_schema(ref_template=_REF)
        out.update(schema.pop("$defs", {}))
        out[shape.__name__] = schema
    out["Error"] = _error()
    return out


def _error() -> dict[str, Any]:
    codes = sorted({ending.code for operation in OPERATIONS for ending in operation.endings})
    told = {"message": {"type": "string"}, "type": {"type": "string"}, "param": {"type": ["string", "null"]}}
    # Not an enum: a client that is generated today must not break on a code that is added tomorrow.
    code = {"type": "string", "examples": [*codes, ENDINGS["not_found"].code]}
    return {
        "type": "object",
        "required": ["error"],
        "properties": {
            "error": {
                "type": "object",
                "required": ["message", "type", "code", "param"],
                "properties": told | {"code": code},
            },
            "agentao_gov": {"$ref": _REF.format(model="TurnReport")},
        },
    }
