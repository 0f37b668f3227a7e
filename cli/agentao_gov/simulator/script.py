"""What a simulated model is told to do: the script's data model, read from TOML, JSON or a prompt's directive.

A script is a list of rules over a default behaviour. A directive is one line of a user message,

    @sim {"first_token": "200ms", "text": "Hello."}

and takes precedence over the script. Everything random in a behaviour is drawn from the script's seed.
"""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from agentao_gov.errors import ConfigError

#: A directive stands on a line of its own, so that quoting one in a sentence does not trigger it.
DIRECTIVE = re.compile(r"^@sim[ \t]+(\{.*\})[ \t]*$", re.MULTILINE)

_DURATION = re.compile(r"^\s*(\d+(?:\.\d+)?)\s*(ms|s|m)?\s*$")
_UNIT_S = {"ms": 0.001, "s": 1.0, "m": 60.0, None: 1.0}


def _seconds(value: Any) -> Any:
    """Reads `200ms`, `1.5s`, `2m`; a plain number is seconds."""
    if isinstance(value, str) and (found := _DURATION.match(value)):
        return float(found[1]) * _UNIT_S[found[2]]
    return value


Seconds = Annotated[float, BeforeValidator(_seconds), Field(ge=0)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Distribution(_Strict):
    """A seeded distribution. Durations are seconds, lengths are tokens.

    `fixed`: `value` · `uniform`: `low`..`high` · `exponential`: `mean` · `lognormal`: `p50` and `p99`.
    """

    dist: Literal["fixed", "uniform", "exponential", "lognormal"] = "fixed"
    value: Seconds = 0.0
    low: Seconds = 0.0
    high: Seconds = 0.0
    mean: Seconds = 0.0
    p50: Seconds = 0.0
    p99: Seconds = 0.0
    #: Nothing drawn exceeds this, so that one tail value cannot hold up a test run.
    cap: Seconds | None = None

    @model_validator(mode="before")
    @classmethod
    def _plain(cls, data: Any) -> Any:
        return data if isinstance(data, dict) else {"dist": "fixed", "value": data}

    @model_validator(mode="after")
    def _complete(self) -> Distribution:
        if self.dist == "lognormal" and not 0 < self.p50 <= self.p99:
            raise ValueError("lognormal needs 0 < p50 <= p99")
        if self.dist == "uniform" and self.high < self.low:
            raise ValueError("uniform needs low <= high")
        if self.dist == "exponential" and self.mean <= 0:
            raise ValueError("exponential needs mean > 0")
        return self


class ToolPlan(_Strict):
    """Tool calls before the answer.

    `rounds` counts rounds of the loop, `"endless"` never answers. With `vary` each call's arguments differ:
    `{round}` and `{call}` in the name and in any string argument are filled in, and where none has them the first
    string argument gets a suffix. `raw` sends those characters as the arguments instead, valid JSON or not.
    """

    name: str
    args: dict[str, Any] = {}
    raw: str | None = None
    rounds: Annotated[int, Field(ge=0)] | Literal["endless"] = 1
    vary: bool = False
    #: Calls in one assistant message.
    parallel: Annotated[int, Field(ge=1, le=64)] = 1
    #: Text sent before the calls.
    text: str | None = None


FaultKind = Literal[
    "status",  # an HTTP error: `status`, `retry_after`
    "hang",  # no byte at all; with `seconds` it goes on afterwards
    "stall",  # `after` tokens, then silence; with `seconds` it goes on afterwards
    "drip",  # a byte every `interval`, for ever
    "drop",  # the connection is reset after `after` tokens (0: before the first byte)
    "html",  # 200 with an HTML page
    "malformed",  # an event that is not JSON after `after` tokens
    "error_event",  # an error object in mid-stream
    "no_done",  # the stream ends without finish_reason, usage and [DONE]
]
_STATUS_SHORT = re.compile(r"^\d{3}$")


class Fault(_Strict):
    """What goes wrong. As a string: `"429"`, `"hang"`, `"stall"`...

    `times` bounds it: the n-th identical request (same messages) from then on is answered properly.
    """

    kind: FaultKind
    status: Annotated[int, Field(ge=400, le=599)] = 500
    retry_after: Seconds | None = None
    #: OpenAI's error `code`, e.g. `insufficient_quota`; None: one that fits the status.
    code: str | None = None
    after: Annotated[int, Field(ge=0)] = 3
    seconds: Seconds | None = None
    interval: Annotated[Seconds, Field(gt=0)] = 1.0
    times: Annotated[int, Field(ge=1)] | None = None

    @model_validator(mode="before")
    @classmethod
    def _short(cls, data: Any) -> Any:
        if isinstance(data, int):
            data = str(data)
        if not isinstance(data, str):
            if isinstance(data, dict) and "kind" not in data and "status" in data:
                return {"kind": "status", **data}
            return data
        return {"kind": "status", "status": int(data)} if _STATUS_SHORT.match(data) else {"kind": data}


class UsagePlan(_Strict):
    """How usage is reported. As a string: `"exact"`, `"missing"`, `"inflated"` (three times), `"zero"`."""

    report: bool = True
    factor: Annotated[float, Field(ge=0)] = 1.0
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    #: None: as the prompt cache counts.
    cached_tokens: int | None = None
    cache_write_tokens: int | None = None
    reasoning_tokens: int = 0

    @model_validator(mode="before")
    @classmethod
    def _short(cls, data: Any) -> Any:
        words: dict[str, dict[str, Any]] = {
            "exact": {},
            "missing": {"report": False},
            "inflated": {"factor": 3.0},
            "zero": {"factor": 0.0},
        }
        if isinstance(data, str):
            if data not in words:
                raise ValueError(f"usage is one of {', '.join(words)}, or a table")
            return words[data]
        return data


#: `role_only`, `no_role` and `usage_every_chunk` are ways of Chat Completions alone.
Quirk = Literal["crlf", "comments", "role_only", "split_utf8", "usage_every_chunk", "no_role"]


class Behaviour(_Strict):
    """How one request is answered. Every field has a default: an empty behaviour is a short, instant, honest answer."""

    #: The answer. None: about what was asked, or filler of `answer_tokens`.
    text: str | None = None
    answer_tokens: Distribution | None = None
    first_token: Distribution = Distribution()
    per_token: Distribution = Distribution()
    #: Tokens in one streamed event; None: as many as keeps events 10 ms apart.
    chunk_tokens: Annotated[int, Field(ge=1)] | None = None
    tool: ToolPlan | None = None
    #: One behaviour per round of the tool loop; the last one repeats. Fields here override those outside.
    steps: tuple[Behaviour, ...] = ()
    fault: Fault | None = None
    usage: UsagePlan = UsagePlan()
    quirks: tuple[Quirk, ...] = ()
    finish_reason: str | None = None
    #: The request waits, before its first byte, until `release` is called with this name.
    hold: str | None = None
    #: Ground truth is also summed by this word.
    tag: str | None = None
    #: The answer names those of these words that stood in what the turn's tools returned.
    look_for: tuple[str, ...] = ()

    def at(self, round_index: int) -> Behaviour:
        """The behaviour of a round of the tool loop (from 0)."""
        if not self.steps:
            return self
        step = self.steps[min(round_index, len(self.steps) - 1)]
        own = {name: getattr(step, name) for name in step.model_fields_set}
        return self.model_copy(update={"steps": (), **own})


class Match(_Strict):
    """Which requests a rule is for; every given field must fit."""

    contains: str | None = None
    model: str | None = None
    user: str | None = None
    api_key: str | None = None
    stream: bool | None = None
    #: True: only the context summariser's requests; False: never those.
    summary: bool | None = None


class Rule(_Strict):
    """The first rule that matches decides; `times` lets it match so many requests and then no more."""

    match: Match = Match()
    respond: Behaviour
    times: Annotated[int, Field(ge=1)] | None = None


class ProviderCapacity(_Strict):
    """What the simulated provider can serve: `concurrency` requests at once, the rest queue or get 429.

    More than its limits a minute get 429 with each API's headers that say where the limits stand.
    """

    concurrency: Annotated[int, Field(ge=1)] | None = None
    requests_per_minute: Annotated[int, Field(ge=1)] | None = None
    #: Prompt and completion together.
    tokens_per_minute: Annotated[int, Field(ge=1)] | None = None
    overflow: Literal["queue", "429"] = "queue"
    #: With `queue`: waiting requests beyond this get 429.
    queue_limit: Annotated[int, Field(ge=0)] = 10_000
    #: What a refusal for `concurrency` asks for; one by the minute knows how long it takes.
    retry_after: Seconds = 1.0


class Script(_Strict):
    """The whole script."""

    seed: int = 0
    rules: tuple[Rule, ...] = ()
    default: Behaviour = Behaviour()
    capacity: ProviderCapacity = ProviderCapacity()
    #: The wires of OpenAI cache prompts without being asked, too. Anthropic's does where a request marks it, always.
    prefix_cache: bool = False
    #: Directives in prompts are obeyed. A load test turns them off where prompts are not its own.
    directives: bool = True
    #: Names that `/v1/models` lists; any name is served.
    models: tuple[str, ...] = ("simulated",)


def load_script(source: Script | Behaviour | dict[str, Any] | str | Path | None) -> Script:
    """Reads a script from a model, a mapping, or a `.toml` or `.json` file.

    A mapping with keys of a behaviour only is taken as the default behaviour.
    Raises ConfigError with the file and what is wrong.
    """
    if source is None:
        return Script()
    if isinstance(source, Script):
        return source
    if isinstance(source, Behaviour):
        return Script(default=source)
    where = "the script"
    if isinstance(source, str | Path):
        where = str(source)
        source = _read(Path(source))
    try:
        if source and not set(source) & set(Script.model_fields):
            return Script(default=Behaviour.model_validate(source))
        return Script.model_validate(source)
    except ValidationError as error:
        raise ConfigError(
            f"{where}: {_first(error)}", hint="The fields are described in agentao_gov.simulator.script."
        ) from error


class _Limits(_Strict):
    """`--limits FILE`: what somebody writes down of their provider."""

    requests_per_minute: Annotated[int, Field(ge=1)] | None = None
    tokens_per_minute: Annotated[int, Field(ge=1)] | None = None
    concurrency: Annotated[int, Field(ge=1)] | None = None


def load_limits(source: dict[str, Any] | str | Path) -> ProviderCapacity:
    """Reads a provider's limits from a mapping or a `.toml` or `.json` file; what is beyond them gets 429.

    The keys: `requests_per_minute`, `tokens_per_minute`, `concurrency`. Raises ConfigError with the file and what is
    wrong.
    """
    where = "the limits" if isinstance(source, dict) else str(source)
    values = source if isinstance(source, dict) else _read(Path(source))
    try:
        limits = _Limits.model_validate(values)
    except ValidationError as error:
        hint = "The keys are requests_per_minute, tokens_per_minute and concurrency; each is a number from 1."
        raise ConfigError(f"{where}: {_first(error)}", hint=hint) from error
    return ProviderCapacity(**limits.model_dump(), overflow="429")


def read_directive(text: str) -> Behaviour | None:
    """The behaviour a user message asks for, or None.

    Raises ConfigError when a directive is there but wrong, so that a misspelt script cannot pass unnoticed.
    """
    found = DIRECTIVE.search(text)
    if found is None:
        return None
    try:
        return Behaviour.model_validate(json.loads(found[1]))
    except ValidationError as error:
        raise ConfigError(f"@sim directive: {_first(error)}") from error
    except json.JSONDecodeError as error:
        raise ConfigError(f"@sim directive: not JSON: {error}") from error


def _read(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8-sig")
        data = json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
    except (OSError, UnicodeDecodeError, ValueError) as error:
        raise ConfigError(f"{path}: {error}", hint="A simulator script is a .toml or .json file.") from error
    if not isinstance(data, dict):
        raise ConfigError(f"{path}: a script is a table, not {type(data).__name__}.")
    return data


def _first(error: ValidationError) -> str:
    problem = error.errors(include_url=False)[0]
    return f"{'.'.join(str(part) for part in problem['loc']) or 'script'}: {problem['msg']}"
