"""Anthropic's Messages and OpenAI's Responses under the same governor as Chat Completions.

agentao's own adapters translate history into requests and events into answers; here they get our transport, our meter
and our errors. Requests go out through the shared OpenAI SDK object on every wire: what it raises is what the retries,
the repairs and the descriptions of failures read.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator, Mapping
from http import HTTPStatus
from typing import Any, ClassVar, NoReturn

import httpx2
import openai
from agentao.llm._anthropic_messages import AnthropicMessagesAdapter, _merge_usage, _Usage
from agentao.llm._api_format import ANTHROPIC_MESSAGES, OPENAI_RESPONSES
from agentao.llm._openai_responses import OpenAIResponsesAdapter, ResponsesStreamError, translate_tools
from agentao.llm._openai_responses import _Usage as _ResponsesUsage
from openai import Omit

from agentao_gov.governor.adapter import GovernedAdapter, ProviderStream, StreamMeter, refuse_pages
from agentao_gov.governor.answers import error_in, read_events
from agentao_gov.governor.classify import NotAModelError
from agentao_gov.governor.http import HttpClient
from agentao_gov.governor.report import replace_surrogates
from agentao_gov.governor.spend import Spend, larger, reported_usage

#: The Messages API as its official package speaks it.
_ANTHROPIC_VERSION = "2023-06-01"
#: What Anthropic puts before the tools of a request: 264 to 530 tokens by model, as its documentation says.
_TOOL_PREAMBLE_TOKENS = 600
#: The words around a system message in the middle of a conversation, which Messages does not know.
_REMINDER_TOKENS = 40


def anthropic_headers(api_key: str) -> dict[str, str]:
    """The headers that every request to Anthropic's API has; `api_key` stands in them."""
    return {"x-api-key": api_key, "anthropic-version": _ANTHROPIC_VERSION}


class _Meter(StreamMeter):
    """Watches a stream of typed events."""

    def _thought(self, piece: Any) -> None:
        self.thought = self.thought or bool(piece)
        self._add(piece)

    def _report(self, usage: Any) -> None:
        said = reported_usage(usage)
        if said is not None:
            self.reported = larger(self.reported, said)
            self._reported_pieces = len(self._pieces)


class _MessagesMeter(_Meter):
    """Usage stands in the first event and, grown, in the last but one."""

    def __init__(self, spend: Spend, model: str, output_tokens_max: int) -> None:
        super().__init__(spend, model, output_tokens_max)
        self._counts: dict[str, int] = {}

    def _observe(self, chunk: Any) -> None:
        match chunk.type:
            case "message_start":
                self._count(getattr(chunk.message, "usage", None))
            case "content_block_start":
                self._add(getattr(chunk.content_block, "name", None))
            case "content_block_delta":
                delta = chunk.delta
                self._add(getattr(delta, "text", None))
                self._thought(getattr(delta, "thinking", None))
                self._add(getattr(delta, "partial_json", None))
            case "message_delta":
                self.finished = self.finished or bool(getattr(chunk.delta, "stop_reason", None))
                self._count(getattr(chunk, "usage", None))

    def _count(self, usage: Any) -> None:
        _merge_usage(self._counts, usage)
        if self._counts:
            self._report(_Usage(self._counts))


class _ResponsesMeter(_Meter):
    """Usage stands in the event that ends the answer, which also restates all of it."""

    def _observe(self, chunk: Any) -> None:
        match chunk.type:
            case "response.output_text.delta" | "response.refusal.delta" | "response.function_call_arguments.delta":
                self._add(chunk.delta)
            case "response.reasoning_summary_text.delta" | "response.reasoning_text.delta":
                self._thought(chunk.delta)
            case "response.output_item.added":
                self._add(getattr(chunk.item, "name", None))
            case "response.completed" | "response.incomplete":
                self.finished = True
                if not self._pieces:
                    self._restated(chunk.response)
                self._end(chunk.response)
            case "response.failed":
                self._end(chunk.response)

    def _restated(self, response: Any) -> None:
        """Counts an answer whose items came without deltas."""
        for item in getattr(response, "output", None) or ():
            self._add(getattr(item, "arguments", None))
            for part in getattr(item, "content", None) or ():
                self._add(getattr(part, "text", None))

    def _end(self, response: Any) -> None:
        usage = getattr(response, "usage", None)
        if usage is not None:
            self._report(_ResponsesUsage(usage))


# ── the SDK that agentao sees ─────────────────────────────────────────────────────────────────────


class _Record(dict[str, Any]):
    """A JSON object of an event, whose fields are attributes, too, as agentao reads them.

    The official packages' types are not used: the first import of `anthropic` takes seconds on a busy machine, in the
    middle of somebody's turn.
    """

    def __init__(self, fields: dict[str, Any]) -> None:
        super().__init__(
            (key, replace_surrogates(value) if isinstance(value, str) else value) for key, value in fields.items()
        )

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None


