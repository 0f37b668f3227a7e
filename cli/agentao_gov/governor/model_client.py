"""agentao's model client, governed: no request leaves without a reservation, none outlives the turn.

Every request of a session comes through here: the loop's, a retry, the summariser's (`chat`), the wrap-up, and those of
sub-agents (which get a client of this class). It overrides the two entry points of agentao's `LLMClient` with one loop
of attempts of our own, because agentao's retries are bounded by neither the profile nor the deadline.
"""

from __future__ import annotations

import functools
import logging
import random
import re
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from agentao.context_manager import is_context_too_long_error, parse_observed_context_limit
from agentao.llm import LLMClient
from agentao.llm._api_format import ANTHROPIC_MESSAGES, OPENAI_COMPLETIONS
from agentao.llm._retry import _is_streaming_unsupported, _mark_streamed
from agentao.llm.thinking import set_thinking

from agentao_gov.config.model import ModelOptions
from agentao_gov.governor.adapter import StreamMeter
from agentao_gov.governor.answers import mend_arguments, without_surrogates
from agentao_gov.governor.classify import (
    NotAModelError,
    StopCause,
    cut_reason,
    describe_failure,
    no_answer_in,
    spell_out,
    status_of,
)
from agentao_gov.governor.http import ANSWER_BYTES_MIN, AbortScope, HttpClient, abortable, timeout_for
from agentao_gov.governor.report import Reason, RedactingFilter
from agentao_gov.governor.retry import RetryDecision, asked_pause_s, decide_retry
from agentao_gov.governor.spend import ReservationRefused, Spend, reported_usage
from agentao_gov.governor.tokens import Anchor, count_tokens, fit, prompt_bound, text_bound, thinks_unseen
from agentao_gov.governor.turn import CallUsage, LlmCallEnd, LlmCallOutcome, Turn
from agentao_gov.governor.wires import Adapter, adapter_for

#: What agentao writes to. It carries no handler of ours; agentao's own package-global file handler is never installed,
#: because the newest client's file would receive every tenant's prompts.
AGENT_LOG = logging.getLogger("agentao_gov.agent")
AGENT_LOG.addFilter(RedactingFilter())
AGENT_LOG.setLevel(logging.ERROR)

_log = logging.getLogger(__name__)

_BROKE_OFF = Reason("The stream broke off: neither a reason nor usage came.")
_LENGTH_REASONS = frozenset({"length", "max_tokens", "model_length"})
#: The read time-out is this much later than the deadline, so that the watcher, who knows why, ends the call.
_AFTER_DEADLINE_S = 1.0
#: The longest tokens there are, runs of blanks, have 128 bytes; JSON may need two for one of them.
_BYTES_A_TOKEN_MAX = 256
#: What agentao does not know as "the request is too long": Zhipu, and servers that speak of an input.
_TOO_LONG = re.compile(r"(prompt|input)[^.]{0,40} exceeds? (the )?max(imum)? (input )?(length|tokens)", re.IGNORECASE)
#: A gateway that lost patience with the model: the model may have answered all the same. Cloudflare's is 524.
_GATEWAY_TIMEOUTS = frozenset({504, 524})
_NO_OPTIONS = ModelOptions()
#: What a call is made for.
Purpose = Literal["loop", "summary", "wrap_up", "sub_agent"]

# ── one call and its attempts ──────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class _Ask:
    """What agentao asks for, before it is known in what form it is sent."""

    turn: Turn
    token: Any
    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]] | None
    max_tokens: int | None
    purpose: Purpose
    on_retry: Callable[[dict[str, Any]], None] | None


