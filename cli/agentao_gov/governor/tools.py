"""A time limit around every tool, of whatever kind: built-in, custom, async, MCP, sub-agent.

The tool runs on a thread of its own with a cancellation token of its own. At the limit the token is cancelled, which
really ends a shell command, an MCP call and an async tool; a Python tool that does not listen is left behind on its
daemon thread, and the session remembers it. The model is told and goes on.
"""

from __future__ import annotations

import asyncio
import contextvars
import re
import threading
import time
from collections.abc import Callable, Coroutine, Iterable
from dataclasses import dataclass, field
from typing import Any

from agentao.cancellation import (
    AgentCancelledError,
    CancellationToken,
    bind_cancellation_token,
    current_cancellation_token,
    current_turn,
)
from agentao.runtime.tool_planning import PRE_TOOL_HOOK_REASON
from agentao.tools.base import AsyncToolBase

from agentao_gov.governor.file_tools import FILE_TOOLS
from agentao_gov.governor.report import ToolOutcome
from agentao_gov.governor.turn import ToolCallEnd, Turn
from agentao_gov.governor.types import ToolEvent
from agentao_gov.process.supervision import tool_begins

# What became of each tool call, put together from agentao's events and what the guard saw.
#
# agentao tells when a call starts and ends, and `ok`, `error` or `cancelled`; only the guard knows that an error was a
# time-out, and a call that was refused looks cancelled. The record travels in a context variable, because a call's
# start event, its execution and its end event happen on one thread (and the guard copies the context to the tool's
# own).


@dataclass(slots=True)
class ToolRecord:
    """One call under way. Owned by the thread that executes it."""

    name: str
    started: float = field(default_factory=time.monotonic)
    #: Whether the guard let it run: a call that ends without was refused before.
    executed: bool = False
    #: What the guard knows better than agentao's status.
    outcome: ToolOutcome | None = None
    #: Why it was refused.
    reason: str | None = None


_RECORD: contextvars.ContextVar[ToolRecord | None] = contextvars.ContextVar("agentao_gov_tool_record", default=None)


def current_record() -> ToolRecord | None:
    """The record of the call executing here."""
    return _RECORD.get()


def mark_denied(reason: str = "it reached outside the session's directory") -> None:
    """The call executing here reached for what it must not."""
    record = _RECORD.get()
    if record is not None and record.outcome is None:
        record.outcome, record.reason = "denied", reason


class ToolLog:
    """The calls of one turn. Thread-safe: a batch of reading tools runs in parallel."""

    def __init__(self, turn: Turn) -> None:
        self._turn = turn
        self._lock = threading.Lock()
        # Under `_lock`: calls that started and have not ended.
        self._open: dict[str, ToolRecord] = {}
        # Under `_lock`: why calls that have not started yet are refused, or need a person's consent.
        self._reasons: dict[str, str] = {}

    def decided(self, call_id: str, reason: str) -> None:
        """The permissions have judged a call that is to come."""
        with self._lock:
            self._reasons[call_id] = reason.removeprefix(f"{PRE_TOOL_HOOK_REASON}: ")

    def started(self, call_id: str, name: str) -> None:
        """agentao begins a call, on this thread."""
        record = ToolRecord(name)
        with self._lock:
            record.reason = self._reasons.pop(call_id, None)
            self._open[call_id] = record
        _RECORD.set(record)

    def ended(self, call_id: str, status: str) -> None:
        """agentao is done with a call."""
        with self._lock:
            record = self._open.pop(call_id, None)
        if record is not None:
            self._write(record, self._outcome(record, status))

    def refused(self, name: str) -> None:
        """The model asked for a tool it does not have."""
        self._write(ToolRecord(name, reason="this session has no such tool"), "denied")

    def close(self) -> None:
        """The turn is over: what has not ended by now is recorded as cancelled."""
        with self._lock:
            left = list(self._open.values())
            self._open.clear()
        for record in left:
            self._write(record, record.outcome or "cancelled")

    def _outcome(self, record: ToolRecord, status: str) -> ToolOutcome:
        if record.outcome is not None:
            return record.outcome
        match status:
            case "ok":
                return "ok"
            case "cancelled":
                return "cancelled" if record.executed or self._turn.token.is_cancelled else "denied"
        return "error"

    def _write(self, record: ToolRecord, outcome: ToolOutcome) -> None:
        seconds = time.monotonic() - record.started
        self._turn.meter.tool(record.name, outcome, seconds, record.reason if outcome == "denied" else None)
        self._turn.emit(ToolEvent(record.name, outcome, round(seconds * 1000)))
        end = ToolCallEnd(record.name, outcome, seconds)
        self._turn.observers.tell(lambda observer: observer.tool_call(self._turn.labels, end))


#: What a timed-out tool gets to come back with what it has, while the turn still has time: a shell's processes must be
#: found and its output drained.
_TIMED_OUT_GRACE_S = 1.5
_GUARDED = "_agentao_gov_guarded"


#: How agentao 0.5.17's own tools begin a result that is a failure: they return it, and its events say `ok`. None of
#: them begins a good result so (a file comes after "File:", a command's output after "STDOUT:").
_FAILURE = re.compile(r"Error(:| [a-z]+ing )|MCP (tool|auth|connection) error")


