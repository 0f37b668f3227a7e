"""One turn played through before the zygote forks, so that what is built at first use is built once for all sessions.

Lazily imported modules, response models, compiled patterns and the token table of a first turn cost 70 ms and 6 MB in
every process otherwise (measured with agentao 0.5.17, openai 3.54). The model's side is two canned answers handed over
in memory: no socket is opened. Every thread has ended when it returns, or the zygote refuses to fork.
"""

from __future__ import annotations

import json
import logging
import tempfile
import threading
from pathlib import Path
from typing import Any

import httpx2
import openai
from pydantic import SecretStr

from agentao_gov.budget import MemoryStore, StoreSettings, TokenLedger
from agentao_gov.clock import SYSTEM_CLOCK, Deadline
from agentao_gov.config import ModelChoice
from agentao_gov.config.profile import Profile, Tools
from agentao_gov.config.resolved import ResolvedProfile
from agentao_gov.governor.file_tools import FILE_TOOLS
from agentao_gov.governor.governor import Governor
from agentao_gov.governor.http import HttpClient
from agentao_gov.governor.types import SessionKey, SessionSpec, TurnEvent, TurnRequest
from agentao_gov.worker import wire

_log = logging.getLogger(__name__)
_JOIN_S = 5.0


def _chunk(delta: dict[str, Any], finish: str | None, usage: dict[str, Any] | None = None) -> str:
    chunk = {
        "id": "chatcmpl-rehearsal",
        "object": "chat.completion.chunk",
        "created": 0,
        "model": "rehearsal",
        "choices": [{"index": 0, "delta": delta, "finish_reason": finish}],
        "usage": usage,
    }
    return f"data: {json.dumps(chunk)}\n\n"


def _answers() -> list[str]:
    """Two tool calls, then an answer."""
    calls = [
        {"index": 0, "id": "call_1", "type": "function", "function": {"name": "glob", "arguments": '{"pattern": "*"}'}},
        {
            "index": 1,
            "id": "call_2",
            "type": "function",
            "function": {"name": "run_shell_command", "arguments": '{"command": "true"}'},
        },
    ]
    usage = {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15}
    return [
        _chunk({"role": "assistant", "tool_calls": calls}, None) + _chunk({}, "tool_calls", usage) + "data: [DONE]\n\n",
        _chunk({"role": "assistant", "content": "Done."}, None) + _chunk({}, "stop", usage) + "data: [DONE]\n\n",
    ]


class _Canned(HttpClient):
    """Answers from memory."""

    def __init__(self) -> None:
        super().__init__()
        answers = iter(_answers())

        def answer(_request: httpx2.Request) -> httpx2.Response:
            body = next(answers, "data: [DONE]\n\n")
            return httpx2.Response(200, headers={"content-type": "text/event-stream"}, text=body)

        self._client = openai.DefaultHttpxClient(transport=httpx2.MockTransport(answer))


def _spec(workdir: Path) -> SessionSpec:
    choice = ModelChoice(
        kind="remote",
        name="gpt-4.1",
        base_url="http://127.0.0.1:9/v1",
        api_key=SecretStr("rehearsal"),
        context_window=None,
        source="rehearsal",
        from_flag=False,
    )
    # The shell's safety rules alone are 1.5 s of regular expressions to compile.
    tools = Tools(
        permission_mode="full-access", allow=["glob", "read_file", "run_shell_command", "search_file_content"]
    )
    profile = ResolvedProfile(profile=Profile(name="rehearsal", tools=tools), sources={})
    return SessionSpec(SessionKey("rehearsal", "1"), "nobody", profile, choice, workdir, "subprocess")


def rehearse() -> bool:
    """Plays the turn. False, and nothing lost but time, where it did not end in an answer."""
    with tempfile.TemporaryDirectory(prefix="gov-rehearsal-") as directory:
        http = _Canned()
        ledger = TokenLedger(MemoryStore(SYSTEM_CLOCK, StoreSettings()), SYSTEM_CLOCK, heartbeat_s=None)
        governor = Governor(ledger=ledger, http=http)
        session = governor.open(_spec(Path(directory)), None, Deadline.after(_JOIN_S))
        seen: list[TurnEvent] = []
        report = session.turn(TurnRequest("rehearsal", "List the files.", "nobody"), seen.append)
        wire.encode_conversation(session.snapshot())
        wire.decode_spec(wire.encode_spec(_spec(Path(directory))))
        session.close(Deadline.after(_JOIN_S))
        governor.close()
        # A program of the zygote's would be every session's.
        FILE_TOOLS.close()
        ledger.close()
    for thread in threading.enumerate():
        if thread is not threading.current_thread():
            thread.join(_JOIN_S)
    if report.answer != "Done.":
        _log.warning("The rehearsal of session processes ended with %s: %s", report.outcome, report.detail)
    return report.answer == "Done."