@dataclass(slots=True)
class ModelCall:
    """One call that agentao asked for; it may take several attempts, each with a reservation of its own."""

    turn: Turn
    token: Any
    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]] | None
    kwargs: dict[str, Any]
    purpose: Purpose
    on_retry: Callable[[dict[str, Any]], None] | None
    send: Callable[[Attempt], Any]
    #: Tools that the conversation has used and this call may not: they go along where the provider insists.
    withheld: list[dict[str, Any]] | None = None
    #: Whether `mend_texts` has been through the messages.
    _mended: bool = False

    @property
    def stream(self) -> bool:
        return bool(self.kwargs.get("stream"))

    def show_withheld(self, error: Exception, declare: Callable[[dict[str, Any], list[dict[str, Any]]], None]) -> bool:
        """Sends the tools along, with the word not to use them, where they were missed. False where that is no help.

        Bedrock takes no conversation with tools in it and a request without. Where tools need not go along they do
        not, because Ollama ignores the word.
        """
        if self.withheld is None or status_of(error) not in (400, 422) or "tool" not in str(error).lower():
            return False
        self.tools, self.withheld = self.withheld, None
        declare(self.kwargs, self.tools)
        return True

    def mend_texts(self) -> bool:
        """Makes the messages fit to be sent, in the conversation itself, and the descriptions of tools.

        Returns True the first time. A request that cannot be sent after that cannot be mended here.
        """
        if self._mended:
            return False
        self._mended = True
        for message in self.messages:
            message.update(without_surrogates(message))
        # In place: whoever sends it holds the same mapping.
        self.kwargs.update({key: without_surrogates(value) for key, value in self.kwargs.items()})
        return True


class Attempt:
    """One request on its way, and what became of it."""

    def __init__(self, call: ModelCall, spend: Spend, meter: StreamMeter, accumulator: Any) -> None:
        self.call = call
        self.spend = spend
        self.meter = meter
        self.accumulator = accumulator
        self.scope = AbortScope(self._answer_bytes_max, by_event=call.stream)
        self.started = time.monotonic()
        self.first_token_s: float | None = None
        self.response: Any = None
        self.failure: BaseException | None = None

    def _answer_bytes_max(self) -> int:
        return ANSWER_BYTES_MIN + self.spend.granted_tokens * _BYTES_A_TOKEN_MAX

    @property
    def whole(self) -> bool:
        """Whether the answer came to its end by itself."""
        return self.failure is None and not self.meter.cut and not self.scope.aborted.is_set()


def _cannot_stream(error: Exception) -> bool:
    """Whether the provider refuses to stream; OpenAI does until an organisation is verified."""
    text = str(error).lower()
    return _is_streaming_unsupported(text) or "verified to stream" in text


def pause(delay_s: float, token: Any) -> bool:
    """Waits `delay_s` seconds; False, at once, if agentao's `token` is cancelled meanwhile."""
    woken = threading.Event()
    forget = token.add_done_callback(woken.set)
    try:
        return not woken.wait(delay_s)
    finally:
        forget()


# ── what an attempt is charged ─────────────────────────────────────────────────────────────────────


def cost_of(attempt: Attempt, model: str, *, thinks_unseen: bool) -> CallUsage | None:
    """What to charge for an attempt that ended: what was reported, else the most it can have cost. None: nothing.

    `model` decides how text is counted. `thinks_unseen` tells that it produces tokens which it does not show, so that
    silence proves nothing.
    """
    status = status_of(attempt.failure)
    if not attempt.scope.sent or (status is not None and status not in _GATEWAY_TIMEOUTS):
        # It never left, or the provider answered that it will not serve it.
        return None
    reported = _reported(attempt)
    if reported is not None and _is_final(attempt, reported):
        return reported
    prompt, granted = attempt.spend.bound
    meter = attempt.meter
    completion = granted
    if attempt.call.stream and not meter.begun and not attempt.scope.answered and not thinks_unseen:
        completion = 0
    elif meter.cut:
        # It was told to stop at the grant and did not.
        completion = max(granted, count_tokens(meter.text))
    elif _ended_by_itself(attempt) and not thinks_unseen:
        text = meter.text if attempt.call.stream else response_text(attempt.response)
        completion = min(text_bound(text, model), max(granted, count_tokens(text)))
    # Otherwise it was cut on the way: the provider may have produced all it was granted before it noticed.
    if reported is None:
        return CallUsage(prompt, completion, estimated_tokens=prompt + completion)
    completion = max(completion, reported.completion_tokens)
    return replace(reported, completion_tokens=completion, estimated_tokens=completion)


def _reported(attempt: Attempt) -> CallUsage | None:
    if attempt.call.stream:
        return attempt.meter.reported
    return reported_usage(attempt.accumulator.usage_data)


