"""The named points at which a service is killed, and the wrappers that make it stop there for good.

A service is walked through its life; at the chosen point it sends itself SIGKILL, in the middle of whatever all its
other threads are doing. Five sessions, each with an MCP server of another temper, live in it.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from agentao_gov.clock import Deadline
from agentao_gov.governor import Conversation, IterationEvent, SessionSpec, TextEvent, ToolEvent, TurnReport
from agentao_gov.governor.requests import EventSink, TurnEvent, TurnRequest
from agentao_gov.pool.host import HostFactory, SessionHost

#: phase -> points. A phase is what the service does; its points are armed while it does it.
POINTS: dict[str, tuple[str, ...]] = {
    "opening": ("open_begins", "server_started", "open_ended", "turn_begins", "first_text", "turn_ended", "saving"),
    "idle": ("idle",),
    "working": (
        "tool_running",
        "tool_ended",
        "second_call",
        "shell_running",
        "background_running",
        "cancelled",
        "late",
    ),
    "evicting": ("close_begins", "closing", "close_ended", "hibernated"),
    "returning": ("open_begins", "open_ended", "turn_ended"),
    "deleting": ("close_begins", "deleted"),
    "draining": ("lame_duck", "drain_begins", "closing", "cancelling", "close_all", "kill_all"),
}
#: A fresh session is closed after each turn: there is nobody to idle, to be evicted or to come back.
NOT_FRESH = {"idle", "evicting", "returning", "deleting"}
MODES = ("fresh", "in-process", "subprocess")
KINDS = ("polite", "stubborn", "helper", "daemon", "refork")


def scenarios() -> list[tuple[str, str, str]]:
    """(mode, phase, point), all of them."""
    return [
        (mode, phase, point)
        for mode in MODES
        for phase, points in POINTS.items()
        if not (mode == "fresh" and phase in NOT_FRESH)
        for point in points
    ]


class Trap:
    """Kills this process at the chosen point of the chosen phase."""

    def __init__(self, directory: Path, phase: str, point: str) -> None:
        self._directory = directory
        self._wanted = phase, point
        #: What the service is doing now; written by the walking thread, read by all.
        self.phase = ""

    def at(self, point: str) -> None:
        """The service has come to this point."""
        if (self.phase, point) == self._wanted:
            (self._directory / "reached").touch()
            os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(60)  # not a step further, whichever thread the signal takes first

    def when_written(self, file: str, point: str, bytes_before: int) -> None:
        """Comes to the point as soon as a server has written to a file of the directory."""
        path = self._directory / file

        def watch() -> None:
            until = time.monotonic() + 30
            while time.monotonic() < until:
                if path.exists() and path.stat().st_size > bytes_before:
                    self.at(point)
                    return
                time.sleep(0.0005)

        threading.Thread(target=watch, daemon=True).start()


class TrappedHost:
    """A session host that comes to points."""

    def __init__(self, host: SessionHost, trap: Trap) -> None:
        self._host = host
        self._trap = trap

    def turn(self, request: TurnRequest, on_event: EventSink) -> TurnReport:
        self._trap.at("turn_begins")

        def watched(event: TurnEvent) -> None:
            match event:
                case TextEvent():
                    self._trap.at("first_text")
                case ToolEvent(name=name):
                    self._trap.at("background_running" if name == "run_shell_command" else "tool_ended")
                case IterationEvent(iteration=2):
                    self._trap.at("second_call")
            on_event(event)

        report = self._host.turn(request, watched)
        self._trap.at("turn_ended")
        return report

    def close(self, deadline: Deadline) -> None:
        self._trap.at("close_begins")
        timer = threading.Timer(0.03, self._trap.at, ("closing",))
        timer.daemon = True
        timer.start()
        self._host.close(deadline)
        self._trap.at("close_ended")

    def __getattr__(self, name: str) -> Any:
        return getattr(self._host, name)


class TrappedFactory:
    """A host factory that comes to points."""

    def __init__(self, factory: HostFactory, trap: Trap, directory: Path) -> None:
        self._factory = factory
        self._trap = trap
        self._started = directory / "started"

    def open(self, spec: SessionSpec, conversation: Conversation | None, deadline: Deadline) -> Any:
        self._trap.at("open_begins")
        before = self._started.stat().st_size if self._started.exists() else 0
        self._trap.when_written("started", "server_started", before)
        host = self._factory.open(spec, conversation, deadline)
        self._trap.at("open_ended")
        return TrappedHost(host, self._trap)

    def shutdown(self, deadline: Deadline) -> None:
        self._factory.shutdown(deadline)


def step_of(trap: Trap) -> Callable[[str], None]:
    """The archive's own steps as points."""
    return lambda step: trap.at("saving") if step == "write second half" else None