def says_failure(tool: Any, result: Any) -> bool:
    """Whether a result is one of agentao's own tools telling the model that it failed."""
    return type(tool).__module__.startswith("agentao.") and isinstance(result, str) and bool(_FAILURE.match(result))


class ToolTimeoutError(TimeoutError):
    """A tool exceeded its limit; its text is what the model reads."""


@dataclass(slots=True)
class _Box:
    """What the tool's thread leaves behind."""

    result: Any = None
    error: BaseException | None = None


class ToolGuard:
    """Guards the tools of one session. Thread-safe."""

    def __init__(
        self,
        limit_s: Callable[[Any], float],
        grace_s: float,
    ) -> None:
        """`limit_s` of a tool, `grace_s` for a cancelled tool to come back."""
        self._limit_s = limit_s
        self._grace_s = grace_s
        self._lock = threading.Lock()
        # Under `_lock`: threads of tools that did not come back.
        self._left: list[threading.Thread] = []

    def guard_all(self, tools: Iterable[Any]) -> None:
        """Guards each, once."""
        for tool in tools:
            self.guard(tool)

    def guard(self, tool: Any) -> None:
        """Puts the limit around one tool instance. Does nothing the second time."""
        if getattr(tool, _GUARDED, False):
            return
        if isinstance(tool, AsyncToolBase):
            inner_async = tool.async_execute

            async def async_execute(**arguments: Any) -> Any:
                # The loop this runs on is agentao's own for this one call; blocking it holds up nobody.
                return self._run(tool, lambda token: _run_async(inner_async(**arguments), token))

            tool.async_execute = async_execute  # type: ignore[method-assign]
        else:
            inner = tool.execute

            def execute(**arguments: Any) -> Any:
                def call(token: CancellationToken) -> Any:
                    if FILE_TOOLS.runs(tool):
                        return FILE_TOOLS.run(
                            tool, arguments, limit_s=self._limit_s(tool), token=token, denied=mark_denied
                        )
                    # A sub-agent's tool takes the token by attribute, and must end at the limit too.
                    if hasattr(tool, "_cancellation_token"):
                        tool._cancellation_token = token
                    return inner(**arguments)

                return self._run(tool, call)

            tool.execute = execute
        setattr(tool, _GUARDED, True)

    def left_behind(self) -> tuple[threading.Thread, ...]:
        """Threads of abandoned tools that still run."""
        with self._lock:
            self._left = [thread for thread in self._left if thread.is_alive()]
            return tuple(self._left)

    def _run(self, tool: Any, call: Callable[[CancellationToken], Any]) -> Any:
        record = current_record()
        if record is not None:
            record.executed = True
        name, limit_s = tool.name, self._limit_s(tool)
        outer = _outer_token()
        child = CancellationToken()
        done, wake, box = threading.Event(), threading.Event(), _Box()

        def body() -> None:
            try:
                tool_begins(name)
                with bind_cancellation_token(child):
                    box.result = call(child)
            except BaseException as error:
                box.error = error
            finally:
                done.set()
                wake.set()

        context = contextvars.copy_context()
        thread = threading.Thread(target=context.run, args=(body,), name=f"tool-{name}", daemon=True)
        forget = outer.add_done_callback(wake.set)
        try:
            thread.start()
            wake.wait(limit_s)
            if done.is_set():
                result = _unpack(box)
                if record is not None and record.outcome is None and says_failure(tool, result):
                    record.outcome = "error"
                return result
            timed_out = not outer.is_cancelled
            child.cancel("tool-timeout" if timed_out else outer.reason)
            if not done.wait(max(self._grace_s, _TIMED_OUT_GRACE_S) if timed_out else self._grace_s):
                with self._lock:
                    self._left.append(thread)
        finally:
            forget()
        partial = getattr(box.error, "partial_output", "") or ""
        if record is not None:
            record.outcome = "timeout" if timed_out else "cancelled"
        if not timed_out:
            raise AgentCancelledError(outer.reason, partial_output=partial)
        text = f"the tool {name} was stopped at its limit of {limit_s:g} s"
        raise ToolTimeoutError(f"{text}\nPartial output:\n{partial}" if partial else text)


def _outer_token() -> CancellationToken:
    """The token of the call, or of the turn: agentao binds a token of the call around synchronous tools only."""
    token = current_cancellation_token()
    if token is None:
        turn = current_turn()
        token = turn[1] if turn is not None else CancellationToken()
    return token


def _unpack(box: _Box) -> Any:
    if box.error is not None:
        raise box.error
    return box.result


def _run_async(coroutine: Coroutine[Any, Any, Any], token: CancellationToken) -> Any:
    """Runs an async tool on a loop of its own, cancelled with the token."""

    async def main() -> Any:
        loop = asyncio.get_running_loop()
        task = asyncio.ensure_future(coroutine)

        def cancel() -> None:
            # The loop may be closed by the time a late cancel arrives.
            if not loop.is_closed():
                loop.call_soon_threadsafe(task.cancel)

        forget = token.add_done_callback(cancel)
        try:
            return await task
        except asyncio.CancelledError:
            raise AgentCancelledError(token.reason) from None
        finally:
            forget()

    return asyncio.run(main())
