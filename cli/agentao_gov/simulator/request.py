"""A chat request as the simulated model sees it, and what it says where no script tells it.

Unscripted it is short, deterministic, about the question, and sometimes calls a tool.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import cycle, islice
from typing import Any, Literal

from agentao_gov.errors import BadRequestError
from agentao_gov.simulator.script import ToolPlan
from agentao_gov.simulator.tokens import pieces, prompt_tokens, text_of

WireName = Literal["completions", "responses", "messages"]

# agentao puts reminders (date and time, hook output) into user messages; they are not the user's words.
_REMINDER = re.compile(r"<system-reminder>.*?</system-reminder>\s*", re.DOTALL)
_SUMMARY_SYSTEM = "You are a conversation summarization assistant"
_READ = re.compile(
    r"\b(?:read|open|show|summari[sz]e|look (?:at|into)|what is in|what's in|explain)\b"
    r"[^\n]{0,80}?(?P<path>(?:[\w.~-]*/)*[\w-]+\.[A-Za-z]\w{0,7})\b",
    re.IGNORECASE,
)
_NUMBERED = re.compile(r"^ *\d+\t(.+)$", re.MULTILINE)
_QUOTED_CHARS = 160
_FILLER = (
    " The answer goes on for as long as the script says, one plain sentence after another,"
    " so that its length in tokens is exact and its text is the same each time."
)
_SUMMARY = """<analysis>
The conversation is summarised by the simulated model.
</analysis>
<summary>
1. Primary Request and Intent: {request}
2. Key Concepts: none beyond the request.
3. Files: as named in the conversation.
4. Errors: none recorded.
5. Problem Solving: {count} messages were condensed.
6. User Messages: the last one is quoted above.
7. Pending Tasks: answer the user's next message.
8. Current Work: the conversation continues.
9. Next Step: go on.
</summary>"""


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """One parsed request. Messages and tools are in the words of Chat Completions."""

    wire: WireName
    model: str
    api_key: str
    user: str | None
    stream: bool
    #: Whether a stream is to report usage, which only Chat Completions must be asked for.
    include_usage: bool
    #: Completion tokens at most; None: no limit.
    max_tokens: int | None
    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]]
    #: Whether the request offers tools that may be called.
    may_call_tools: bool
    #: The last thing the user said, without the runtime's reminders.
    question: str
    #: Rounds of tool calls since the question.
    round_index: int
    #: Whether the runtime asks for a summary of the conversation.
    is_summary: bool
    #: Hash of the messages: the same for a retry of the same call.
    digest: str
    prompt_tokens: int
    #: After how many messages the client marked a breakpoint of the prompt cache.
    breakpoints: tuple[int, ...] = ()
    headers: dict[str, str] = field(default_factory=dict)

    @property
    def tool_results(self) -> str:
        """What the tools have returned since the question."""
        index, _ = _question(self.messages)
        return "\n".join(text_of(m.get("content")) for m in self.messages[index + 1 :] if m.get("role") == "tool")

    def tool(self, name: str) -> dict[str, Any] | None:
        """The offered tool's function object."""
        for tool in self.tools:
            function = tool.get("function") or {}
            if function.get("name") == name:
                return dict(function)
        return None


def chat_request(
    wire: WireName,
    data: Mapping[str, Any],
    headers: Mapping[str, str],
    messages: list[dict[str, Any]],
    tools: list[dict[str, Any]],
    *,
    may_call_tools: bool,
    max_tokens: int | None,
    include_usage: bool = True,
    breakpoints: Sequence[int] = (),
) -> ChatRequest:
    """Builds a request from what a wire read off a body, `data`, and its `headers`.

    `tools` that may not be called are still part of the prompt.
    """
    index, question = _question(messages)
    key = headers.get("x-api-key") or headers.get("authorization", "").removeprefix("Bearer ").strip()
    metadata = data.get("metadata")
    user = data.get("user") or (metadata.get("user_id") if isinstance(metadata, dict) else None)
    return ChatRequest(
        wire=wire,
        model=data["model"],
        api_key=key,
        user=user if isinstance(user, str) else None,
        stream=bool(data.get("stream")),
        include_usage=include_usage,
        max_tokens=max_tokens,
        messages=messages,
        tools=tools,
        may_call_tools=may_call_tools and bool(tools),
        question=question,
        round_index=sum(1 for m in messages[index + 1 :] if m.get("role") == "assistant" and m.get("tool_calls")),
        is_summary=_is_summary(messages),
        digest=_digest(messages),
        prompt_tokens=prompt_tokens(messages, tools),
        breakpoints=tuple(breakpoints),
        headers={k: v for k, v in headers.items() if k.startswith("x-") and k != "x-api-key"},
    )