class _Endpoint:
    """`client.messages` or `client.responses`: one request, whose stream is measured as it is read."""

    def __init__(self, sdk: openai.OpenAI, path: str, headers: Mapping[str, str | Omit]) -> None:
        self._sdk = sdk
        self._path = path
        self._headers = headers
        # The meter and accumulator of the call in flight; a model client makes one call at a time.
        self.meter: StreamMeter | None = None
        self.accumulator: Any = None

    def create(
        self,
        *,
        timeout: httpx2.Timeout,
        extra_body: Mapping[str, Any] | None = None,
        extra_headers: Mapping[str, str] | None = None,
        **body: Any,
    ) -> Iterator[Any]:
        """Sends a request, whose body the SDK does not transform, and returns its events."""
        response = self._sdk.post(
            self._path,
            cast_to=object,
            body={**body, **(extra_body or {})},
            options={"headers": {**self._headers, **(extra_headers or {})}, "timeout": timeout},
            stream=True,
            stream_cls=openai.Stream[Any],
        ).response
        refuse_pages(response)
        assert self.meter is not None
        return self.meter.watch(ProviderStream(response, self.meter, self._read), self.accumulator)

    def _read(self, parts: Iterator[bytes], request: httpx2.Request) -> Iterator[Any]:
        """The events of an answer. Raises openai.APIError for an error in whatever words."""
        begin = next(parts, b"")
        if begin.lstrip().startswith((b"{", b"[")):
            _refuse_json(b"".join((begin, *parts)), request)
        for event in read_events(itertools.chain([begin], parts)):
            if not event.data.startswith("{"):
                continue
            data = json.loads(event.data, object_hook=_Record)
            # The end of a failed response tells its usage, too, and agentao raises for it.
            error = error_in(data, event.name) if not str(data.get("type", "")).startswith("response.") else None
            if error is not None:
                raise openai.APIError(error["message"], request, body=error)
            if isinstance(data.get("type"), str):
                yield data


def _refuse_json(body: bytes, request: httpx2.Request) -> NoReturn:
    """Raises for JSON where events were asked for: an error under the status of an answer, or no model's answer."""
    error = error_in(json.loads(body))
    if error is None:
        raise NotAModelError("JSON where events were asked for")
    failure = openai.APIError(error["message"], request, body=error)
    # A refusal, which cost nothing.
    vars(failure)["status_code"] = HTTPStatus.OK
    raise failure


class _NativeSdk:
    """What agentao sees as its client."""

    def __init__(self, endpoint: _Endpoint) -> None:
        self.messages = self.responses = endpoint


# ── the adapters ──────────────────────────────────────────────────────────────────────────────────


class _Native:
    """What both wires share: transport, meter, errors. Mixed in before agentao's adapter."""

    #: agentao warns when `extra_body` holds these; here it is meant.
    structural_body_keys: ClassVar[frozenset[str]] = frozenset()
    #: Whether a last answer without tools still declares them.
    keeps_tools: ClassVar[bool] = False
    _owner: Any
    _http: HttpClient
    _meter: type[_Meter]
    #: What the request calls the limit of its output.
    _limit: str

    def new_meter(self, spend: Spend) -> StreamMeter:
        """The meter of one attempt."""
        return self._meter(spend, self._owner.model, self._owner.max_tokens)

    def measure(self, meter: StreamMeter | None) -> None:
        """Takes the meter of the call that comes."""
        self._owner.client.messages.meter = meter

    def limit_output(self, kwargs: dict[str, Any], tokens: int) -> None:
        """Puts what the ledger granted into a request."""
        kwargs[self._limit] = tokens

    def consume_stream(self, kwargs: dict[str, Any], acc: Any, on_text_chunk: Any, cancellation_token: Any) -> Any:
        """One attempt. A socket that our own cancel shut down ends it like agentao's own cancel."""
        self._owner.client.messages.accumulator = acc
        try:
            return super().consume_stream(kwargs, acc, on_text_chunk, cancellation_token)  # type: ignore[misc]
        except Exception:
            if cancellation_token is not None and cancellation_token.is_cancelled:
                return acc.build()
            raise

    def classify_retry(self, exc: BaseException) -> tuple[bool, int | None, str | None]:
        """Whether it may pass, its status, and the Retry-After that came with it."""
        if isinstance(exc, ResponsesStreamError):
            found: tuple[bool, int | None, str | None] = super().classify_retry(exc)  # type: ignore[misc]
            return found
        return GovernedAdapter.classify_retry(self._openai, exc)

    @property
    def _openai(self) -> GovernedAdapter:
        """The adapter that knows the SDK's errors."""
        return GovernedAdapter(self._owner, self._http)

    def log_view(self, kwargs: dict[str, Any], messages: Any, tools: Any) -> dict[str, Any]:
        """What may be logged of a request: its settings, never its text."""
        return self._openai.log_view(kwargs, messages, tools)


