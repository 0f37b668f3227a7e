"""A session process: one governed session, agentao's ACP server as its read loop, one wire to its owner.

The same Governor runs here as in the pool's own process, so limits, outcomes and the TurnReport are the same. The
methods are our own, `_gov/*`: ACP has no words for a spec, a deadline, a report or the ledger. End-of-input, SIGTERM
and a hung model call all end the process within a second.
"""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from agentao.acp.server import AcpServer, JsonRpcHandlerError

from agentao_gov.clock import Deadline
from agentao_gov.endings import Outcome
from agentao_gov.errors import ConfigError, GovError, InternalError
from agentao_gov.governor.governor import Governor
from agentao_gov.governor.http import HttpClient
from agentao_gov.governor.report import TurnReport
from agentao_gov.governor.session import GovernedSession
from agentao_gov.governor.tokens import count_tokens
from agentao_gov.governor.turn import NullObserver
from agentao_gov.governor.types import Conversation, TurnEvent, TurnRequest
from agentao_gov.process.oslimits import OsLimits
from agentao_gov.process.supervision import let_tools_yield
from agentao_gov.process.tree import ORPHANS_KILLED
from agentao_gov.worker import wire
from agentao_gov.worker.child_ledger import WireLedger

_log = logging.getLogger(__name__)
#: From end-of-input or SIGTERM to the end of the process, whatever hangs.
_END_S = 0.8
#: A stack is some thousand characters.
_LOG_CHARS_MAX = 8_000
#: Built before the fork in the zygote; a cold worker, or one behind a proxy, builds its own when the session opens.
_http: HttpClient | None = None


def warm_up() -> None:
    """What a session would else do first: the TLS context (33 ms), the token table (0.2 s). Starts no thread."""
    global _http
    _http = HttpClient()
    count_tokens("warm")


class WireObserver(NullObserver):
    """Passes on what happens within a turn; its begin and end are the owner's to tell."""

    def __init__(self, server: AcpServer) -> None:
        self._server = server

    def llm_call(self, _labels: Any, call: Any) -> None:
        """Up the wire."""
        self._tell(call)

    def tool_call(self, _labels: Any, call: Any) -> None:
        """Up the wire."""
        self._tell(call)

    def permission(self, _labels: Any, decision: Any) -> None:
        """Up the wire."""
        self._tell(decision)

    def _tell(self, observation: Any) -> None:
        self._server.write_notification(wire.OBSERVE, wire.encode_observation(observation))


class WireLog(logging.Handler):
    """Warnings and errors go to the owner's log; this process has none that anybody reads."""

    def __init__(self, server: AcpServer) -> None:
        super().__init__(logging.WARNING)
        self._server = server

    def emit(self, record: logging.LogRecord) -> None:
        """Up the wire, bounded."""
        with contextlib.suppress(Exception):
            text = self.format(record)[:_LOG_CHARS_MAX]
            self._server.write_notification(wire.LOG, {"level": record.levelno, "text": text})


