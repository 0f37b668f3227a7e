"""The OpenAPI document says what the service does."""

from __future__ import annotations

import re
from typing import Any

import jsonschema

from agentao_gov.endings import Outcome
from agentao_gov.service.openapi import openapi_document
from agentao_gov.service.routes import OPERATIONS
from tests.service.samples import report


def resolve(document: dict[str, Any], ref: str) -> Any:
    node: Any = document
    for part in ref.removeprefix("#/").split("/"):
        node = node[part]
    return node


def test_every_reference_of_the_document_leads_somewhere() -> None:
    """A generator must be able to follow them all."""
    document = openapi_document()
    refs = re.findall(r"'\$ref': '([^']+)'", repr(document))

    assert refs
    for ref in refs:
        assert resolve(document, ref)


def test_a_real_report_fits_the_published_schema() -> None:
    """The schema is the one that answers obey."""
    document = openapi_document()
    schema = {**document, "$ref": "#/components/schemas/TurnReport"}

    jsonschema.validate(report().model_dump(mode="json", by_alias=True), schema)


def test_every_path_and_method_that_is_served_is_in_the_document() -> None:
    """And none that is not; `operationId` is what a generated client calls it."""
    paths = openapi_document()["paths"]
    described = {(path, method.upper()) for path, methods in paths.items() for method in methods}
    names = [operation["operationId"] for methods in paths.values() for operation in methods.values()]

    assert described == {(operation.path, operation.method) for operation in OPERATIONS}
    assert len(set(names)) == len(names) == len(OPERATIONS)


def test_every_outcome_of_a_turn_is_in_the_document_of_both_routes_that_run_one() -> None:
    """A client that branches on codes must be able to read them there."""
    paths = openapi_document()["paths"]
    for path in ("/v1/chat/completions", "/v1/sessions/{session_id}/turns"):
        responses = paths[path]["post"]["responses"]
        for outcome in set(Outcome) - {Outcome.ANSWERED}:
            assert f"`{outcome.error_code}`" in responses[str(outcome.http_status)]["description"]


def test_no_answer_is_an_object_without_a_shape() -> None:
    """A generated client would have nothing to offer for it."""
    document = openapi_document()
    for methods in document["paths"].values():
        for operation in methods.values():
            for media, content in operation["responses"]["200"]["content"].items():
                schema = content["schema"]
                shape = resolve(document, schema["$ref"]) if "$ref" in schema else schema
                assert shape.get("properties") or media.startswith("text/")
