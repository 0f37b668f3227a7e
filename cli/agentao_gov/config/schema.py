"""JSON Schemas of the files people write, for editors and CI."""

from __future__ import annotations

from typing import Any

from agentao_gov.config.deployment import Deployment
from agentao_gov.config.profile import Profile

_DRAFT = "https://json-schema.org/draft/2020-12/schema"


def profile_schema() -> dict[str, Any]:
    """The schema of a profile file: with `extends`, and without a required name (the file's own is taken)."""
    schema = Profile.model_json_schema(by_alias=True)
    schema["properties"]["extends"] = {
        "type": "string",
        "description": "Name or path of the profile this one starts from.",
    }
    schema.pop("required", None)
    return {"$schema": _DRAFT, "title": "agentao-gov profile", **{k: v for k, v in schema.items() if k != "title"}}


def deployment_schema() -> dict[str, Any]:
    """The schema of `agentao-gov.toml`."""
    schema = Deployment.model_json_schema(by_alias=True)
    return {"$schema": _DRAFT, "title": "agentao-gov.toml", **{k: v for k, v in schema.items() if k != "title"}}
