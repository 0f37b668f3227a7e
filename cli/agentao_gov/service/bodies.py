"""Reads what clients send: bodies, session ids, users. The first thing that is wrong ends as a BadRequestError."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from functools import cache
from itertools import islice
from typing import Annotated, Any, Literal, TypeVar, cast

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    FailFast,
    Field,
    ValidationError,
    WithJsonSchema,
    create_model,
    field_validator,
    model_validator,
)
from pydantic_core import ErrorDetails

# Before Python 3.12 pydantic takes no other TypedDict.
from typing_extensions import TypeAliasType, TypedDict

from agentao_gov.errors import BadRequestError, TooLargeError
from agentao_gov.governor.types import SESSION_ID, SESSION_ID_RULE, USER_RULE, is_user_name

#: Whoever sends no `user`. All of them share one user's limits: an unnamed user must not be an unlimited one.
DEFAULT_USER = "default"


#: Entries of one page of a list, as OpenAI's lists have them.
PAGE_DEFAULT, PAGE_MAX = 100, 1_000
#: Strings, and what separates values: a bound on the values of a body. 2,000 messages with parts, tool calls and the
#: descriptions of their tools have some 50,000.
TOKENS_MAX = 200_000
#: Linear in the body, whatever it is: a quote that is never closed takes the rest.
_TOKEN = re.compile(rb'"(?:[^"\\]++|\\.)*+"?|[,\[{]', re.DOTALL)

#: What pydantic puts between the keys and positions of a value's place, for the member of a union that it tried.
_UNION_MEMBERS = {"str", "list[_TextPart]"}

#: By pydantic's type of error: what follows the name of the field.
_WORDS = {
    "missing": "is missing",
    "string_type": "must be text",
    "string_too_short": "is empty",
    "string_too_long": "has more than {max_length} characters",
    "list_type": "must be a list",
    "too_short": "is empty",
    "dict_type": "must be an object",
    "model_type": "must be an object",
    "bool_type": "must be true or false",
    "bool_parsing": "must be true or false",
    "int_type": "must be a whole number",
    "int_parsing": "must be a whole number",
    "int_from_float": "must be a whole number",
    "finite_number": "must be a number",
    "literal_error": "must be {expected}",
    "extra_forbidden": "is not a field of this request",
}


def require_session_id(value: str) -> str:
    """The id `value` itself when it follows `SESSION_ID_RULE`. Raises BadRequestError."""
    if not SESSION_ID.fullmatch(value):
        raise BadRequestError(
            f"This session id of {len(value)} characters is not valid: it must be {SESSION_ID_RULE}.",
            param="X-Session-Id",
        )
    return value


def page_of(query: Mapping[str, str]) -> tuple[int, str | None]:
    """What part of a list is asked for: at most how many, and after which id. Raises BadRequestError.

    `query`: the parameters `limit`, `PAGE_DEFAULT` where it is absent, and `after`.
    """
    given = query.get("limit", str(PAGE_DEFAULT))
    limit = int(given) if given.isascii() and given.isdigit() and len(given) <= 9 else 0
    if not 1 <= limit <= PAGE_MAX:
        raise BadRequestError(f"limit must be a number from 1 to {PAGE_MAX:,}.", param="limit")
    after = query.get("after")
    if after is not None and not SESSION_ID.fullmatch(after):
        raise BadRequestError(f"after must be {SESSION_ID_RULE}.", param="after")
    return limit, after


def _clean_user(value: object) -> object:
    if isinstance(value, str) and not is_user_name(value):
        raise ValueError(f"must be {USER_RULE}")
    return DEFAULT_USER if value is None else value


def _is_plain_json(value: object) -> bool:
    """Whether a store and a provider can read it back: NaN and infinities pass pydantic's parser."""
    try:
        json.dumps(value, allow_nan=False)
    except ValueError:
        return False
    return True


User = Annotated[
    str,
    BeforeValidator(_clean_user),
    WithJsonSchema(
        {"type": ["string", "null"], "minLength": 1, "maxLength": 256, "pattern": r"^[^\u0000-\u001f\u007f]*$"}
    ),
]


class _TextPart(TypedDict):
    """One part of a message's content. A TypedDict: a body may hold thousands, and a model each costs tenfold."""

    type: Literal["text"]
    text: str


#: By a name of its own, because a union cannot hold FailFast, which has no hash.
_Parts = TypeAliasType("_Parts", Annotated[list[_TextPart], FailFast()])


