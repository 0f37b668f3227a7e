"""A session between its turns: archived and revived, closed, private."""

from __future__ import annotations

import dataclasses
import json
import logging
import threading
from pathlib import Path
from typing import Any

import pytest

from agentao_gov.clock import Deadline
from agentao_gov.errors import InternalError
from agentao_gov.governor import Conversation, Outcome, TurnReport
from agentao_gov.governor.tokens import count_tokens
from agentao_gov.governor.turn import LlmCallEnd, NullObserver, PermissionEnd, ToolCallEnd, TurnLabels
from tests.governor.harness import HANG_S, Harness, say
from tests.governor.provider import Handler, Provide


def through_json(conversation: Conversation) -> Conversation:
    """What the archive does to it."""
    return Conversation(**json.loads(json.dumps(dataclasses.asdict(conversation))))


def test_a_conversation_goes_on_from_its_snapshot(harness: Harness) -> None:
    """Messages, to-do list and anchor: the model sees what it saw before."""
    todos = [{"content": "find it", "status": "pending"}]
    first = harness.open(tools={"allow": ["todo_write"]})
    harness.ask(first, say("remember 17", text="noted", tool={"name": "todo_write", "args": {"todos": todos}}))
    kept = through_json(first.snapshot())
    first.close(Deadline.after(5))

    second = harness.open(conversation=kept, tools={"allow": ["todo_write"]})
    report = harness.ask(second, say("which number?", text="17"))

    assert report.answer == "17"
    assert second.snapshot().todos == todos
    said = [message["content"] for message in second.snapshot().messages if message["role"] == "user"]
    assert any("remember 17" in text for text in said)
    assert len(said) == 2


def test_a_revived_session_reserves_from_its_anchor(harness: Harness) -> None:
    """Without it the whole history would be bounded by its bytes again."""
    settings: dict[str, Any] = {"model": "unknown-tokenizer"}
    first = harness.open(**settings)
    harness.ask(first, say("x" * 6_000, text="ok"))
    kept = through_json(first.snapshot())
    with_anchor = harness.open(conversation=kept, **settings)
    without = harness.open(conversation=dataclasses.replace(kept, anchor=None), **settings)

    reserved = [bound_of_next(harness, session) for session in (with_anchor, without)]

    assert reserved[0] < reserved[1] / 2


def bound_of_next(harness: Harness, session: Any) -> int:
    """What the next call's prompt is held to be: the turn's charge when it is cut before its first byte."""
    return harness.ask_and_cancel(session, say(fault="hang")).usage.prompt_tokens


@pytest.mark.parametrize("failure", [{"limits": {"turn_tokens": 500}}, {"fault": "401"}])
def test_a_turn_that_did_nothing_leaves_nothing_in_the_conversation(harness: Harness, failure: dict[str, Any]) -> None:
    """Who is refused asks again: the question must not stand there twice."""
    session = harness.open(limits=failure.get("limits", {}))
    fault = failure.get("fault")
    message = say("hello", fault=fault) if fault else "hello"

    outcomes = {harness.ask(session, message).outcome for _ in range(3)}

    assert outcomes <= {Outcome.BUDGET_IMPOSSIBLE, Outcome.MODEL_ERROR}
    assert session.snapshot().messages == []


def test_a_cancelled_turn_keeps_what_was_said(harness: Harness) -> None:
    """The person saw it and may answer to it."""
    session = harness.open()
    message = say("tell me", text="Once upon a time", fault={"kind": "stall", "after": 3})
    harness.ask_and_cancel(session, message, after_text=True)

    said = [message["content"] for message in session.snapshot().messages]

    assert "tell me" in said[0]
    assert said[1].startswith("Once upon")


def test_a_second_turn_at_once_is_refused(harness: Harness) -> None:
    """The pool queues; here it would be a mistake."""
    session = harness.open()
    thread = threading.Thread(target=lambda: harness.ask(session, say(fault="hang")), daemon=True)
    thread.start()
    harness.simulator.wait_for(calls=1)

    with pytest.raises(InternalError, match="already runs"):
        harness.ask(session, "hello")

    session.cancel("cancelled")
    thread.join(HANG_S)


