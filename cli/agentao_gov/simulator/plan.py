"""Decides how one request is answered, as a list of timed writes: no sockets, no clock, the same for the same seed."""

from __future__ import annotations

import math
import random
from collections import Counter
from dataclasses import dataclass, field
from typing import Literal

from agentao_gov.errors import ConfigError
from agentao_gov.simulator.prefix_cache import PrefixCache
from agentao_gov.simulator.request import ChatRequest, calls_for, default_answer, filler, unscripted_tool
from agentao_gov.simulator.script import Behaviour, Distribution, Fault, Match, Script, read_directive
from agentao_gov.simulator.tokens import CALL_FRAME_TOKENS, completion_tokens, count, pieces
from agentao_gov.simulator.wire import EventStream, PlannedAnswer, ReportedUsage, Wire, text_chunks

#: Events of one stream are at least this far apart: 500 streams of 100 tokens/s would else be 50,000 writes/s.
EVENT_GAP_S = 0.010
INSTANT_CHUNK_TOKENS = 8
HTML_PAGE = b"<!DOCTYPE html><html><head><title>502</title></head><body><h1>Bad gateway</h1></body></html>"


@dataclass(frozen=True, slots=True)
class WriteStep:
    """Wait, then write; `tokens` of the completion are on the wire afterwards."""

    delay_s: float
    data: bytes
    tokens: int = 0


@dataclass(slots=True)
class Plan:
    """One answer: head, timed writes, and what happens after the last."""

    status: int = 200
    content_type: str = "application/json"
    extra_headers: tuple[tuple[str, str], ...] = ()
    steps: list[WriteStep] = field(default_factory=list)
    #: `silence` and `drip` last until the client goes; `drop` resets the connection.
    end: Literal["end", "drop", "silence", "drip"] = "end"
    #: Nothing is written, not even the head, until this has passed. Infinite: never.
    hold_s: float = 0.0
    hold: str | None = None
    drip_interval_s: float = 1.0
    drip_data: bytes = b""
    chunked: bool = False
    #: For the ground truth.
    fault: str | None = None
    tag: str | None = None
    finish_reason: str | None = None
    tool_calls: tuple[str, ...] = ()
    reported_usage: ReportedUsage | None = None
    cached_tokens: int = 0
    cache_write_tokens: int = 0
    #: Whether a provider would bill the prompt: not for a refusal.
    billed: bool = True

    @property
    def completion_tokens(self) -> int:
        """Tokens of the answer, if it is played to its end."""
        return sum(step.tokens for step in self.steps)


