"""The wire: agentao's Chat Completions adapter over the shared client, with every stream measured as it arrives.

Sending `messages` and `tools` through `extra_body` skips the SDK's transformation of every message, which holds the
interpreter lock for 0.33 ms per message (openai 3.54: 72 ms a call at 200 messages, 8 ms without it).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any, Literal

import httpx2
import openai
from agentao.llm._openai_completions import OpenAICompletionsAdapter
from agentao.llm._retry import QUOTA_EXHAUSTED_CODES, StreamEndedEarlyError
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from agentao_gov.governor.answers import read_chunks, read_whole
from agentao_gov.governor.classify import NotAModelError
from agentao_gov.governor.http import HttpClient
from agentao_gov.governor.spend import Spend, larger, reported_usage
from agentao_gov.governor.tokens import count_tokens, is_calibrated
from agentao_gov.governor.turn import CallUsage

#: A provider's count and ours differ by a few tokens where pieces of a stream are joined.
_SLACK_TOKENS = 16
#: Tokenizers that we have no table for may need this many times fewer tokens than cl100k for the same text.
_FOREIGN_FACTOR = 2.0
#: Cloudflare's: the origin answered with nothing, refused, or was too slow.
_GATEWAY_ERRORS = frozenset({520, 521, 522, 523, 524})
#: What an error within a stream is called where it will pass: by LiteLLM, which makes texts of numbers, and Anthropic.
_PASSING = frozenset({"429", "500", "502", "503", "504", "529"}) | {"overloaded_error", "rate_limit_error", "api_error"}
_THOUGHT = "reasoning_content"
#: How a provider says that something is missing, not that it is too much.
_WANTED = re.compile(r"must be|missing|required|passed back")
#: How much a running stream asks for at a time when it has used its grant.
EXTEND_TOKENS = 512


class StreamMeter:
    """Watches one stream: whether anything came, how much, and whether it passed its grant."""

    def __init__(self, spend: Spend, model: str, output_tokens_max: int) -> None:
        self._spend = spend
        self._calibrated = is_calibrated(model)
        self._output_tokens_max = output_tokens_max
        self.begun = False
        #: Cut here because the provider went past what the ledger granted.
        self.cut = False
        #: Whether the provider said why the answer ends.
        self.finished = False
        #: What it reported so far: some providers do while the answer goes on.
        self.reported: CallUsage | None = None
        self._reported_pieces = 0
        self._reported_alone = False
        #: Whether what the model thought could be seen.
        self.thought = False
        self._pieces: list[str] = []
        self._chars = 0
        self._counted_at_chars = 0
        self._counted_tokens = 0

    @property
    def text(self) -> str:
        """All that was received: text, reasoning and tool arguments."""
        return "".join(self._pieces)

    @property
    def report_is_final(self) -> bool:
        """Whether what was reported covers all of the answer: nothing came after it, and the answer is at its end."""
        return self._reported_pieces == len(self._pieces) and (self.finished or self._reported_alone)

    def watch(self, stream: Any, accumulator: Any) -> Iterator[Any]:
        """The stream's chunks, up to the grant. Closes the stream on every way out, so that the provider stops."""
        try:
            for chunk in stream:
                self.begun = True
                self._observe(chunk)
                yield chunk
                if self._passed_grant() and not self._extend():
                    self.cut = True
                    accumulator.finish_reason = "length"
                    accumulator.finish_reason_reported = True
                    return
            if self.begun and not (self.finished or self._pieces or self.reported):
                # Nothing was shown, so it may be asked again; an empty answer would end the turn.
                raise StreamEndedEarlyError("the stream ended before any text")
            if not self.begun:
                # A gateway's page, or nothing at all.
                raise NotAModelError("a stream without any event")
        except openai.APIConnectionError:
            # What comes after the reason for the end is only the end of the stream: the answer is there and paid.
            if not self.finished:
                raise
        finally:
            stream.close()

    def _observe(self, chunk: Any) -> None:
        self._observe_choices(chunk.choices or ())
        said = reported_usage(chunk.usage)
        if said is not None:
            self.reported = larger(self.reported, said)
            self._reported_pieces = len(self._pieces)
            # One beside no choice comes after the answer, unless it comes before all of it.
            self._reported_alone = not chunk.choices and bool(self._pieces)

    def _observe_choices(self, choices: Any) -> None:
        for choice in choices:
            if choice.finish_reason:
                self.finished = True
            delta = choice.delta
            if delta is None:
                continue
            self._add(delta.content)
            thought = getattr(delta, "reasoning_content", None) or getattr(delta, "reasoning", None)
            self.thought = self.thought or bool(thought)
            self._add(thought)
            for call in delta.tool_calls or ():
                if call.function is not None:
                    self._add(call.function.name)
                    self._add(call.function.arguments)

    def _add(self, piece: Any) -> None:
        if isinstance(piece, str) and piece:
            self._pieces.append(piece)
            self._chars += len(piece)

    def _passed_grant(self) -> bool:
        """Whether certainly more came than was granted. Counting is put off until it could be: 4 bytes a token."""
        granted = self._spend.granted_tokens
        # No delta is less than a token, and a token is at least a byte.
        if len(self._pieces) > granted + _SLACK_TOKENS:
            return True
        if self._chars * 4 <= granted or self._chars - self._counted_at_chars < max(64, granted // 2):
            return False
        self._counted_at_chars = self._chars
        self._counted_tokens = count_tokens(self.text)
        allowed = granted if self._calibrated else granted * _FOREIGN_FACTOR
        return self._counted_tokens > allowed + _SLACK_TOKENS

    def _extend(self) -> bool:
        room = self._output_tokens_max - self._spend.granted_tokens
        return room > 0 and self._spend.extend(min(EXTEND_TOKENS, room))


class ProviderStream:
    """A streamed answer, read by us: part by part, with the SDK's own errors for a connection that breaks.

    `read` makes a wire's events of the bytes that come.
    """

    def __init__(
        self,
        response: httpx2.Response,
        meter: StreamMeter,
        read: Callable[[Iterator[bytes], httpx2.Request], Iterator[Any]],
    ) -> None:
        self._response = response
        self._meter = meter
        self._read = read

    def __iter__(self) -> Iterator[Any]:
        request = self._response.request
        try:
            yield from self._read(self._parts(), request)
        except httpx2.TimeoutException as error:
            raise openai.APITimeoutError(request=request) from error
        except httpx2.RequestError as error:
            raise openai.APIConnectionError(request=request) from error

    def _parts(self) -> Iterator[bytes]:
        for part in self._response.iter_bytes():
            # JSON that comes where events were asked for has all been produced when it begins to come.
            self._meter.begun = self._meter.begun or part.lstrip().startswith((b"{", b"["))
            yield part

    def close(self) -> None:
        """Lets the provider stop."""
        self._response.close()


def _chunks(parts: Iterator[bytes], request: httpx2.Request) -> Iterator[ChatCompletionChunk]:
    """The chunks of a Chat Completions stream."""
    for chunk in read_chunks(parts, request):
        yield ChatCompletionChunk.construct(**chunk)


def refuse_pages(response: httpx2.Response) -> None:
    """Raises NotAModelError for a gateway's error page, or what stands at a wrong base URL."""
    kind = response.headers.get("content-type", "")
    if "html" in kind:
        response.close()
        raise NotAModelError(kind.partition(";")[0], response.status_code)


class _Completions:
    """`client.chat.completions` with streams measured."""

    def __init__(self, sdk: openai.OpenAI) -> None:
        self._sdk = sdk
        # The meter and accumulator of the call in flight; a model client makes one call at a time.
        self.meter: StreamMeter | None = None
        self.accumulator: Any = None

    @property
    def with_raw_response(self) -> Any:
        return self._sdk.chat.completions.with_raw_response

    def create(self, **kwargs: Any) -> Any:
        response = self._sdk.chat.completions.create(**kwargs).response
        refuse_pages(response)
        assert self.meter is not None
        return self.meter.watch(ProviderStream(response, self.meter, _chunks), self.accumulator)


class _Chat:
    def __init__(self, completions: _Completions) -> None:
        self.completions = completions


class _Sdk:
    """What agentao sees as its OpenAI client."""

    def __init__(self, sdk: openai.OpenAI) -> None:
        self.chat = _Chat(_Completions(sdk))
        self.models = sdk.models


def _one_system_message(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The messages with all system texts in the first one. The list itself where there is but one.

    A compaction leaves its summary in system messages of their own; Qwen's template refuses them anywhere but at the
    beginning, behind vLLM, SGLang and llama.cpp alike, and the session could never go on.
    """
    systems = [message for message in messages if message.get("role") == "system"]
    if len(systems) < 2 or not all(isinstance(message.get("content"), str) for message in systems):
        return messages
    first = {**systems[0], "content": "\n\n".join(message["content"] for message in systems)}
    return [first, *(message for message in messages if message.get("role") != "system")]


class GovernedAdapter(OpenAICompletionsAdapter):
    """agentao's adapter with our transport, our request shape and our meter."""

    #: agentao warns when `extra_body` holds these; here it is meant.
    structural_body_keys: frozenset[str] = frozenset()
    #: Whether a last answer without tools still declares them.
    keeps_tools = False

    def __init__(self, owner: Any, http: HttpClient) -> None:
        super().__init__(owner, lambda: openai.OpenAI)
        self._http = http
        # What a provider refused once, for every request from then on.
        self._refuses_stream_options = False
        self._thoughts: Literal["as they came", "none", "with every call"] = "as they came"

    def create_client(self) -> Any:
        """The shared SDK object, behind the meter."""
        return _Sdk(self._http.endpoint(self._owner.base_url, self._owner.api_key))

    def build_request(
        self,
        messages: list[dict[str, Any]],
        tools: list[dict[str, Any]] | None,
        max_tokens: int | None,
        *,
        stream: bool,
        cache_boundary: int | None = None,
    ) -> dict[str, Any]:
        """The request, with what is long moved past the SDK's transformation."""
        kwargs: dict[str, Any] = super().build_request(
            messages, tools, max_tokens, stream=stream, cache_boundary=cache_boundary
        )
        body = dict(kwargs.get("extra_body") or {})
        body["messages"] = self._with_thoughts(_one_system_message(kwargs["messages"]))
        if self._refuses_stream_options:
            kwargs.pop("stream_options", None)
        kwargs["messages"] = []
        for key in ("tools", "tool_choice"):
            if key in kwargs:
                body[key] = kwargs.pop(key)
        kwargs["extra_body"] = body
        return kwargs

    def _with_thoughts(self, messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """The messages with the thoughts of earlier answers as the provider takes them."""
        if self._thoughts == "none":
            return [{key: message[key] for key in message if key != _THOUGHT} for message in messages]
        if self._thoughts == "with every call":
            return [{_THOUGHT: "", **message} if message.get("tool_calls") else message for message in messages]
        return messages

    def repair_request(self, err_text: str, kwargs: dict[str, Any], *, stream: bool) -> bool:
        """Mends a request that was refused for one parameter; False where nothing is left to mend.

        `err_text` is the refusal in lower case. Each mend is kept for the requests that follow, so none comes twice.
        """
        if "stream_options" in err_text and "stream_options" in kwargs:
            self._refuses_stream_options = True
            del kwargs["stream_options"]
            return True
        if _THOUGHT in err_text and self._thoughts == "as they came":
            # Groq refuses what DeepSeek insists on.
            self._thoughts = "with every call" if _WANTED.search(err_text) else "none"
            kwargs["extra_body"]["messages"] = self._with_thoughts(kwargs["extra_body"]["messages"])
            return True
        if "too large" in err_text or "at most" in err_text:
            # vLLM names both parameters where their value is the trouble.
            return False
        repaired: bool = super().repair_request(err_text, kwargs, stream=stream)
        return repaired

    def new_meter(self, spend: Spend) -> StreamMeter:
        """The meter of one attempt."""
        return StreamMeter(spend, self._owner.model, self._owner.max_tokens)

    def measure(self, meter: StreamMeter | None) -> None:
        """Takes the meter of the call that comes."""
        self._owner.client.chat.completions.meter = meter

    def limit_output(self, kwargs: dict[str, Any], tokens: int) -> None:
        """Puts what the ledger granted into a request."""
        kwargs["max_completion_tokens" if "max_completion_tokens" in kwargs else "max_tokens"] = tokens

    def frame_tokens(self, messages: list[dict[str, Any]], tools: list[dict[str, Any]] | None) -> int:  # noqa: ARG002
        """What this wire adds to a prompt beyond what every request is reserved for: nothing."""
        return 0

    def declare_tools(self, kwargs: dict[str, Any], tools: list[dict[str, Any]]) -> None:
        """Sends tools along, with the word not to use them."""
        kwargs["extra_body"] = {**kwargs["extra_body"], "tools": tools, "tool_choice": "none"}

    def send(self, kwargs: dict[str, Any], acc: Any) -> Any:
        """One attempt whose answer comes in one piece; what it reports of its usage is left in `acc`."""
        response = self._owner.client.chat.completions.with_raw_response.create(**kwargs).http_response
        refuse_pages(response)
        answer = ChatCompletion.construct(**read_whole(response.content, response.request))
        acc.usage_data = answer.usage
        return answer

    def consume_stream(self, kwargs: dict[str, Any], acc: Any, on_text_chunk: Any, cancellation_token: Any) -> Any:
        """One streaming attempt. A socket that our own cancel shut down ends it like agentao's own cancel."""
        self._owner.client.chat.completions.accumulator = acc
        try:
            return super().consume_stream(kwargs, acc, on_text_chunk, cancellation_token)
        except Exception:
            if cancellation_token is not None and cancellation_token.is_cancelled:
                return acc.build()
            raise

    def classify_retry(self, exc: BaseException) -> tuple[bool, int | None, str | None]:
        """Whether it may pass, its status, and the Retry-After that came with it."""
        if isinstance(exc.__cause__, httpx2.ProxyError) and str(exc.__cause__).startswith("4"):
            # A proxy that does not let us through will not in half a second either.
            return False, None, None
        status = getattr(exc, "status_code", None)
        if status in _GATEWAY_ERRORS:
            return True, status, None
        if isinstance(exc, openai.APIError) and status is None and (said := {str(exc.code), str(exc.type)}) & _PASSING:
            return not said & QUOTA_EXHAUSTED_CODES, None, None
        found: tuple[bool, int | None, str | None] = super().classify_retry(exc)
        return found

    def log_view(self, kwargs: dict[str, Any], messages: Any, tools: Any) -> dict[str, Any]:
        """What may be logged of a request: its settings, never its text."""
        return {"model": kwargs.get("model"), "messages": [], "n_messages": len(messages), "n_tools": len(tools or ())}
