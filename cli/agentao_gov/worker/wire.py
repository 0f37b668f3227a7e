"""What crosses the wire between a session process and its owner, as JSON; and the session's spec, which only goes down.

The spec travels pickled, from the owner to its own child and never the other way: what comes up was written next to a
tenant's tools and is read as JSON alone.
"""

from __future__ import annotations

import base64
import dataclasses
import pickle
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

from agentao_gov.budget.errors import CancelledWait, ReservationLostError
from agentao_gov.errors import (
    BudgetError,
    BudgetExhaustedError,
    BudgetImpossibleError,
    ConfigError,
    GovError,
    InternalError,
    StoreError,
    TurnTimeoutError,
)
from agentao_gov.governor.observe import LlmCallEnd, PermissionEnd, ToolCallEnd
from agentao_gov.governor.requests import (
    Conversation,
    IterationEvent,
    SessionSpec,
    TextEvent,
    ToolEvent,
    TurnEvent,
)

__all__ = [
    "GOV_ERROR",
    "OPEN",
    "TURN",
    "VERSIONS",
    "decode_conversation",
    "decode_error",
    "decode_event",
    "decode_observation",
    "decode_spec",
    "encode_conversation",
    "encode_error",
    "encode_event",
    "encode_observation",
    "encode_spec",
]

#: Owner to worker.
OPEN, TURN, CANCEL, CLOSE = "_gov/open", "_gov/turn", "_gov/cancel", "_gov/close"
#: Worker to owner.
LEDGER, EVENT, OBSERVE, REPORT, LOG = "_gov/ledger", "_gov/event", "_gov/observe", "_gov/report", "_gov/log"
#: Of what must be the same on both sides: a tenant's own Python may have others.
VERSIONS = {name: version(name) for name in ("agentao-gov", "agentao")}
#: JSON-RPC error code of a GovError; `data` says which.
GOV_ERROR = -32010

_ERRORS: dict[str, type[GovError]] = {
    cls.__name__: cls
    for cls in (CancelledWait, ConfigError, InternalError, ReservationLostError, StoreError, TurnTimeoutError)
}
_BUDGET_ERRORS: dict[str, type[BudgetError]] = {
    cls.__name__: cls for cls in (BudgetExhaustedError, BudgetImpossibleError)
}
_BUDGET_FIELDS = ("scope", "limit_tokens", "used_tokens", "reserved_tokens", "asked_tokens")


def encode_spec(spec: SessionSpec) -> str:
    """All that a worker needs to open a session, the model's key included: it travels on the wire only."""
    profile = spec.profile
    if dataclasses.is_dataclass(profile):
        # A view of a mapping cannot be pickled; its contents can.
        profile = dataclasses.replace(profile, sources=dict(profile.sources), ranks=dict(profile.ranks))
    plain = dataclasses.replace(spec, profile=profile, child_env=dict(spec.child_env))
    return base64.b64encode(pickle.dumps(plain)).decode()


def decode_spec(text: str) -> SessionSpec:
    """Only ever called in a worker, with what its owner sent."""
    spec = pickle.loads(base64.b64decode(text))  # noqa: S301 (owner to its own child)
    assert isinstance(spec, SessionSpec)
    return spec


def encode_conversation(conversation: Conversation) -> dict[str, Any]:
    """As JSON."""
    return {
        "messages": [dict(message) for message in conversation.messages],
        "todos": [dict(todo) for todo in conversation.todos],
        "active_skills": list(conversation.active_skills),
        "anchor": dict(conversation.anchor) if conversation.anchor is not None else None,
    }


def decode_conversation(data: Mapping[str, Any]) -> Conversation:
    """Back from JSON."""
    return Conversation(
        messages=tuple(data["messages"]),
        todos=tuple(data["todos"]),
        active_skills=tuple(data["active_skills"]),
        anchor=data["anchor"],
    )


def encode_event(event: TurnEvent) -> dict[str, Any]:
    """As JSON."""
    return {"kind": type(event).__name__, **dataclasses.asdict(event)}


_EVENTS: dict[str, type[TextEvent | ToolEvent | IterationEvent]] = {
    cls.__name__: cls for cls in (TextEvent, ToolEvent, IterationEvent)
}


def decode_event(data: Mapping[str, Any]) -> TurnEvent:
    """Back from JSON. Raises KeyError or TypeError for what is none."""
    return _EVENTS[data["kind"]](**{name: value for name, value in data.items() if name != "kind"})


Observation = LlmCallEnd | ToolCallEnd | PermissionEnd
_OBSERVATIONS: dict[str, type[Any]] = {cls.__name__: cls for cls in (LlmCallEnd, ToolCallEnd, PermissionEnd)}


def encode_observation(observation: Observation) -> dict[str, Any]:
    """As JSON."""
    return {"kind": type(observation).__name__, **dataclasses.asdict(observation)}


def decode_observation(data: Mapping[str, Any]) -> Observation:
    """Back from JSON. Raises KeyError or TypeError for what is none."""
    found: Observation = _OBSERVATIONS[data["kind"]](**{k: v for k, v in data.items() if k != "kind"})
    return found


def encode_error(error: GovError) -> dict[str, Any]:
    """The data of a JSON-RPC error."""
    data: dict[str, Any] = {
        "class": type(error).__name__,
        "message": error.message,
        "hint": error.hint,
        "retry_after_s": error.retry_after_s,
    }
    if isinstance(error, BudgetError):
        data["fields"] = {name: getattr(error, name) for name in _BUDGET_FIELDS}
    return data


def decode_error(data: Mapping[str, Any], message: str) -> GovError:
    """The same error again; what is not known comes back as an InternalError."""
    name, text = data.get("class"), str(data.get("message") or message)
    budget = _BUDGET_ERRORS.get(str(name))
    if budget is not None:
        fields = {field: data["fields"][field] for field in _BUDGET_FIELDS}
        return budget(text, **fields, hint=data.get("hint"), retry_after_s=data.get("retry_after_s"))
    return _ERRORS.get(str(name), InternalError)(text, hint=data.get("hint"), retry_after_s=data.get("retry_after_s"))