def positive_limit(data: Mapping[str, Any], name: str) -> int | None:
    """A limit on the output, in tokens; None where there is none. Raises BadRequestError for what is no limit."""
    value = data.get(name)
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise BadRequestError(f"`{name}` must be a positive integer.", param=name)
    return value


def _question(messages: list[dict[str, Any]]) -> tuple[int, str]:
    for index in range(len(messages) - 1, -1, -1):
        message = messages[index]
        if message.get("role") == "user":
            text = _REMINDER.sub("", text_of(message.get("content"))).strip()
            if text:
                return index, text
    return len(messages) - 1, ""


def _is_summary(messages: list[dict[str, Any]]) -> bool:
    return messages[0].get("role") == "system" and text_of(messages[0].get("content")).startswith(_SUMMARY_SYSTEM)


def _digest(messages: list[dict[str, Any]]) -> str:
    # Reminders carry the time of day: a retry is the same call all the same.
    hashed = hashlib.blake2b(str(len(messages)).encode(), digest_size=8)
    for message in messages[-3:]:
        text = _REMINDER.sub("", text_of(message.get("content")))
        hashed.update(f"\x01{message.get('role')}\x00{text}".encode("utf-8", "replace"))
    return hashed.hexdigest()


def default_answer(request: ChatRequest) -> str:
    """An answer that lets a person see that the question, the tools and the history arrived."""
    if request.is_summary:
        return _SUMMARY.format(request=_quote(request.question[-_QUOTED_CHARS:]), count=len(request.messages))
    last = request.messages[-1]
    if last.get("role") == "tool":
        return _about_tool(request, text_of(last.get("content")))
    return (
        f"You asked: {_quote(request.question)}. This answer comes from the simulated model, which follows a script "
        "and knows nothing; the limits, budgets and tools around it are the real ones."
    )


def filler(tokens: int) -> str:
    """A text of exactly that many tokens."""
    chosen = islice(cycle(pieces(_FILLER)), max(0, tokens))
    return b"".join(chosen).decode("utf-8")


def unscripted_tool(request: ChatRequest) -> ToolPlan | None:
    """A look into the file that the question names, when the agent may read files."""
    if request.is_summary or request.round_index > 0 or request.tool("read_file") is None:
        return None
    found = _READ.search(request.question)
    if found is None:
        return None
    return ToolPlan(name="read_file", args={_path_parameter(request): found["path"]}, rounds=1)


def calls_for(plan: ToolPlan, request: ChatRequest) -> list[tuple[str, str]]:
    """The calls of this round as (name, arguments)."""
    calls = []
    for index in range(plan.parallel):
        name = str(_fill(plan.name, request.round_index, index))
        if plan.raw is not None:
            calls.append((name, plan.raw))
            continue
        arguments = {key: _fill(value, request.round_index, index) for key, value in plan.args.items()}
        if plan.vary and arguments == plan.args:
            _suffix(arguments, f"-{request.round_index}-{index}")
        calls.append((name, json.dumps(arguments, ensure_ascii=False)))
    return calls


def _fill(value: Any, round_index: int, call: int) -> Any:
    if isinstance(value, str):
        return value.replace("{round}", str(round_index)).replace("{call}", str(call))
    return value


def _suffix(arguments: dict[str, Any], suffix: str) -> None:
    for key, value in arguments.items():
        if isinstance(value, str):
            arguments[key] = value + suffix
            return
    arguments["attempt"] = suffix


def _path_parameter(request: ChatRequest) -> str:
    parameters = (request.tool("read_file") or {}).get("parameters") or {}
    required = parameters.get("required") or ["file_path"]
    return str(required[0])


def _quote(text: str) -> str:
    line = " ".join(text.split())
    if len(line) > _QUOTED_CHARS:
        line = line[:_QUOTED_CHARS].rstrip() + "…"
    return f"“{line}”"


def _about_tool(request: ChatRequest, result: str) -> str:
    # agentao numbers a file's lines and puts a head before them.
    lines = _NUMBERED.findall(result) or [line for line in result.splitlines() if line.strip()]
    head = _quote(lines[0]) if lines else "nothing"
    return (
        f"You asked: {_quote(request.question)}. The tool answered with {len(lines)} line(s), beginning with {head}."
        " That is all the simulated model can say about it."
    )