class GovernedMessages(_Native, AnthropicMessagesAdapter):
    """The Messages API. Prompts are marked for its cache: the last message that stays, the system prompt, the tools."""

    keeps_tools = True
    _meter = _MessagesMeter
    _limit = "max_tokens"

    def __init__(self, owner: Any, http: HttpClient) -> None:
        super().__init__(owner)
        self._http = http

    def create_client(self) -> Any:
        """The shared SDK object with Anthropic's headers, behind the meter. The address may end in `/v1` or not."""
        base_url, key = self._owner.base_url, self._owner.api_key
        path = "/messages" if base_url.rstrip("/").endswith("/v1") else "/v1/messages"
        headers: dict[str, str | Omit] = {**anthropic_headers(key), "Authorization": Omit()}
        return _NativeSdk(_Endpoint(self._http.endpoint(base_url, key), path, headers))

    def frame_tokens(self, messages: list[dict[str, Any]], tools: list[dict[str, Any]] | None) -> int:
        """What this wire adds to a prompt, at most."""
        wrapped = sum(1 for message in messages[1:] if message.get("role") in ("system", "developer"))
        return (_TOOL_PREAMBLE_TOKENS if tools else 0) + _REMINDER_TOKENS * (wrapped + 1)

    def build_request(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """The request, with the temperature that agentao does not send here because the official package cannot."""
        request: dict[str, Any] = super().build_request(*args, **kwargs)
        if self._owner.temperature is not None and not self._owner.omit_temperature:
            request["temperature"] = self._owner.temperature
        return request

    def declare_tools(self, kwargs: dict[str, Any], tools: list[dict[str, Any]]) -> None:  # noqa: ARG002
        """Adds the word not to use the tools, which stand in the request: the cache begins with them."""
        kwargs["tool_choice"] = {"type": "none"}

    def repair_request(self, err_text: str, kwargs: dict[str, Any], *, stream: bool) -> bool:
        """Mends a request that was refused, each way once. True: it is to be sent again."""
        if super().repair_request(err_text, kwargs, stream=stream):
            if self._max_output_tokens is not None:
                # What is reserved for the answer follows what the model can say.
                self._owner.max_tokens = min(self._owner.max_tokens, self._max_output_tokens)
            return True
        if "temperature" in err_text and "temperature" in kwargs:
            # Models that think take none.
            self._owner.omit_temperature = True
            del kwargs["temperature"]
            return True
        if "cache_control" in err_text and self._owner.cache_control is not None:
            # A gateway that does not know the marker.
            self._owner.cache_control = None
            for key in ("system", "messages", "tools"):
                if key in kwargs:
                    kwargs[key] = _without_markers(kwargs[key])
            return True
        return False


class GovernedResponses(_Native, OpenAIResponsesAdapter):
    """The Responses API, which keeps nothing: each request carries the conversation, with its thoughts encrypted."""

    _meter = _ResponsesMeter
    _limit = "max_output_tokens"

    def __init__(self, owner: Any, http: HttpClient) -> None:
        super().__init__(owner, lambda: openai.OpenAI)
        self._http = http
        # Parameters that the endpoint refused.
        self._refused: set[str] = set()

    def create_client(self) -> Any:
        """The shared SDK object, behind the meter."""
        sdk = self._http.endpoint(self._owner.base_url, self._owner.api_key)
        return _NativeSdk(_Endpoint(sdk, "/responses", {}))

    def frame_tokens(self, messages: list[dict[str, Any]], tools: list[dict[str, Any]] | None) -> int:  # noqa: ARG002
        """Nothing: what this wire adds is within what every request is reserved for."""
        return 0

    def declare_tools(self, kwargs: dict[str, Any], tools: list[dict[str, Any]]) -> None:
        """Sends tools along, with the word not to use them."""
        kwargs |= {"tools": translate_tools(tools), "tool_choice": "none"}

    def build_request(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """The request, without what the endpoint refused before."""
        request: dict[str, Any] = super().build_request(*args, **kwargs)
        return {key: value for key, value in request.items() if key not in self._refused}

    def repair_request(self, err_text: str, kwargs: dict[str, Any], *, stream: bool) -> bool:
        """Mends a request that was refused, each way once. True: it is to be sent again."""
        if super().repair_request(err_text, kwargs, stream=stream):
            return True
        for name in ("store", "temperature"):
            if name in kwargs and _refuses(err_text, name):
                self._refused.add(name)
                del kwargs[name]
                return True
        return False


Adapter = GovernedAdapter | GovernedMessages | GovernedResponses


def adapter_for(owner: Any, http: HttpClient) -> Adapter:
    """The adapter of the wire that `owner`, a model client, is configured for; `http` carries its requests."""
    if owner.api_format == ANTHROPIC_MESSAGES:
        return GovernedMessages(owner, http)
    if owner.api_format == OPENAI_RESPONSES:
        return GovernedResponses(owner, http)
    return GovernedAdapter(owner, http)


def _refuses(text: str, name: str) -> bool:
    return re.search(rf"(unknown|unsupported|unrecognized|invalid|not supported)\W.*\b{name}\b", text) is not None


def _without_markers(value: Any) -> Any:
    if isinstance(value, list):
        return [_without_markers(inner) for inner in value]
    if isinstance(value, dict):
        return {key: _without_markers(inner) for key, inner in value.items() if key != "cache_control"}
    return value