def test_closing_ends_the_turn_in_flight(harness: Harness) -> None:
    """Nothing is left to wait for."""
    session = harness.open()
    reports: list[TurnReport] = []
    thread = threading.Thread(target=lambda: reports.append(harness.ask(session, say(fault="hang"))), daemon=True)
    thread.start()
    harness.simulator.wait_for(calls=1)

    session.close(Deadline.after(5))

    thread.join(HANG_S)
    assert reports[0].outcome == Outcome.SHUTDOWN


def test_a_closed_session_runs_no_turn(harness: Harness) -> None:
    """agentao's `chat` works on after `close`."""
    session = harness.open()
    session.close(Deadline.after(5))
    session.close(Deadline.after(5))

    with pytest.raises(InternalError, match="closed"):
        harness.ask(session, "hello")


def test_nothing_is_written_but_in_the_session_directory(harness: Harness, clean_environment: Path) -> None:
    """No agentao.log, no ~/.agentao, no memory database."""
    before = sorted(clean_environment.rglob("*"))
    cwd = set(Path.cwd().iterdir())

    harness.run(say(text="ok"))

    assert sorted(clean_environment.rglob("*")) == before
    assert set(Path.cwd().iterdir()) == cwd
    assert list((harness.opened[0]._spec.workdir).iterdir()) == []
    assert (harness.opened[0]._spec.workdir.stat().st_mode & 0o777) == 0o700


def test_no_log_carries_a_prompt_or_a_key(harness: Harness, caplog: pytest.LogCaptureFixture) -> None:
    """agentao's own client logs every prompt, into whichever tenant's file was opened last."""
    caplog.set_level(logging.DEBUG)
    handlers = list(logging.getLogger("agentao").handlers)

    harness.run(say("my private question", fault="400"))
    harness.run(say("my private question", text="my private answer"))

    assert "private" not in caplog.text
    assert "sk-simulated" not in caplog.text
    assert logging.getLogger("agentao").handlers == handlers
    assert not any(isinstance(handler, logging.FileHandler) for handler in handlers)


def test_two_sessions_do_not_see_each_other(harness: Harness) -> None:
    """Own history, own directory, own anchor."""
    one, two = harness.open("one"), harness.open("two")
    harness.ask(one, say("the word is swordfish", text="ok"))

    harness.ask(two, say("what is the word?", text="?"))

    assert "swordfish" not in json.dumps(two.snapshot().messages)
    assert one._spec.workdir != two._spec.workdir


class Recorder(NullObserver):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.calls: list[LlmCallEnd] = []
        self.tools: list[ToolCallEnd] = []
        self.permissions: list[PermissionEnd] = []
        self.reports: list[TurnReport] = []

    def llm_call(self, labels: TurnLabels, call: LlmCallEnd) -> None:
        self.calls.append(call)

    def tool_call(self, labels: TurnLabels, call: ToolCallEnd) -> None:
        self.tools.append(call)

    def permission(self, labels: TurnLabels, decision: PermissionEnd) -> None:
        self.permissions.append(decision)

    def turn_ended(self, labels: TurnLabels, report: TurnReport) -> None:
        self.reports.append(report)


class Raising(NullObserver):
    """Fails at every event."""

    def llm_call(self, labels: TurnLabels, call: LlmCallEnd) -> None:
        raise RuntimeError("exporter down")

    def turn_ended(self, labels: TurnLabels, report: TurnReport) -> None:
        raise RuntimeError("exporter down")


