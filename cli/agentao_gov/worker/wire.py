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
from typing import Any, TypeVar

from pydantic import TypeAdapter

from agentao_gov.budget.types import CancelledWait, ReservationLostError
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
from agentao_gov.governor.turn import LlmCallEnd, PermissionEnd, ToolCallEnd
from agentao_gov.governor.types import Conversation, IterationEvent, SessionSpec, TextEvent, ToolEvent, TurnEvent

#: Owner to worker.
OPEN, TURN, CANCEL, CLOSE = "_gov/open", "_gov/turn", "_gov/cancel", "_gov/close"
#: Worker to owner.
LEDGER, EVENT, OBSERVE, LOG = "_gov/ledger", "_gov/event", "_gov/observe", "_gov/log"
#: Of what must be the same on both sides: a tenant's own Python may have others.
VERSIONS = {name: version(name) for name in ("agentao-gov", "agentao")}
#: JSON-RPC error code of a GovError; `data` says which.
GOV_ERROR = -32010
#: Beyond any count of tokens or milliseconds; and beyond the name of any tool or error.
_NUMBER_MAX, _WORD_CHARS_MAX = 1 << 53, 512

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


def encode_event(event: TurnEvent) -> dict[str, Any]:
    """As JSON."""
    return {"kind": type(event).__name__, **dataclasses.asdict(event)}


_EVENTS: dict[str, TypeAdapter[TurnEvent]] = {
    cls.__name__: TypeAdapter(cls) for cls in (TextEvent, ToolEvent, IterationEvent)
}


def decode_event(data: Mapping[str, Any]) -> TurnEvent:
    """Back from JSON. Raises KeyError, TypeError or ValueError for what is none."""
    return _read(_EVENTS, data)


Observation = LlmCallEnd | ToolCallEnd | PermissionEnd
_OBSERVATIONS: dict[str, TypeAdapter[Observation]] = {
    cls.__name__: TypeAdapter(cls) for cls in (LlmCallEnd, ToolCallEnd, PermissionEnd)
}


def encode_observation(observation: Observation) -> dict[str, Any]:
    """As JSON."""
    return {"kind": type(observation).__name__, **dataclasses.asdict(observation)}


def decode_observation(data: Mapping[str, Any]) -> Observation:
    """Back from JSON. Raises KeyError, TypeError or ValueError for what is none."""
    return _read(_OBSERVATIONS, data)


_Told = TypeVar("_Told")


def _read(kinds: Mapping[str, TypeAdapter[_Told]], data: Mapping[str, Any]) -> _Told:
    """A value whose fields can neither break a counter nor flood a label: who wrote them may be a tenant's tool."""
    fields = {name: value for name, value in data.items() if name != "kind"}
    for name, value in fields.items():
        # False for NaN too.
        if isinstance(value, int | float) and not 0 <= value <= _NUMBER_MAX:
            raise ValueError(f"{name} is {value!r}")
        if isinstance(value, str) and name != "delta":
            fields[name] = value[:_WORD_CHARS_MAX]
    return kinds[data["kind"]].validate_python(fields)


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
    """The same error again; what is not known, or has not its shape, comes back as an InternalError."""
    name, text = str(data.get("class")), str(data.get("message") or message)
    hint, wait_s = data.get("hint"), data.get("retry_after_s")
    # It ends up in a header and in sentences; who wrote it may be anybody.
    hint = str(hint) if hint is not None else None
    wait_s = float(wait_s) if isinstance(wait_s, int | float) and 0 <= wait_s < 1e9 else None
    fields = data.get("fields")
    if name in _BUDGET_ERRORS and isinstance(fields, dict) and set(fields) == set(_BUDGET_FIELDS):
        return _BUDGET_ERRORS[name](text, **fields, hint=hint, retry_after_s=wait_s)
    return _ERRORS.get(name, InternalError)(text, hint=hint, retry_after_s=wait_s)
