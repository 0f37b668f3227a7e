"""What goes into a turn and what comes out while it runs: the values that pool, modes and governor exchange."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agentao_gov.clock import Deadline
from agentao_gov.governor.report import Mode, ToolOutcome

if TYPE_CHECKING:
    from agentao_gov.config import ModelChoice, ResolvedProfile

#: What a user may call a session, on the command line, in a batch and over HTTP.
SESSION_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
SESSION_ID_RULE = "1 to 128 characters of A-Z a-z 0-9 . _ : -"
#: A user's name is shown on terminals and in tables, and is part of the ledger's keys.
USER_RULE = "1 to 256 characters without control characters"
_USER = re.compile(r"[^\x00-\x1f\x7f\ud800-\udfff]{1,256}")


@dataclass(frozen=True, slots=True, order=True)
class SessionKey:
    """Names a session. The tenant is part of the key: two tenants may use the same session id."""

    tenant: str
    session: str

    def __str__(self) -> str:
        return f"{self.tenant}/{self.session}"


def is_user_name(name: str) -> bool:
    """Whether it follows `USER_RULE`."""
    return _USER.fullmatch(name) is not None


@dataclass(frozen=True, slots=True)
class Conversation:
    """What outlives a session's agent: enough to go on where it stopped. JSON-serialisable."""

    messages: Sequence[Mapping[str, Any]] = ()
    #: The agent's to-do list, if it kept one.
    todos: Sequence[Mapping[str, Any]] = ()
    active_skills: Sequence[str] = ()
    #: Prompt tokens of the last call as the provider reported them, and how many messages they covered:
    #: the anchor from which the next call's upper bound is computed.
    anchor: Mapping[str, int] | None = None

    @classmethod
    def of(cls, data: Mapping[str, Any]) -> Conversation:
        """Reads a conversation from `data`, JSON that may have been damaged or forged.

        Raises KeyError or TypeError where it has not the shape of one.
        """
        messages, todos, skills, anchor = (data[name] for name in ("messages", "todos", "active_skills", "anchor"))
        plain = all(isinstance(entries, list) for entries in (messages, todos, skills))
        if not (plain and all(isinstance(entry, dict) for entry in (*messages, *todos, anchor or {}))):
            raise TypeError("not a conversation")
        return cls(tuple(messages), tuple(todos), tuple(skills), anchor)


@dataclass(frozen=True, slots=True)
class SessionSpec:
    """All that is needed to open one session's agent, in any mode."""

    key: SessionKey
    user: str
    profile: ResolvedProfile
    model: ModelChoice
    #: Private directory of this session (0700); tools are confined to it.
    workdir: Path
    mode: Mode
    #: Environment entries that mark every child of this session (process/tags), so that none can be lost.
    child_env: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class TextEvent:
    """Text as it arrives from the model."""

    delta: str


@dataclass(frozen=True, slots=True)
class ToolEvent:
    """A tool call that ended."""

    name: str
    outcome: ToolOutcome
    duration_ms: int


@dataclass(frozen=True, slots=True)
class IterationEvent:
    """A model call is about to be sent; figures for a status line."""

    iteration: int
    turn_tokens_used: int


TurnEvent = TextEvent | ToolEvent | IterationEvent
#: Called on the turn's thread, in order; must not block and must not raise.
EventSink = Callable[[TurnEvent], None]


@dataclass(frozen=True, slots=True)
class TurnRequest:
    """One question to one session."""

    turn_id: str
    message: str
    user: str
    #: The turn's deadline; None: the profile's `turn_timeout` from the moment the turn starts.
    deadline: Deadline | None = None
    #: How long the turn waited for its place, for the report.
    queued_ms: int = 0
    #: The batch line's id.
    id: str | int | None = None