def test_observers_see_calls_tools_permissions_and_the_report(harness: Harness) -> None:
    """One that fails takes nothing away from the others or the turn."""
    recorder = Recorder()
    options = {"observers": [Raising(), recorder]}
    session = harness.open(options=options)

    tool = {"name": "glob", "args": {"pattern": "*"}}
    report = harness.ask(session, say(text="ok", tool=tool, fault={"kind": "status", "status": 500, "times": 1}))

    assert recorder.reports == [report]
    assert [call.outcome for call in recorder.calls] == ["error", "ok", "error", "ok"]
    assert [call.purpose for call in recorder.calls] == ["loop"] * 4
    assert sum(call.prompt_tokens + call.completion_tokens for call in recorder.calls) == report.usage.total_tokens
    assert [(tool.name, tool.outcome) for tool in recorder.tools] == [("glob", "ok")]
    assert [(decision.tool, decision.decision) for decision in recorder.permissions] == [("glob", "allow")]


def test_a_sink_that_raises_does_not_end_the_turn(harness: Harness) -> None:
    """The client's connection may be gone."""
    session = harness.open()
    harness.on_event = refuse

    assert harness.ask(session, say(text="ok")).outcome == Outcome.ANSWERED


def refuse(_: object) -> None:
    raise BrokenPipeError


SECRET = "Incorrect API key provided: abcd****wxyz for organization org-ACME at https://internal-gw.example"


@pytest.mark.parametrize("refusal", [401, 400, 503])
def test_a_provider_s_words_never_stand_in_the_conversation(harness: Harness, provide: Provide, refusal: int) -> None:
    """A tenant whose next question was "What did you say last?" read the key's fragment, organisation and address."""

    def answer(handler: Handler, request: dict[str, Any]) -> None:
        if request["messages"][-1]["role"] == "tool":
            handler.send(refusal, "application/json", json.dumps({"error": {"message": SECRET}}).encode())
            return
        handler.stream()
        if not any(message["role"] == "tool" for message in request["messages"]):
            function = {"name": "glob", "arguments": '{"pattern": "*"}'}
            handler.event({"tool_calls": [{"index": 0, "id": "c", "type": "function", "function": function}]})
        else:
            handler.event({"content": "fine"})
        handler.event({}, "stop")

    provider = provide(answer)
    session = harness.open(base_url=provider.base_url, limits={"llm_retries": 0})

    refused = harness.ask(session, "hello")
    harness.ask(session, "What did you say last?")

    assert [call.outcome for call in refused.tool_calls] == ["ok"]
    assert "Incorrect API key" in str(refused.operator_detail)
    assert len(provider.seen) == 3
    sent, kept = json.dumps(provider.seen[2]), json.dumps(session.snapshot().messages)
    assert not [word for word in ("org-ACME", "internal-gw", "wxyz") if word in sent + kept]


def strict_about_system_messages(handler: Handler, request: dict[str, Any]) -> None:
    """Refuses as Qwen's template does, and answers otherwise, a summariser's call too."""
    if any(message["role"] == "system" for message in request["messages"][1:]):
        error = {"message": "System message must be at the beginning.", "type": "BadRequestError", "code": 400}
        handler.send(400, "application/json", json.dumps({"error": error}).encode())
        return
    summary = "Summarize this conversation" in str(request["messages"][-1]["content"])
    text = "<summary>all about words</summary>" if summary else "fine"
    if not request.get("stream"):
        choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
        handler.send(200, "application/json", json.dumps({"choices": [choice]}).encode())
        return
    handler.stream()
    handler.event({"content": text})
    handler.event({}, "stop")


def test_a_compacted_conversation_has_one_system_message(harness: Harness, provide: Provide) -> None:
    """Three of them were refused for ever, each turn paying for another summary."""
    provider = provide(strict_about_system_messages)
    limits = {"max_context_tokens": 8_000, "turn_tokens": 400_000, "llm_retries": 0}
    session = harness.open(base_url=provider.base_url, limits=limits)

    reports = [harness.ask(session, "word " * 1_400) for _ in range(6)]

    assert [report.outcome for report in reports] == [Outcome.ANSWERED] * 6, reports[-1].operator_detail
    last = provider.seen[-1]["messages"]
    assert "all about words" in last[0]["content"]
    assert [message["role"] for message in last].count("system") == 1


CAP = {"max_context_tokens": 8_000, "turn_tokens": 400_000, "llm_retries": 0}


