"""Runs one turn on a thread of its own and comes back in time, whatever the turn does.

    deadline ─► cancel token, sockets shut down ─► half the grace ─► kill MCP servers and shells ─► the rest ─► abandon

`asyncio.to_thread` and agentao's `arun` share a pool of min(32, cores + 4) threads for the whole process, so six stuck
turns would freeze every tenant of a 2-core machine; and their threads are joined at exit. Ours are daemons.
"""

from __future__ import annotations

import logging
import sys
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass

from agentao_gov.governor.classify import StopCause
from agentao_gov.governor.reason import Reason
from agentao_gov.governor.turn import Turn

__all__ = ["TurnRun", "run_turn", "stack_of"]

_log = logging.getLogger(__name__)

#: Kept from the grace for writing the report.
_REPORT_S = 0.1
#: Longest single wait, because a wait without end cannot be interrupted by a signal on some platforms.
_WAIT_S_MAX = 3600.0
_STACK_FRAMES_MAX = 40


@dataclass(slots=True)
class TurnRun:
    """What the turn's thread left."""

    thread: threading.Thread
    returned: bool
    text: str = ""
    crash: BaseException | None = None


def run_turn(turn: Turn, chat: Callable[[], str], *, grace_s: float, kill: Callable[[], None]) -> TurnRun:
    """Runs `chat` and watches it. Returns within the deadline plus `grace_s`, or that long after a cancel."""
    done = threading.Event()
    results: list[str] = []
    crashes: list[BaseException] = []

    def body() -> None:
        try:
            results.append(chat())
        except BaseException as error:
            crashes.append(error)
        finally:
            done.set()
            turn.wake.set()

    thread = threading.Thread(target=body, name=f"turn-{turn.labels.turn_id}", daemon=True)
    thread.start()
    returned = _watch(turn, done, grace_s, kill)
    if not returned:
        _log.error(
            "Turn %s of session %s did not stop within %.1f s and is abandoned. Its stack:\n%s",
            turn.labels.turn_id,
            turn.labels.key,
            grace_s,
            stack_of(thread),
        )
    return TurnRun(thread, returned, results[0] if results else "", crashes[0] if crashes else None)


def _watch(turn: Turn, done: threading.Event, grace_s: float, kill: Callable[[], None]) -> bool:
    while not done.is_set() and not turn.stopped:
        left_s = turn.deadline.remaining_s()
        if left_s <= 0:
            turn.stop(StopCause.DEADLINE, Reason(f"The turn met its deadline after {turn.elapsed_s():.1f} s."))
            break
        turn.wake.wait(min(left_s, _WAIT_S_MAX))
    if done.is_set():
        return True
    until = time.monotonic() + grace_s
    if done.wait(grace_s / 2):
        return True
    kill()
    return done.wait(max(0.0, until - time.monotonic() - _REPORT_S))


def stack_of(thread: threading.Thread) -> str:
    """Where a thread is now; without values, which may be a tenant's."""
    frame = sys._current_frames().get(thread.ident or 0)
    if frame is None:
        return "(the thread has ended)"
    return "".join(traceback.format_stack(frame, limit=_STACK_FRAMES_MAX)).rstrip()