class SessionServer:
    """The one session of this process and the methods that drive it."""

    def __init__(self, server: AcpServer) -> None:
        self._server = server
        #: Opened once, and never replaced.
        self._session: GovernedSession | None = None
        #: The messages the owner has already, so that a turn sends only what changed. Touched by one turn at a time.
        self._sent: list[Mapping[str, Any]] = []

    def register(self) -> None:
        """Adds the methods to the server."""
        for method, handler in ((wire.OPEN, self._open), (wire.TURN, self._turn), (wire.CLOSE, self._close)):
            self._server.register(method, functools.partial(_guarded, handler))
        self._server.register(wire.CANCEL, self._cancel)

    def cancel_turn(self) -> None:
        """The end is near: the turn in flight stops, so that the server's drain returns."""
        if self._session is not None:
            self._session.cancel("shutdown")

    def close(self) -> None:
        """Ends the session in order; what takes longer is the warden's."""
        if self._session is not None:
            self._session.close(Deadline.after(_END_S / 2))

    def _open(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """Takes on the session's identity (home, directory), then opens it."""
        wanted = params["versions"]
        if wanted != wire.VERSIONS:
            found = ", ".join(f"{name} {wire.VERSIONS.get(name)} (the service: {wanted[name]})" for name in wanted)
            raise ConfigError(
                f"{sys.executable} has {found}.",
                hint="Install the same versions for the tenant's python: what is sent would be misread.",
            )
        spec = wire.decode_spec(params["spec"])
        saved = params["conversation"]
        conversation = Conversation.of(saved) if saved is not None else None
        home = Path(params["home"])
        for directory in (home, home / "tmp"):
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        spec.workdir.mkdir(mode=0o700, parents=True, exist_ok=True)
        _name_process("gov-session")
        os.environ.update({**params["proxies"], "HOME": str(home), "TMPDIR": str(home / "tmp"), **spec.child_env})
        os.chdir(spec.workdir)
        http = HttpClient() if params["proxies"] or _http is None else _http
        # Made here: what was made ahead of the session knows of no proxy.
        governor = Governor(ledger=WireLedger(self._server), observers=(WireObserver(self._server),), http=http)
        self._sent = list(conversation.messages) if conversation is not None else []
        self._session = governor.open(spec, conversation, Deadline.after(params["within_s"]))
        return {}

    def _turn(self, params: Mapping[str, Any]) -> dict[str, Any]:
        session = self._session
        if session is None:
            raise InternalError("No session is open in this process.")
        request = TurnRequest(
            turn_id=params["turn_id"],
            message=params["message"],
            user=params["user"],
            deadline=Deadline.after(params["remaining_s"]),
            queued_ms=params["queued_ms"],
            id=params["id"],
        )

        def tell(event: TurnEvent) -> None:
            self._server.write_notification(wire.EVENT, wire.encode_event(event))

        report = session.turn(request, tell)
        whole = {**json.loads(report.to_json()), **report.private_fields()}
        return {"report": whole, "stuck": session.stuck, **self._changes(session, report)}

    def _changes(self, session: GovernedSession, report: TurnReport) -> dict[str, Any]:
        """The conversation, without the messages that the owner has already."""
        if report.outcome is Outcome.STUCK:
            return {}  # the abandoned thread may still write to it
        whole = wire.encode_conversation(session.snapshot())
        messages = whole["messages"]
        keep = 0
        for old, new in zip(self._sent, messages, strict=False):
            if old != new:
                break
            keep += 1
        self._sent = messages
        return {"keep": keep, "conversation": {**whole, "messages": messages[keep:]}}

    def _cancel(self, params: Mapping[str, Any]) -> None:
        if self._session is not None:
            self._session.cancel(str(params["reason"]))

    def _close(self, params: Mapping[str, Any]) -> dict[str, Any]:
        if self._session is not None:
            self._session.close(Deadline.after(params["within_s"]))
        # What did not leave by itself, from servers' helpers to stuck turns' shells: the owner's metrics count it.
        return {"orphans_killed": ORPHANS_KILLED.total}


def _name_process(name: str) -> None:
    """What `ps` and the census show; prctl would name the calling thread only."""
    with contextlib.suppress(OSError):
        Path("/proc/self/comm").write_text(name)


def _guarded(handler: Any, params: Any) -> Any:
    """Errors of ours cross the wire as what they are."""
    try:
        return handler(params)
    except GovError as error:
        raise JsonRpcHandlerError(wire.GOV_ERROR, error.message, wire.encode_error(error)) from error
    except MemoryError as error:
        failure = InternalError("The session process ran out of memory.")
        raise JsonRpcHandlerError(wire.GOV_ERROR, failure.message, wire.encode_error(failure)) from error


class _Input:
    """The wire's reading side: tells when it ends, before the server starts to drain."""

    def __init__(self, stream: IO[str], on_end: Any) -> None:
        self._stream = stream
        self._on_end = on_end

    def readline(self) -> str:
        line = self._stream.readline()
        if not line:
            self._on_end(0)
        return line


def _end_soon(code: int) -> None:
    """The last word: in `_END_S` this process is gone, whatever still hangs in it."""

    def end() -> None:
        time.sleep(_END_S)
        os._exit(code)

    threading.Thread(target=end, name="gov-end", daemon=True).start()


def main() -> int:
    """Serves one session on standard input and output until either ends."""
    os.umask(0o077)
    let_tools_yield()
    read_fd, write_fd = os.dup(0), os.dup(1)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    os.dup2(2, 1)  # whatever prints must not reach the wire
    logging.getLogger("agentao").addHandler(logging.NullHandler())
    # A thread's stack is 8 MiB of address space by default; agentao's deepest recursion needs far less.
    threading.stack_size(2 << 20)
    sessions: list[SessionServer] = []

    def on_end(code: int) -> None:
        _end_soon(code)
        if sessions:
            sessions[0].cancel_turn()

    def on_term(_number: int, _frame: Any) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        on_end(143)
        raise SystemExit(143)  # unwinds the read loop: cancels the turn, closes the session

    signal.signal(signal.SIGTERM, on_term)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a Ctrl-C is the owner's to interpret
    with (
        open(read_fd, encoding="utf-8", newline="\n") as incoming,  # noqa: PTH123 (descriptors)
        open(write_fd, "w", encoding="utf-8", newline="\n") as outgoing,  # noqa: PTH123
    ):
        server = AcpServer(stdin=_Input(incoming, on_end), stdout=outgoing, max_workers=8)  # type: ignore[arg-type]
        logging.getLogger("agentao_gov").addHandler(WireLog(server))
        sessions.append(SessionServer(server))
        sessions[0].register()
        try:
            server.run()
        finally:
            sessions[0].close()
    return 0


def _cold_main() -> None:
    """`python -m agentao_gov.worker.child LIMITS`: the start without a zygote."""
    from agentao_gov.process import warden

    warden.name_process("gov-session")
    OsLimits.from_wire(json.loads(sys.argv[1])).apply()
    code = 1
    try:
        code = main()
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 1
    finally:
        # No interpreter shutdown: it would join threads that hang.
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    _cold_main()