class Planner:
    """The script and what of it has been used up. Owned by the server's loop."""

    def __init__(self, script: Script) -> None:
        self.script = script
        #: Matches of each rule so far.
        self._hits: Counter[int] = Counter()
        #: Faults already dealt to identical requests; bounded by clearing.
        self._faults: Counter[str] = Counter()
        #: Attempts seen per identical request, so that a retry draws new latencies.
        self._attempts: Counter[str] = Counter()
        self._answers = 0
        self._cache = PrefixCache(automatic=script.prefix_cache)

    def plan(self, wire: Wire, request: ChatRequest) -> Plan:
        """The answer to a `request`, in the words of its `wire`.

        Raises ConfigError when a prompt carries a broken directive.
        """
        behaviour = self._behaviour(request).at(request.round_index)
        rng = self._rng(request)
        self._answers += 1
        fault = self._fault(behaviour.fault, request)
        plan = Plan(hold=behaviour.hold, fault=fault.kind if fault else None, tag=behaviour.tag)
        if fault is not None and fault.kind in ("status", "html"):
            _refuse(plan, wire, fault)
            return plan
        if fault is not None and fault.kind == "hang":
            plan.hold_s = math.inf if fault.seconds is None else fault.seconds
        answer = self._answer(behaviour, request, rng)
        plan.finish_reason = answer.finish_reason
        plan.tool_calls = tuple(name for name, _ in answer.calls)
        plan.cached_tokens, plan.cache_write_tokens = self._cache.use(request)
        plan.reported_usage = _usage(behaviour, request, answer, plan)
        timing = _Timing(behaviour, rng, exact=fault is not None)
        stream = wire.stream(answer, request, plan.reported_usage, behaviour.quirks)
        if request.stream:
            _stream(plan, behaviour, answer, timing, stream)
            if not request.include_usage and "usage_every_chunk" not in behaviour.quirks:
                plan.reported_usage = None
        else:
            tokens = answer.completion_tokens
            body = wire.whole(answer, request, plan.reported_usage)
            plan.steps = [WriteStep(timing.first_s + timing.for_tokens(tokens), body, tokens)]
        if fault is not None:
            _break(plan, fault, stream)
        return plan

    def _behaviour(self, request: ChatRequest) -> Behaviour:
        if self.script.directives and not request.is_summary:
            asked = read_directive(request.question)
            if asked is not None:
                return asked
        for index, rule in enumerate(self.script.rules):
            if _matches(rule.match, request) and (rule.times is None or self._hits[index] < rule.times):
                self._hits[index] += 1
                return rule.respond
        return self.script.default

    def _rng(self, request: ChatRequest) -> random.Random:
        if len(self._attempts) > 50_000:
            self._attempts.clear()
        attempt = self._attempts[request.digest]
        self._attempts[request.digest] += 1
        return random.Random(f"{self.script.seed}/{request.digest}/{attempt}")  # noqa: S311 - load, not secrets

    def _fault(self, fault: Fault | None, request: ChatRequest) -> Fault | None:
        if fault is None or fault.times is None:
            return fault
        if len(self._faults) > 50_000:
            self._faults.clear()
        if self._faults[request.digest] >= fault.times:
            return None
        self._faults[request.digest] += 1
        return fault

    def _answer(self, behaviour: Behaviour, request: ChatRequest, rng: random.Random) -> PlannedAnswer:
        tool = behaviour.tool
        if tool is None and behaviour.text is None and behaviour.answer_tokens is None:
            tool = unscripted_tool(request)
        if (
            tool is not None
            and request.may_call_tools
            and (tool.rounds == "endless" or request.round_index < tool.rounds)
        ):
            calls = calls_for(tool, request)
            return self._cut(pieces(tool.text or ""), calls, "tool_calls", behaviour, request)
        if behaviour.look_for:
            results = request.tool_results
            text = f"Found: {', '.join(word for word in behaviour.look_for if word in results) or 'nothing'}."
        elif behaviour.text is not None and not request.is_summary:
            text = behaviour.text
        elif behaviour.answer_tokens is not None and not request.is_summary:
            text = filler(round(_draw(behaviour.answer_tokens, rng)))
        else:
            text = default_answer(request)
        return self._cut(pieces(text), [], "stop", behaviour, request)

    def _cut(
        self,
        tokens: tuple[bytes, ...],
        calls: list[tuple[str, str]],
        finish: str,
        behaviour: Behaviour,
        request: ChatRequest,
    ) -> PlannedAnswer:
        """Applies the request's limit as a provider does: the text first, then the last call's arguments that fit."""
        room = request.max_tokens if request.max_tokens is not None else 1 << 30
        number, cut = self._answers, behaviour.finish_reason or "length"
        if len(tokens) > room:
            return PlannedAnswer(number, tokens[:room], (), cut)
        room -= len(tokens)
        kept: list[tuple[str, str]] = []
        for name, arguments in calls:
            cost = completion_tokens("", [(name, arguments)])
            if cost > room:
                left = room - CALL_FRAME_TOKENS - count(name)
                if left > 0:
                    kept.append((name, b"".join(pieces(arguments)[:left]).decode("utf-8", "ignore")))
                return PlannedAnswer(number, tokens, tuple(kept), cut)
            room -= cost
            kept.append((name, arguments))
        return PlannedAnswer(number, tokens, tuple(kept), behaviour.finish_reason or finish)


class _Timing:
    """Draws the delays of one answer."""

    def __init__(self, behaviour: Behaviour, rng: random.Random, *, exact: bool) -> None:
        self._behaviour = behaviour
        #: A fault after n tokens needs events of one token.
        self._exact = exact
        self._rng = rng
        self.first_s = _draw(behaviour.first_token, rng)

    def chunk_tokens(self) -> int:
        if self._behaviour.chunk_tokens is not None:
            return self._behaviour.chunk_tokens
        if self._exact:
            return 1
        typical = _typical(self._behaviour.per_token)
        return INSTANT_CHUNK_TOKENS if typical <= 0 else max(1, math.ceil(EVENT_GAP_S / typical))

    def for_tokens(self, tokens: int) -> float:
        return tokens * _draw(self._behaviour.per_token, self._rng)


def _matches(match: Match, request: ChatRequest) -> bool:
    return (
        (match.contains is None or match.contains in request.question)
        and (match.model is None or match.model == request.model)
        and (match.user is None or match.user == request.user)
        and (match.api_key is None or match.api_key == request.api_key)
        and (match.stream is None or match.stream == request.stream)
        and (match.summary is None or match.summary == request.is_summary)
    )


def _draw(distribution: Distribution, rng: random.Random) -> float:
    match distribution.dist:
        case "fixed":
            value = distribution.value
        case "uniform":
            value = rng.uniform(distribution.low, distribution.high)
        case "exponential":
            value = rng.expovariate(1 / distribution.mean)
        case "lognormal":
            # z(0.99) = 2.3263
            sigma = math.log(distribution.p99 / distribution.p50) / 2.3263
            value = rng.lognormvariate(math.log(distribution.p50), sigma)
    return value if distribution.cap is None else min(value, distribution.cap)


def _typical(distribution: Distribution) -> float:
    match distribution.dist:
        case "fixed":
            return distribution.value
        case "uniform":
            return (distribution.low + distribution.high) / 2
        case "exponential":
            return distribution.mean
        case "lognormal":
            return distribution.p50