def _is_final(attempt: Attempt, reported: CallUsage) -> bool:
    """Whether the report covers all of the answer: it came at its end, and does not say that text is nothing."""
    if attempt.call.stream:
        return attempt.meter.report_is_final and (reported.completion_tokens > 0 or not attempt.meter.text)
    return reported.completion_tokens > 0 or attempt.response is None or not response_text(attempt.response)


def _ended_by_itself(attempt: Attempt) -> bool:
    """Whether the whole answer came: a stream says why it ends, and one that does not was broken off on the way."""
    return attempt.whole and (attempt.meter.finished or not attempt.call.stream)


def response_text(response: Any) -> str:
    """All text of an answer that came in one piece: content, reasoning, names and arguments of tool calls."""
    texts = []
    for choice in getattr(response, "choices", None) or ():
        message = choice.message
        texts += [getattr(message, "content", None), getattr(message, "reasoning_content", None)]
        for call in getattr(message, "tool_calls", None) or ():
            texts += [getattr(call.function, "name", None), getattr(call.function, "arguments", None)]
    return "".join(text for text in texts if isinstance(text, str))


# ── the client ─────────────────────────────────────────────────────────────────────────────────────


class ModelFailure(Exception):
    """Raised to agentao for a call that failed for good.

    Its text is what agentao writes into the conversation, where the tenant's next question may bring it up: the public
    telling. Of a request that is too long it says so in words by which agentao compacts the conversation, with the
    limit that the provider named.
    """

    def __init__(self, reason: Reason, error: Exception) -> None:
        """`reason` is the failure in two tellings, `error` what the SDK or our own reader raised."""
        text = reason.public
        if is_context_too_long_error(error) or _TOO_LONG.search(str(error)):
            stated = parse_observed_context_limit(error)
            text += f" The maximum context length{f' of {stated[0]}' if stated else ''} is exceeded."
        super().__init__(text)
        self.status_code = status_of(error)
        #: Whether text was shown before: agentao asks.
        self.streamed = bool(getattr(error, "streamed", False))


class NoTurnError(RuntimeError):
    """Raised for a model call outside a governed turn: there is no budget to take it from."""


