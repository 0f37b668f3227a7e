"""What a wire is to the simulated model: how a request is read, and how the answer that was decided is said.

The planner decides once, for all three: `PlannedAnswer` and `ReportedUsage` are in no API's words. `wire_completions`,
`wire_responses` and `wire_messages` put them into OpenAI's and Anthropic's.
"""

from __future__ import annotations

import codecs
import json
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from agentao_gov.errors import BadRequestError
from agentao_gov.simulator.request import ChatRequest, WireName
from agentao_gov.simulator.tokens import completion_tokens

compact = json.JSONEncoder(separators=(",", ":"), ensure_ascii=False).encode


@dataclass(frozen=True, slots=True)
class PlannedAnswer:
    """What is said, after the request's limit has cut it. `finish_reason` is OpenAI's word, or the script's own."""

    number: int
    tokens: tuple[bytes, ...]
    calls: tuple[tuple[str, str], ...]
    finish_reason: str

    @property
    def text(self) -> str:
        return b"".join(self.tokens).decode("utf-8", "replace")

    @property
    def completion_tokens(self) -> int:
        return len(self.tokens) + completion_tokens("", self.calls)

    def call_id(self, prefix: str, index: int) -> str:
        """The id of a tool call, the same in a stream and in one piece."""
        return f"{prefix}_sim{self.number}_{index}"


@dataclass(frozen=True, slots=True)
class ReportedUsage:
    """What is reported. Cached and written tokens are parts of the prompt, thoughts are a part of the completion."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0
    cache_write_tokens: int = 0
    reasoning_tokens: int = 0

    @property
    def total_tokens(self) -> int:
        """Prompt and completion together."""
        return self.prompt_tokens + self.completion_tokens


@dataclass(frozen=True, slots=True)
class RateStand:
    """Where a limit of so much a minute stands: what it allows, what is left, and when it is full again."""

    name: Literal["requests", "tokens"]
    limit: int
    remaining: int
    full_in_s: float


class EventStream(Protocol):
    """Encodes one streamed answer; every method returns the bytes of one or more events."""

    def opening(self) -> bytes: ...

    def text(self, text: str) -> bytes: ...

    def call(self, index: int, name: str, arguments: str) -> bytes: ...

    def ending(self) -> bytes: ...

    def comment(self) -> bytes: ...

    def malformed(self) -> bytes: ...

    def failure(self, message: str) -> bytes: ...


class Wire(Protocol):
    """One API: its requests, answers, errors and limits."""

    name: WireName

    def read(self, body: bytes, headers: Mapping[str, str]) -> ChatRequest:
        """Parses a request. Raises BadRequestError where the API would answer 400."""
        ...

    def whole(self, answer: PlannedAnswer, request: ChatRequest, usage: ReportedUsage | None) -> bytes: ...

    def stream(
        self, answer: PlannedAnswer, request: ChatRequest, usage: ReportedUsage | None, quirks: Collection[str]
    ) -> EventStream: ...

    def error(self, status: int, message: str, *, code: str | None = None, param: str | None = None) -> bytes: ...

    def rate_headers(self, stands: Sequence[RateStand]) -> tuple[tuple[str, str], ...]: ...


def parse_object(body: bytes) -> dict[str, Any]:
    """A request's body, which must be an object with a model. Raises BadRequestError."""
    try:
        data = json.loads(body)
    except (ValueError, UnicodeDecodeError) as error:
        raise BadRequestError(f"The body is not JSON: {error}") from error
    if not isinstance(data, dict):
        raise BadRequestError("The body must be a JSON object.")
    if not isinstance(data.get("model"), str):
        raise BadRequestError("`model` must be a string.", param="model")
    return data


def text_chunks(tokens: Sequence[bytes], per_chunk: int) -> Iterator[tuple[str, int]]:
    """Groups tokens into (text, number of tokens); a character split over tokens stays whole."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    carried = 0
    for start in range(0, len(tokens), per_chunk):
        group = tokens[start : start + per_chunk]
        final = start + per_chunk >= len(tokens)
        text = decoder.decode(b"".join(group), final)
        carried += len(group)
        if text or final:
            yield text, carried
            carried = 0


# ── what OpenAI's two APIs share ──────────────────────────────────────────────────────────────────

_ERRORS = {
    400: ("invalid_request_error", None),
    401: ("authentication_error", "invalid_api_key"),
    404: ("invalid_request_error", "model_not_found"),
    429: ("rate_limit_error", "rate_limit_exceeded"),
}


def error_body(status: int, message: str, *, code: str | None = None, param: str | None = None) -> bytes:
    """OpenAI's error object for an HTTP status; `code` in place of the status's own."""
    kind, own = _ERRORS.get(status, ("server_error", None))
    return compact({"error": {"message": message, "type": kind, "param": param, "code": code or own}}).encode()


def openai_rate_headers(stands: Sequence[RateStand]) -> tuple[tuple[str, str], ...]:
    """The headers in which OpenAI says where its limits stand: `x-ratelimit-reset-tokens: 6m0s`."""
    headers = []
    for stand in stands:
        minutes, seconds = divmod(stand.full_in_s, 60)
        reset = f"{minutes:.0f}m{seconds:.0f}s" if minutes else f"{stand.full_in_s:.3g}s"
        headers += [
            (f"x-ratelimit-limit-{stand.name}", str(stand.limit)),
            (f"x-ratelimit-remaining-{stand.name}", str(stand.remaining)),
            (f"x-ratelimit-reset-{stand.name}", reset),
        ]
    return tuple(headers)


def created() -> int:
    """Now, in whole seconds since the epoch."""
    return int(time.time())
