"""Turns merged layers into a model, and pydantic's complaints into findings with key, file, line and the next step."""

from __future__ import annotations

from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from agentao_gov.config.findings import Finding
from agentao_gov.config.layers import Layers, nearest_key
from agentao_gov.config.toml_text import key_line

M = TypeVar("M", bound=BaseModel)

_TYPES = {
    "int_type": "a whole number",
    "float_type": "a number",
    "string_type": "text in quotes",
    "bool_type": "true or false",
    "list_type": "a list",
    "dict_type": "a table",
    "model_type": "a table",
    "model_attributes_type": "a table",
}
_BOUNDS = {
    "greater_than": ("more than", "gt"),
    "greater_than_equal": ("at least", "ge"),
    "less_than": ("less than", "lt"),
    "less_than_equal": ("at most", "le"),
}


def build(model: type[M], layers: Layers) -> tuple[M | None, list[Finding]]:
    """The validated model, or None with what is wrong. Keys are TOML's, never the Python attribute names."""
    try:
        return model.model_validate(layers.values, by_alias=True, by_name=False), []
    except ValidationError as error:
        found = [_finding(model, layers, details) for details in error.errors(include_url=False)]
        return None, list(dict.fromkeys(found))


def finding(layers: Layers, key: str, message: str, *, error: bool, at: str | None = None) -> Finding:
    """A finding about a key, placed where its value came from, or where the key `at` did."""
    layer = layers.layer_of(at or key)
    level: Literal["error", "warning"] = "error" if error else "warning"
    if layer is None:
        return Finding(level, key, message)
    if layer.file is None:
        return Finding(level, key, message, source=layer.source)
    return Finding(level, key, message, layer.file, key_line(layer.text, key))


def _finding(model: type[BaseModel], layers: Layers, details: ErrorDetails) -> Finding:
    # Indices of list items and pydantic's `[key]` marker are no part of a TOML key.
    key = ".".join(part for part in details["loc"] if isinstance(part, str) and part != "[key]")
    # A key that is missing has no place; the table that lacks it has.
    at = key.rpartition(".")[0] if details["type"] == "missing" else None
    return finding(layers, key, _message(model, key, details), error=True, at=at)


def _message(model: type[BaseModel], key: str, details: ErrorDetails) -> str:
    kind, given, context = details["type"], _shown(key, details["input"]), details.get("ctx", {})
    if kind == "extra_forbidden":
        near = nearest_key(model, key)
        return "unknown key" + (f"; did you mean {near}?" if near else "")
    if kind == "missing":
        return "is required"
    if kind == "literal_error":
        return f"must be one of {context['expected'].replace(' or ', ', ')}, not {given}"
    if kind in _BOUNDS:
        words, bound = _BOUNDS[kind]
        return f"must be {words} {context[bound]:g}, not {given}"
    if kind in _TYPES:
        return f"must be {_TYPES[kind]}, not {given}"
    if kind == "string_too_short":
        return "must not be empty"
    if kind == "string_pattern_mismatch":
        return f"{given} does not have the form {context['pattern']}"
    if kind == "value_error":
        return str(context["error"])
    return f"{details['msg'][:1].lower()}{details['msg'][1:]}, not {given}"


def _shown(key: str, value: Any) -> str:
    """The value, unless it may hold a secret: a store's or a model's address has a password, `env` a key."""
    if key in {"budget.store", "model.base_url"} or key.startswith("mcp.servers.") or "api_key" in key:
        return "this value"
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "…"