class ChatMessage(BaseModel):
    """One message of OpenAI's chat format; text only."""

    model_config = ConfigDict(extra="ignore")

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | _Parts | None = None
    name: str | None = None
    tool_calls: list[dict[str, Any]] | None = None
    tool_call_id: str | None = None

    @model_validator(mode="after")
    def _has_something(self) -> ChatMessage:
        if self.content is None and not (self.role == "assistant" and self.tool_calls):
            raise ValueError("has no content")
        if self.role == "tool" and not self.tool_call_id:
            raise ValueError("is a tool's result and needs its tool_call_id")
        if self.tool_calls and not _is_plain_json(self.tool_calls):
            raise ValueError("has tool_calls with a number that JSON does not have")
        return self

    @property
    def text(self) -> str:
        """The text, its parts joined."""
        if isinstance(self.content, list):
            return "".join(part["text"] for part in self.content)
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
            raise ValueError("must be 1: a turn has one answer")
        return value

    @field_validator("tools")
    @classmethod
    def _no_tools(cls, value: list[Any] | None) -> list[Any] | None:
        if value:
            raise ValueError("cannot be brought by a request: the profile decides which tools a turn may use")
        return value

    @field_validator("messages")
    @classmethod
    def _ends_with_user(cls, value: list[ChatMessage]) -> list[ChatMessage]:
        if value[-1].role != "user" or not value[-1].text.strip():
            raise ValueError("must end with a message of the user, with text in it")
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
        """Every text, for the limit on its size."""
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
        """Every text, for the limit on its size."""
        return [self.message]


_B = TypeVar("_B", ChatBody, TurnBody)


@cache
def _chat_body(messages_max: int) -> type[ChatBody]:
    """The body's model with the deployment's limit on messages in it, so that no message past it is looked at."""
    messages: Any = (Annotated[list[ChatMessage], FailFast()], Field(min_length=1, max_length=messages_max))
    return create_model("ChatBody", __base__=ChatBody, messages=messages)


def parse_body(kind: type[_B], raw: bytes, *, message_bytes_max: int, messages_max: int = 2_000) -> _B:
    """A validated body; raises BadRequestError or TooLargeError for the first thing that is wrong with it.

    Whatever `raw` holds, 4 MiB of it take some 30 ms: only then may it be called where others wait.

    `kind`: the model of the body. `raw`: the request's bytes. `message_bytes_max`: of one message's text.
    `messages_max`: of one conversation.
    """
    _require_few_values(raw)
    model: type[BaseModel] = _chat_body(messages_max) if kind is ChatBody else kind
    try:
        body = cast("_B", model.model_validate_json(raw))
    except ValidationError as error:
        raise _refusal(error.errors(include_url=False, include_input=False)) from None
    for text in body.texts():
        size = len(text.encode())
        if size > message_bytes_max:
            raise TooLargeError(f"A message has {size:,} bytes; the limit is {message_bytes_max:,}.", param="messages")
    return body


def _require_few_values(raw: bytes) -> None:
    """Refuses a body of millions of tiny values before anything is made of them."""
    if next(islice(_TOKEN.finditer(raw), TOKENS_MAX, None), None) is not None:
        raise TooLargeError(f"The body has more than {TOKENS_MAX:,} keys and values.")


def _refusal(errors: list[ErrorDetails]) -> BadRequestError:
    """The first thing that is wrong, in the service's own words: a library's change from version to version."""
    error = errors[0]
    if error["loc"][-1:] == ("str",):
        # Of content that is neither text nor a list of parts pydantic tells both; the deeper one is what was meant.
        where = error["loc"][:-1]
        error = max((other for other in errors if other["loc"][: len(where)] == where), key=lambda it: len(it["loc"]))
    kind, about = error["type"], error.get("ctx", {})
    if kind == "json_invalid":
        place = re.search(r"line \d+ column \d+", str(about.get("error", "")))
        return BadRequestError(f"The body is not JSON in UTF-8{f' ({place.group()})' if place else ''}.")
    param = ".".join(str(part) for part in error["loc"] if part not in _UNION_MEMBERS) or None
    if kind == "value_error":
        words = str(about["error"])
    elif kind == "too_long" and param == "messages":
        return TooLargeError(f"The request has more than {about['max_length']:,} messages.", param=param)
    else:
        words = _WORDS.get(kind, "has a value that is not taken").format(**about)
    return BadRequestError(f"{param or 'The body'} {words}.", param=param)
