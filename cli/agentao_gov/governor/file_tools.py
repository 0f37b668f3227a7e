"""Runs agentao's file tools in a process of their own, where a call ends at its limit whatever the model asked for."""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from agentao_gov.governor.file_program import PROGRAM, TOOLS
from agentao_gov.process.sandbox_program import landlock_abi, landlock_ruleset

#: What the program is started with of the service's environment: it needs no key to read a file.
_KEPT = ("PATH", "LANG", "LC_ALL", "LC_CTYPE", "PYTHONPATH", "PYTHONHOME", "HOME")
#: Longest answer: the program's own limit on a result, each character escaped.
_ANSWER_BYTES_MAX = 16 << 20
_END_S = 1.0


class FileTools:
    """The program that runs file tools, one for all sessions of a process; started at the first call. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        #: The process that started the program: a fork of it must start its own.
        self._owner = os.getpid()
        # Under `_lock`: the running program and the socket that orders go through.
        self._program: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None

    def runs(self, tool: Any) -> bool:
        """Whether the tool is one of agentao's own that this program runs."""
        return type(tool) in TOOLS.values()

    def run(
        self, tool: Any, arguments: dict[str, Any], *, limit_s: float, token: Any, denied: Callable[[], None]
    ) -> str:
        """Runs one call and returns the tool's text; blocks until it ends or `token` is cancelled.

        `tool` is the agent's own instance, of which name and directory are used, and `limit_s` its time limit in
        seconds; `denied` is called where it reached outside the session's directory. Raises ChildProcessError where
        the call's process was ended, RuntimeError with what the tool raised.
        """
        ours, theirs = socket.socketpair()
        with ours:
            with theirs, _rules(tool.working_directory) as rules:
                self._send([theirs.fileno(), *rules])
            forget = token.add_done_callback(lambda: _hang_up(ours))
            try:
                order = {
                    "tool": tool.name,
                    "directory": str(tool.working_directory),
                    "arguments": arguments,
                    "limit_s": limit_s,
                }
                answer = _exchange(ours, order)
            finally:
                forget()
        if answer is None:
            raise ChildProcessError(
                f"the tool {tool.name} was ended: it used more memory or processor time than a file tool may"
            )
        if answer["denied"]:
            denied()
        if "error" in answer:
            raise RuntimeError(answer["error"])
        return str(answer["result"])

    def close(self) -> None:
        """Ends the program, and with it every call."""
        with self._lock:
            self._drop()

    def _send(self, descriptors: list[int]) -> None:
        """Hands a call's socket and rules over, starting the program where it does not run."""
        with self._lock:
            if self._owner != os.getpid():
                self._owner, self._program, self._control = os.getpid(), None, None
            if self._control is not None:
                # The program may have ended: nothing was asked of it for a while.
                with contextlib.suppress(OSError):
                    socket.send_fds(self._control, [b"c"], descriptors)
                    return
            self._drop()
            self._start()
            assert self._control is not None
            socket.send_fds(self._control, [b"c"], descriptors)

    def _start(self) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            self._program = subprocess.Popen(  # noqa: S603
                [sys.executable, "-P", PROGRAM, str(theirs.fileno())],
                env={name: os.environ[name] for name in _KEPT if name in os.environ},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=(theirs.fileno(),),
                start_new_session=True,
            )
        except OSError:
            ours.close()
            raise
        finally:
            theirs.close()
        self._control = ours

    def _drop(self) -> None:
        if self._control is not None:
            self._control.close()
            self._control = None
        if self._program is not None:
            try:
                self._program.wait(_END_S)
            except subprocess.TimeoutExpired:
                self._program.kill()
                self._program.wait()
            self._program = None


@contextlib.contextmanager
def _rules(root: Path) -> Iterator[list[int]]:
    """Landlock's rules for a call: below `root` and nowhere else. None where the kernel has no Landlock."""
    if not landlock_abi():
        yield []
        return
    ruleset = landlock_ruleset(str(root), read=[], devices=[], network=False)
    try:
        yield [ruleset]
    finally:
        os.close(ruleset)


def _hang_up(call: socket.socket) -> None:
    """The program sees it and kills the call's process."""
    with contextlib.suppress(OSError):
        call.shutdown(socket.SHUT_RDWR)


def _exchange(call: socket.socket, order: dict[str, Any]) -> dict[str, Any] | None:
    """Sends the order and waits for the answer; None where the process ended without one."""
    try:
        call.sendall(json.dumps(order).encode() + b"\n")
        with call.makefile("rb") as lines:
            line = lines.readline(_ANSWER_BYTES_MAX)
    except (ConnectionResetError, BrokenPipeError):
        return None
    if not line.endswith(b"\n"):
        return None
    answer = json.loads(line)
    assert isinstance(answer, dict)
    return answer


#: This process's.
FILE_TOOLS = FileTools()
atexit.register(FILE_TOOLS.close)