def without_summaries(handler: Handler, request: dict[str, Any]) -> None:
    """Answers every question and no summariser."""
    if "Summarize this conversation" in str(request["messages"][-1]["content"]):
        handler.send(503, "application/json", b"{}")
        return
    handler.stream()
    handler.event({"content": "fine"})
    handler.event({}, "stop")


def test_the_context_cap_holds_while_the_summariser_is_down_and_the_report_says_so(
    harness: Harness, provide: Provide
) -> None:
    """Prompts went to twice the cap, without a word."""
    provider = provide(without_summaries)
    session = harness.open(base_url=provider.base_url, limits=CAP)

    reports = [harness.ask(session, f"question {number}: " + "word " * 1_400) for number in range(8)]

    asked = [body for body in provider.seen if "Summarize this" not in str(body["messages"][-1]["content"])]
    sizes = [count_tokens(json.dumps([body["messages"], body.get("tools")])) for body in asked]
    assert [report.answer for report in reports] == ["fine"] * 8
    assert max(sizes) < 8_000
    assert "question 7" in str(asked[-1]["messages"])
    assert any("oldest messages were left out" in warning for warning in reports[-1].warnings)


def test_a_question_that_is_larger_than_the_context_cap_is_refused(harness: Harness, provide: Provide) -> None:
    """Nothing can be left out of it; nothing is sent, and a smaller one is answered."""
    provider = provide(without_summaries)
    session = harness.open(base_url=provider.base_url, limits=CAP)

    refused, answered = harness.ask(session, "word " * 9_000), harness.ask(session, "hello")

    assert (refused.outcome, refused.usage.llm_calls) == (Outcome.BUDGET_IMPOSSIBLE, 0)
    assert "max_context_tokens is 8,000" in str(refused.detail)
    assert answered.answer == "fine"


def test_a_summary_comes_also_where_only_streams_are_served(harness: Harness, provide: Provide) -> None:
    """The summariser's was the one request that was not streamed."""

    def answer(handler: Handler, request: dict[str, Any]) -> None:
        if not request.get("stream"):
            handler.send(503, "application/json", b"{}")
        else:
            strict_about_system_messages(handler, request)

    provider = provide(answer)
    session = harness.open(base_url=provider.base_url, limits=CAP)

    reports = [harness.ask(session, "word " * 1_400) for _ in range(6)]

    assert [report.answer for report in reports] == ["fine"] * 6
    assert "all about words" in provider.seen[-1]["messages"][0]["content"]
    assert reports[-1].warnings == ()


def test_a_tool_loop_keeps_its_question_and_its_last_rounds(harness: Harness, provide: Provide) -> None:
    """Results of one turn alone may be too many; each that is left keeps its call."""

    def answer(handler: Handler, request: dict[str, Any]) -> None:
        if "Summarize this conversation" in str(request["messages"][-1]["content"]):
            handler.send(503, "application/json", b"{}")
            return
        handler.stream()
        if len(provider.seen) < 12:
            number = len(provider.seen)
            function = {"name": "glob", "arguments": json.dumps({"pattern": f"*{number}*", "note": "word " * 500})}
            handler.event({"tool_calls": [{"index": 0, "id": f"c{number}", "type": "function", "function": function}]})
        else:
            handler.event({"content": "fine"})
        handler.event({}, "stop")

    provider = provide(answer)
    session = harness.open(base_url=provider.base_url, limits={**CAP, "max_iterations": 20})

    report = harness.ask(session, "the question")

    assert report.answer == "fine", report.operator_detail
    last = provider.seen[-1]["messages"]
    # Without blanks, as it goes over the wire.
    sent = json.dumps([last, provider.seen[-1].get("tools")], separators=(",", ":"))
    assert count_tokens(sent) < 8_000
    assert any(str(message["content"]).endswith("the question") for message in last)
    calls = {call["id"] for message in last for call in message.get("tool_calls") or ()}
    assert {message["tool_call_id"] for message in last if message["role"] == "tool"} == calls
