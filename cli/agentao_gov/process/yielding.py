"""In a session process tools yield to turns: a tenth of the weight, where more is to run than there are processors.

A session that spins or forks without end then costs its neighbours nothing that they would notice
(`benchmarks/isolation`). In a service that hosts sessions itself nothing yields: a thread that is rarely let run may
hold the interpreter lock meanwhile, and all other sessions would wait for it.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading

from agentao_gov.process.warden.priority import TOOL_NICE, lower, lower_session

__all__ = ["command_started", "let_tools_yield", "tool_begins"]

#: Whether this process is a session's own; set once, before its first session.
_yields = False


def let_tools_yield() -> None:
    """Says that this process hosts one session, below a warden."""
    global _yields
    _yields = True


def tool_begins(name: str) -> None:
    """Called on a tool's thread: it and what it starts run below turns. A sub-agent's loop is a turn of its own."""
    if _yields and not name.startswith("agent_"):
        lower(threading.get_native_id(), TOOL_NICE)
        # The warden looks more often for a moment: a fork bomb is a thousand processes in a quarter of a second.
        with contextlib.suppress(OSError):
            os.kill(os.getppid(), signal.SIGWINCH)


def command_started(pid: int) -> None:
    """A tool has started a process that leads a session of its own, which some kernels weigh as a group of its own."""
    if _yields:
        lower_session(pid, TOOL_NICE)