def _usage(behaviour: Behaviour, request: ChatRequest, answer: PlannedAnswer, plan: Plan) -> ReportedUsage | None:
    told = behaviour.usage
    if not told.report:
        return None
    prompt = round(request.prompt_tokens * told.factor) if told.prompt_tokens is None else told.prompt_tokens
    produced = answer.completion_tokens + told.reasoning_tokens
    completion = round(produced * told.factor) if told.completion_tokens is None else told.completion_tokens
    cached = plan.cached_tokens if told.cached_tokens is None else told.cached_tokens
    written = plan.cache_write_tokens if told.cache_write_tokens is None else told.cache_write_tokens
    cached = min(cached, prompt)
    return ReportedUsage(prompt, completion, cached, min(written, prompt - cached), told.reasoning_tokens)


def _stream(plan: Plan, behaviour: Behaviour, answer: PlannedAnswer, timing: _Timing, stream: EventStream) -> None:
    plan.content_type = "text/event-stream; charset=utf-8"
    plan.chunked = True
    commented = "comments" in behaviour.quirks
    steps = plan.steps
    comment = stream.comment() if commented else b""
    steps.append(WriteStep(timing.first_s, comment + stream.opening()))
    for index, (text, tokens) in enumerate(text_chunks(answer.tokens, timing.chunk_tokens())):
        delay = timing.for_tokens(tokens) if index else 0.0
        steps.append(WriteStep(delay, stream.text(text), tokens))
        if commented:
            steps.append(WriteStep(0.0, comment))
    for index, (name, arguments) in enumerate(answer.calls):
        cost = completion_tokens("", [(name, arguments)])
        steps.append(WriteStep(timing.for_tokens(cost), stream.call(index, name, arguments), cost))
    steps.append(WriteStep(0.0, stream.ending()))
    if "split_utf8" in behaviour.quirks:
        plan.steps = [part for step in steps for part in _split(step)]


def _split(step: WriteStep) -> list[WriteStep]:
    """Two writes with the cut inside a character, or in the middle where every character is one byte."""
    cut = next((i + 1 for i, byte in enumerate(step.data) if byte >= 0xC0), len(step.data) // 2)
    return [WriteStep(step.delay_s, step.data[:cut]), WriteStep(0.003, step.data[cut:], step.tokens)]


def _refuse(plan: Plan, wire: Wire, fault: Fault) -> None:
    plan.billed = False
    if fault.kind == "html":
        plan.content_type = "text/html; charset=utf-8"
        plan.steps = [WriteStep(0.0, HTML_PAGE)]
        return
    message = f"The simulated model answers {fault.status}, as scripted."
    plan.status = fault.status
    plan.steps = [WriteStep(0.0, wire.error(fault.status, message, code=fault.code))]
    if fault.retry_after is not None:
        plan.extra_headers = (("Retry-After", f"{fault.retry_after:g}"),)


def _break(plan: Plan, fault: Fault, stream: EventStream) -> None:
    """Turns a good answer into the broken one."""
    if fault.kind in ("hang", "status", "html"):
        return
    steps = plan.steps
    at = _index_after(steps, fault.after)
    if fault.kind == "drip":
        plan.drip_interval_s = fault.interval
        plan.drip_data = b"".join(step.data for step in steps[:-1]) or b" "
        plan.steps, plan.end = [], "drip"
        return
    if fault.kind == "stall" and fault.seconds is not None:
        if at < len(steps):
            late = steps[at]
            steps[at] = WriteStep(late.delay_s + fault.seconds, late.data, late.tokens)
        return
    whole = steps[0] if not plan.chunked else None
    del steps[at:]
    if whole is not None:
        # An answer in one piece breaks in its middle; what is not complete was not produced.
        steps.append(WriteStep(whole.delay_s, whole.data[: len(whole.data) // 2]))
    match fault.kind:
        case "stall":
            plan.end = "silence"
        case "drop":
            plan.end = "drop"
            if fault.after == 0:
                plan.steps = []
        case "malformed":
            steps.append(WriteStep(0.0, stream.malformed()))
        case "error_event":
            steps.append(WriteStep(0.0, stream.failure("The simulated model fails in mid-stream, as scripted.")))
    plan.reported_usage = None
    plan.finish_reason = None


def _index_after(steps: list[WriteStep], tokens: int) -> int:
    """Index of the first step after so many tokens, never the last: that one ends the answer properly."""
    sent = 0
    for index, step in enumerate(steps[:-1]):
        if sent >= tokens and index > 0:
            return index
        sent += step.tokens
    return max(0, len(steps) - 1)


def broken_directive(wire: Wire, error: ConfigError) -> Plan:
    """The 400 that a misspelt directive gets."""
    body = wire.error(400, error.message, code="invalid_directive")
    return Plan(status=400, steps=[WriteStep(0.0, body)], billed=False, fault="invalid_directive")