class GovernedModel(LLMClient):
    """The model client of one session or sub-agent. Not thread-safe: a session makes one call at a time.

    `turn` names the turn in flight; `subtree` tells that a sub-agent owns it; `on_tool_calls` gets the names of the
    tools that an answer asks for; `api_format` is the wire, `options` how the model is asked.
    """

    def __init__(
        self,
        *,
        http: HttpClient,
        base_url: str,
        api_key: str,
        model: str,
        max_output_tokens: int,
        context_tokens_max: int,
        turn: Callable[[], Turn | None],
        subtree: bool = False,
        on_tool_calls: Callable[[Turn, Sequence[str]], None] | None = None,
        api_format: str = OPENAI_COMPLETIONS,
        options: ModelOptions = _NO_OPTIONS,
    ) -> None:
        self._http = http
        self._turn = turn
        self._subtree = subtree
        self._context_tokens_max = context_tokens_max
        self._on_tool_calls = on_tool_calls
        self.anchor = Anchor(model)
        # What the last reservation granted for output.
        self._granted = max_output_tokens
        # Whether the last attempt's request had left, and whether a report came that covers all of its answer.
        self._sent = self._reported = False
        # Whether the model produces tokens that nobody sees: known of some, learned of others from what they report.
        self._thinks_unseen = thinks_unseen(model) or options.thinking is not None
        self._headers = options.headers
        #: An anchor from the archive, tried at the first call.
        self.saved_anchor: Mapping[str, int] | None = None
        super().__init__(
            # Endpoints on this machine often want no key; the SDK insists on one.
            api_key=api_key or "none",
            base_url=base_url,
            model=model,
            max_tokens=max_output_tokens,
            temperature=options.temperature,
            extra_body=dict(options.extra_body) or None,
            api_format=api_format,
            # Marks what the Messages API is to keep; the other wires' caches need no marks, and most refuse them.
            prompt_cache="anthropic" if api_format == ANTHROPIC_MESSAGES else None,
            logger=AGENT_LOG,
            log_file=None,
        )
        if options.thinking is not None:
            # Where each wire reads it.
            set_thinking(self, options.thinking)

    def _build_request_kwargs(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """The request, with the headers that are configured."""
        request: dict[str, Any] = super()._build_request_kwargs(*args, **kwargs)
        if self._headers:
            request["extra_headers"] = {**self._headers, **request.get("extra_headers", {})}
        return request

    def _is_gemini(self) -> bool:
        """Also below a router's prefix: `google/gemini-3-pro`."""
        return bool(super()._is_gemini()) or self.model.lower().rpartition("/")[2].startswith("gemini")

    def _make_adapter(self) -> Adapter:
        return adapter_for(self, self._http)

    def secrets(self) -> tuple[str, ...]:
        """What must not reach a child's environment."""
        return (self.api_key,)

    # ── agentao's two entry points ────────────────────────────────────────────────────────────────

    def chat(
        self,
        messages: list[dict[str, Any]],
        tools: list[dict[str, Any]] | None = None,
        max_tokens: int | None = None,
        *,
        cache_boundary: int | None = None,  # noqa: ARG002 - agentao's signature
        on_retry: Callable[[dict[str, Any]], None] | None = None,
        cancellation_token: Any = None,
    ) -> Any:
        """A request of the summariser's: agentao wants its answer in one piece, and gets what was streamed.

        `messages`, `tools` and `max_tokens` make the request, `on_retry` is told of retries, `cancellation_token` ends
        it; the turn's own token does where there is none.
        """
        turn = self._current()
        token = cancellation_token if cancellation_token is not None else turn.token
        ask = _Ask(turn, token, messages, tools, max_tokens, "sub_agent" if self._subtree else "summary", on_retry)
        if self._is_gemini():
            return self._attempts(self._whole(ask))
        try:
            return self._attempts(self._streamed(ask))
        except Exception as error:
            if token.is_cancelled or turn.stopped or not _cannot_stream(error):
                raise
            return self._attempts(self._whole(ask))

    def chat_stream(
        self,
        messages: list[dict[str, Any]],
        tools: list[dict[str, Any]] | None = None,
        max_tokens: int | None = None,
        on_text_chunk: Callable[[str], None] | None = None,
        cancellation_token: Any = None,
        *,
        cache_boundary: int | None = None,
        on_retry: Callable[[dict[str, Any]], None] | None = None,
        on_reasoning_chunk: Callable[[str], None] | None = None,
    ) -> Any:
        """A request of the tool loop, whose text and thoughts go to the callbacks as they come; else as `chat`.

        `cache_boundary` counts the messages at the end that no later request begins with.
        """
        turn = self._current()
        token = cancellation_token if cancellation_token is not None else turn.token
        wrapping = not self._subtree and turn.wrapping_up
        purpose: Purpose = "sub_agent" if self._subtree else "wrap_up" if wrapping else "loop"
        withheld = None
        if wrapping and not self._adapter.keeps_tools:
            withheld, tools = tools, None
        if not self._subtree:
            turn.call_begins()
        if turn.stopped or token.is_cancelled or (fitting := self._fit(turn, messages, tools)) is None:
            return self._nothing()
        ask = _Ask(turn, token, fitting, tools, max_tokens, purpose, on_retry)
        if self._is_gemini():
            # Its streamed tool calls lose a signature that it wants back.
            return self._loop_call(self._whole(ask), on_text_chunk)
        call = self._streamed(ask, on_text_chunk, on_reasoning_chunk, cache_boundary)
        call.withheld = withheld
        return self._loop_call(call, None, instead=functools.partial(self._whole, ask), show=on_text_chunk)

    def _fit(
        self, turn: Turn, messages: list[dict[str, Any]], tools: list[dict[str, Any]] | None
    ) -> list[dict[str, Any]] | None:
        """What of the messages fits the context cap; None, with the turn stopped, where the last question does not.

        agentao compacts before this, but not without a summariser that answers: then the conversation would grow on.
        """
        cap = self._context_tokens_max
        if self.saved_anchor is not None:
            self.anchor.restore(self.saved_anchor, messages, tools)
            self.saved_anchor = None
        # Mostly the provider's last count tells that there is room, and little has to be counted.
        if self.anchor.known and prompt_bound(messages, tools, self.model, self.anchor) <= cap:
            return messages
        fitted = fit(messages, tools, cap)
        if fitted.tokens > cap > fitted.fixed_tokens:
            needed = f"The request needs about {fitted.tokens:,} tokens, and max_context_tokens is {cap:,}."
            turn.stop(StopCause.BUDGET_IMPOSSIBLE, Reason(needed))
            return None
        if fitted.tokens > cap:
            fixed = f"The system prompt and the tools alone need about {fitted.fixed_tokens:,} tokens"
            turn.warn(Reason(f"{fixed}; max_context_tokens is {cap:,}."))
        if len(fitted.messages) < len(messages):
            turn.warn(Reason(f"The oldest messages were left out: there is no room for them in {cap:,} tokens."))
        return fitted.messages

    def _streamed(
        self,
        ask: _Ask,
        on_text_chunk: Callable[[str], None] | None = None,
        on_reasoning_chunk: Callable[[str], None] | None = None,
        cache_boundary: int | None = None,
    ) -> ModelCall:
        """A call whose answer comes in pieces."""
        kwargs = self._build_request_kwargs(
            ask.messages, ask.tools, self._wanted(ask.max_tokens), stream=True, cache_boundary=cache_boundary
        )

        if ask.purpose == "wrap_up" and ask.tools:
            self._adapter.declare_tools(kwargs, ask.tools)

        def send(attempt: Attempt) -> Any:
            attempt.accumulator.on_reasoning_chunk = on_reasoning_chunk
            # Without anybody to show it to, no text counts as shown, and a broken stream is asked for again.
            show = self._text_callback(attempt, on_text_chunk) if ask.purpose != "summary" else None
            return self._adapter.consume_stream(kwargs, attempt.accumulator, show, ask.token)

        return ModelCall(ask.turn, ask.token, ask.messages, ask.tools, kwargs, ask.purpose, ask.on_retry, send)

    def _whole(self, ask: _Ask) -> ModelCall:
        """A call whose answer comes in one piece."""
        kwargs = self._build_request_kwargs(ask.messages, ask.tools, self._wanted(ask.max_tokens), stream=False)

        def send(attempt: Attempt) -> Any:
            return self._adapter.send(kwargs, attempt.accumulator)

        return ModelCall(ask.turn, ask.token, ask.messages, ask.tools, kwargs, ask.purpose, ask.on_retry, send)

    def _loop_call(
        self,
        call: ModelCall,
        show_whole: Callable[[str], None] | None,
        *,
        instead: Callable[[], ModelCall] | None = None,
        show: Callable[[str], None] | None = None,
    ) -> Any:
        """A call of the tool loop: a stopped turn gets an empty response, by which agentao ends it in order.

        `instead` is sent where the provider refuses to stream; its text then goes to `show` at once.
        """
        turn = call.turn
        try:
            response = self._attempts(call)
        except ReservationRefused:
            return self._nothing()
        except Exception as error:
            if call.token.is_cancelled or turn.stopped:
                return self._nothing()
            if instead is not None and _cannot_stream(error):
                return self._loop_call(instead(), show)
            reason = self._describe(error)
            if not self._subtree:
                turn.model_failed(reason)
            raise ModelFailure(reason, error) from error
        message = response.choices[0].message
        ids: set[str] = set()
        for number, asked in enumerate(message.tool_calls or ()):
            asked.function.arguments = mend_arguments(asked.function.arguments or "")
            if asked.id in ids:
                # Each result is found by its call's id, here and at the provider.
                asked.id = f"{asked.id}_{number}"
            ids.add(asked.id)
        text = message.content
        if show_whole is not None and text:
            show_whole(text)
        self._note_response(turn, response, wrapping=call.purpose == "wrap_up")
        return response

    # ── attempts ──────────────────────────────────────────────────────────────────────────────────

    def _attempts(self, call: ModelCall) -> Any:
        retries = 0
        while True:
            accumulator = self._adapter.new_accumulator()
            try:
                return self._attempt(call, accumulator, retries)
            except ReservationRefused:
                raise
            except Exception as error:
                streamed = accumulator.progress_made
                _mark_streamed(error, streamed)
                if streamed or call.token.is_cancelled:
                    # Text has been shown: sending again would show it twice.
                    raise
                if isinstance(error, UnicodeEncodeError) and call.mend_texts():
                    # A tool's result or a file's name; it would stand in the conversation for ever.
                    continue
                if call.show_withheld(error, self._adapter.declare_tools):
                    continue
                if self._adapter.repair_request(str(error).lower(), call.kwargs, stream=call.stream):
                    continue
                decision = self._decide(call.turn, error, retries)
                if not decision.again:
                    if decision.reason:
                        error.add_note(decision.reason)
                    raise
                retries += 1
                self._tell_retry(call, retries, decision.delay_s, error)
                if not pause(decision.delay_s, call.token):
                    raise

    def _attempt(self, call: ModelCall, accumulator: Any, retries: int) -> Any:
        """One request: reserve, send, account. Accounts on every way out."""
        turn, kwargs = call.turn, call.kwargs
        spend = self._reserve(call)
        self._granted = spend.granted_tokens
        attempt = Attempt(call, spend, self._adapter.new_meter(spend), accumulator)
        self._adapter.limit_output(kwargs, spend.granted_tokens)
        kwargs["timeout"] = timeout_for(turn.deadline.remaining_s() + _AFTER_DEADLINE_S)
        self._adapter.measure(attempt.meter)
        forget = call.token.add_done_callback(attempt.scope.abort)
        try:
            if call.token.is_cancelled:
                attempt.response = accumulator.build()
            else:
                spend.dispatch()
                if call.purpose == "loop":
                    turn.round_sent()
                with abortable(attempt.scope):
                    attempt.response = call.send(attempt)
        except BaseException as error:
            spell_out(error)
            attempt.failure = error
            if isinstance(error.__cause__, NotAModelError):
                # The SDK wraps what our transport raises while it reads a body.
                attempt.failure = error.__cause__
                raise error.__cause__ from None
            raise
        finally:
            forget()
            self._adapter.measure(None)
            turn.meter.model_time(time.monotonic() - attempt.started)
            self._sent, self._reported = attempt.scope.sent, attempt.meter.report_is_final
            if self._sent:
                turn.meter.sent()
            self._account(attempt)
            self._tell_end(attempt, retries)
        return attempt.response

    def _reserve(self, call: ModelCall) -> Spend:
        bound = prompt_bound(call.messages, call.tools, self.model, self.anchor)
        bound += self._adapter.frame_tokens(call.messages, call.tools)
        try:
            return Spend.reserve(call.turn, bound, self.max_tokens, subtree=self._subtree)
        except ReservationRefused as refused:
            end = LlmCallEnd("refused", 0.0, None, 0, 0, 0, call.purpose, error_type=type(refused.error).__name__)
            call.turn.observers.tell(lambda observer: observer.llm_call(call.turn.labels, end))
            raise

    def _account(self, attempt: Attempt) -> None:
        """Ends the reservation by what is known of the request, whatever came back."""
        try:
            usage = cost_of(attempt, self.model, thinks_unseen=self._thinks_unseen)
        except Exception:
            _log.exception("What a call cost could not be read off its answer: its bound is charged")
            prompt, granted = attempt.spend.bound
            usage = CallUsage(prompt, granted, estimated_tokens=prompt + granted)
        attempt.spend.end(usage)
        if usage is not None and not usage.estimated_tokens:
            self._learn(attempt, usage)

    def _learn(self, attempt: Attempt, usage: CallUsage) -> None:
        """What an exact report says about the calls to come."""
        call = attempt.call
        if usage.reasoning_tokens and call.stream and not attempt.meter.thought:
            self._thinks_unseen = True
        # agentao's own totals, which its sub-agents roll up from.
        self._count_response_usage(attempt.accumulator.usage_data)
        if call.purpose != "summary":
            self.anchor.record(call.messages, call.tools, usage.prompt_tokens, usage.completion_tokens)

    def _decide(self, turn: Turn, error: Exception, retries: int) -> RetryDecision:
        retryable, _, _ = self._adapter.classify_retry(error)
        return decide_retry(
            retryable=retryable,
            retries_done=retries,
            retries_max=turn.limits.retries_max,
            retry_after_s=asked_pause_s(error, turn.clock.time()),
            remaining_s=turn.deadline.remaining_s(),
            jitter=random.random(),  # noqa: S311 - spreads retries, keeps no secret
        )

    # ── what came, and who is told ────────────────────────────────────────────────────────────────

    def _current(self) -> Turn:
        turn = self._turn()
        if turn is None:
            raise NoTurnError("A model call outside a governed turn is not made: no budget covers it.")
        return turn

    def _wanted(self, max_tokens: int | None) -> int:
        return min(max_tokens or self.max_tokens, self.max_tokens)

    def _nothing(self) -> Any:
        return self._adapter.new_accumulator().build()

    def _text_callback(
        self, attempt: Attempt, on_text_chunk: Callable[[str], None] | None
    ) -> Callable[[str], None] | None:
        def show(text: str) -> None:
            if attempt.first_token_s is None:
                attempt.first_token_s = time.monotonic() - attempt.started
                if not self._subtree:
                    attempt.call.turn.meter.first_token(attempt.call.turn.elapsed_s())
            if on_text_chunk is not None:
                on_text_chunk(text)

        return show

    def _note_response(self, turn: Turn, response: Any, *, wrapping: bool) -> None:
        """Tells the turn what came: whether it is final, and which tools it wants."""
        if self._subtree:
            return
        choice = response.choices[0]
        message = choice.message
        if wrapping and message.tool_calls:
            # It was given no tools and asks for some all the same: that is not an answer.
            message.tool_calls = None
            choice.finish_reason = "stop"
        if message.tool_calls and self._on_tool_calls is not None:
            self._on_tool_calls(turn, [call.function.name or "" for call in message.tool_calls])
        text = message.content or ""
        # agentao takes a stream without a reason for one that says "stop".
        reason = str(choice.finish_reason or "") if getattr(response, "finish_reason_reported", True) else ""
        cut = reason.lower() in _LENGTH_REASONS and self._granted < self.max_tokens
        # Neither a reason nor usage: a proxy closed the stream. A provider that never gives reasons still counts.
        broke_off = not reason and choice.finish_reason == "stop" and not self._reported
        unfinished = _BROKE_OFF if broke_off else cut_reason(reason) or no_answer_in(text)
        whole = unfinished is None and reason.lower() not in _LENGTH_REASONS
        final = text if whole and not message.tool_calls and text.strip() else None
        turn.call_ended(final_text=final, cut_by_budget=cut, unfinished=unfinished)

    def _tell_retry(self, call: ModelCall, retry: int, delay_s: float, error: Exception) -> None:
        if call.on_retry is None:
            return
        status = status_of(error)
        call.on_retry(
            {
                "retry": retry,
                "max_retries": call.turn.limits.retries_max,
                "delay_s": round(delay_s, 2),
                "reason": f"status={status}" if status is not None else type(error).__name__,
            }
        )

    def _tell_end(self, attempt: Attempt, retries: int) -> None:
        call, failure, usage = attempt.call, attempt.failure, attempt.spend.usage
        cut = attempt.scope.aborted.is_set() or attempt.meter.cut
        outcome: LlmCallOutcome = "cut" if cut else "ok" if failure is None else "error"
        end = LlmCallEnd(
            outcome=outcome,
            duration_s=time.monotonic() - attempt.started,
            first_token_s=attempt.first_token_s,
            prompt_tokens=usage.prompt_tokens,
            completion_tokens=usage.completion_tokens,
            estimated_tokens=usage.estimated_tokens,
            purpose=call.purpose,
            status=status_of(failure),
            error_type=type(failure).__name__ if failure is not None else None,
            retries=retries,
        )
        call.turn.observers.tell(lambda observer: observer.llm_call(call.turn.labels, end))

    def _describe(self, error: Exception) -> Reason:
        return describe_failure(error, base_url=str(self.base_url), sent=self._sent, secret=self.api_key)
