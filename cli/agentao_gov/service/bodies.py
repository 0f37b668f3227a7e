"""Reads what clients send: bodies, session ids, users. Everything that is wrong ends as a BadRequestError."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, NoReturn, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_validator, model_validator

from agentao_gov.errors import BadRequestError, TooLargeError
from agentao_gov.governor.types import SESSION_ID, SESSION_ID_RULE, USER_RULE, is_user_name

__all__ = [
    "DEFAULT_USER",
    "ChatBody",
    "ChatMessage",
    "TurnBody",
    "decode_json",
    "parse_body",
    "require_session_id",
]

#: Whoever sends no `user`. All of them share one user's limits: an unnamed user must not be an unlimited one.
DEFAULT_USER = "default"

_B = TypeVar("_B", bound=BaseModel)


def require_session_id(value: str) -> str:
    """The id itself when it follows `SESSION_ID_RULE`. Raises BadRequestError."""
    if not SESSION_ID.fullmatch(value):
        raise BadRequestError(
            f"The session id has {len(value)} characters; it must be {SESSION_ID_RULE}",
            param="X-Session-Id",
        )
    return value


def decode_json(raw: bytes) -> dict[str, Any]:
    """One JSON object. NaN, lone surrogates and nesting without end are refused here, before they reach a store."""
    try:
        value = json.loads(raw, parse_constant=_no_constant)
        json.dumps(value, ensure_ascii=False).encode()
    except RecursionError:
        raise BadRequestError("The body is nested too deeply.") from None
    except ValueError as error:
        raise BadRequestError(f"The body is not JSON in UTF-8: {error}") from None
    if not isinstance(value, dict):
        raise BadRequestError(f"The body must be a JSON object, not {type(value).__name__}.")
    return value


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")


def _clean_user(value: object) -> object:
    if isinstance(value, str) and not is_user_name(value):
        raise ValueError(f"must be {USER_RULE}")
    return DEFAULT_USER if value is None else value


User = Annotated[str, BeforeValidator(_clean_user)]


class _TextPart(BaseModel):
    type: Literal["text"]
    text: str


class ChatMessage(BaseModel):
    """One message of OpenAI's chat format; text only."""

    model_config = ConfigDict(extra="ignore")

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[_TextPart] | None = None
    name: str | None = None
    tool_calls: list[dict[str, Any]] | None = None
    tool_call_id: str | None = None

    @model_validator(mode="after")
    def _has_something(self) -> ChatMessage:
        if self.content is None and not (self.role == "assistant" and self.tool_calls):
            raise ValueError("content is missing")
        if self.role == "tool" and not self.tool_call_id:
            raise ValueError("a tool message needs its tool_call_id")
        return self

    @property
    def text(self) -> str:
        """The text, its parts joined."""
        if isinstance(self.content, list):
            return "".join(part.text for part in self.content)
        return self.content or ""

    def to_history(self) -> dict[str, Any]:
        """The message as an agent keeps it; `developer` is what older models call `system`."""
        role = "system" if self.role == "developer" else self.role
        message: dict[str, Any] = {"role": role, "content": self.text}
        for key in ("name", "tool_calls", "tool_call_id"):
            value = getattr(self, key)
            if value:
                message[key] = value
        return message


class _StreamOptions(BaseModel):
    include_usage: bool = False


class ChatBody(BaseModel):
    """`POST /v1/chat/completions`. `model` is the profile; sampling is the profile's, whatever a client sends."""

    model_config = ConfigDict(extra="ignore")

    model: str = Field(min_length=1, max_length=128)
    messages: list[ChatMessage] = Field(min_length=1)
    stream: bool | None = False
    stream_options: _StreamOptions | None = None
    user: User = DEFAULT_USER
    n: int | None = None
    tools: list[Any] | None = None

    @field_validator("n")
    @classmethod
    def _one_answer(cls, value: int | None) -> int | None:
        if value not in (None, 1):
            raise ValueError("a turn has one answer: n must be 1")
        return value

    @field_validator("tools")
    @classmethod
    def _no_tools(cls, value: list[Any] | None) -> list[Any] | None:
        if value:
            raise ValueError("the profile decides which tools a turn may use; a request cannot bring its own")
        return value

    @field_validator("messages")
    @classmethod
    def _ends_with_user(cls, value: list[ChatMessage]) -> list[ChatMessage]:
        if value[-1].role != "user" or not value[-1].text.strip():
            raise ValueError("the last message must be the user's, with text in it")
        return value

    @property
    def question(self) -> str:
        """The turn: the last user message."""
        return self.messages[-1].text

    def history(self) -> list[Mapping[str, Any]]:
        """Everything before the question."""
        return [message.to_history() for message in self.messages[:-1]]

    @property
    def usage_chunk(self) -> bool:
        """Whether the client asked for a usage chunk of its own at the end of a stream."""
        return self.stream_options is not None and self.stream_options.include_usage

    def texts(self) -> Sequence[str]:
        """Every text, for the size limit."""
        return [message.text for message in self.messages]


class TurnBody(BaseModel):
    """`POST /v1/sessions/{id}/turns`. Without `profile` the session's own goes on."""

    model_config = ConfigDict(extra="forbid")

    message: str = Field(min_length=1)
    profile: str | None = Field(default=None, min_length=1, max_length=128)
    user: User = DEFAULT_USER

    @field_validator("message")
    @classmethod
    def _has_text(cls, value: str) -> str:
        if not value.strip():
            raise ValueError("is empty")
        return value

    def texts(self) -> Sequence[str]:
        """Every text, for the size limit."""
        return [self.message]


def parse_body(kind: type[_B], raw: bytes, *, message_bytes_max: int) -> _B:
    """A validated body, or the first thing that is wrong with it."""
    try:
        body = kind.model_validate(decode_json(raw), strict=False)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        param = ".".join(str(part) for part in first["loc"]) or None
        raise BadRequestError(f"{param or 'body'}: {first['msg']}", param=param) from None
    texts: Sequence[str] = body.texts() if isinstance(body, ChatBody | TurnBody) else ()
    for text in texts:
        size = len(text.encode())
        if size > message_bytes_max:
            raise TooLargeError(f"A message has {size:,} bytes; the limit is {message_bytes_max:,}.", param="messages")
    return body
