"""What an unscripted simulated model says: short, deterministic, about the question, and sometimes with a tool."""

from __future__ import annotations

import json
import re
from itertools import cycle, islice
from typing import Any

from agentao_gov.simulator.request import ChatRequest
from agentao_gov.simulator.script import ToolPlan
from agentao_gov.simulator.tokens import pieces, text_of

__all__ = ["calls_for", "default_answer", "filler", "unscripted_tool"]

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
