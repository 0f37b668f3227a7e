"""The named points at which a service is killed, and the wrappers that make it stop there for good.

A service is walked through its life; at the chosen point it sends itself SIGKILL, in the middle of whatever all its
other threads are doing. Five sessions, each with an MCP server of another temper, live in it.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from agentao_gov.clock import Deadline
from agentao_gov.governor import Conversation, IterationEvent, SessionSpec, TextEvent, ToolEvent, TurnReport
from agentao_gov.governor.types import EventSink, TurnEvent, TurnRequest
from agentao_gov.pool.host import HostFactory, SessionHost
from agentao_gov.process import procfs
from agentao_gov.process.procfs import ProcessRef

#: phase -> points. A phase is what the service does; its points are armed while it does it.
POINTS: dict[str, tuple[str, ...]] = {
    "opening": ("open_begins", "server_started", "open_ended", "turn_begins", "first_text", "turn_ended"),
    # A session is written to disk after each turn, so that there is nothing left to write when it is evicted.
    "hibernating": ("saving", "renaming", "saved"),
    "leaving": ("close_begins", "closing", "close_ended", "removed"),
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
#: A fresh session is closed after each turn: it leaves instead of idling, being evicted and coming back.
NOT_FRESH = {"idle", "evicting", "returning", "deleting"}
ONLY_FRESH = {"leaving"}
MODES = ("fresh", "in-process", "subprocess")
KINDS = ("polite", "stubborn", "helper", "daemon", "refork")
#: What a server of each temper is when it is in place: two of them have somebody beside them.
EVERYONE = Counter({"polite": 1, "stubborn": 1, "helper": 2, "daemon": 2, "refork": 1})
SHELLS = Counter({"shell": len(KINDS)})


def scenarios() -> list[tuple[str, str, str]]:
    """(mode, phase, point), all of them."""
    return [
        (mode, phase, point)
        for mode in MODES
        for phase, points in POINTS.items()
        if phase not in (NOT_FRESH if mode == "fresh" else ONLY_FRESH)
        for point in points
    ]


def in_place(mode: str, phase: str, point: str) -> Counter[str]:
    """Who must at least be alive when the service is killed there, or the kill would show nothing."""
    if phase == "draining" and point in {"lame_duck", "drain_begins"}:
        return EVERYONE + SHELLS
    if (phase, point) == ("draining", "cancelling"):
        # The turns are being cancelled meanwhile: on a busy machine the last shell has gone by the time that one of
        # them tells who is there. The points around it have the shells.
        return EVERYONE
    if phase == "idle" or (mode != "fresh" and (phase, point) == ("evicting", "close_begins")):
        return EVERYONE
    if phase == "working" and point in {"shell_running", "background_running"}:
        return (Counter() if mode == "fresh" else EVERYONE) + Counter({"shell": 1})
    if phase == "working" and point not in {"cancelled", "late"}:
        return Counter() if mode == "fresh" else EVERYONE
    return Counter()


def alive_in(directory: Path) -> Counter[str]:
    """Who is alive of those that wrote themselves down, by kind."""
    found: Counter[str] = Counter()
    for name in ("alive", "shells"):
        file = directory / name
        for line in file.read_text().splitlines() if file.exists() else ():
            pid, start, kind = line.split()
            found[kind] += procfs.alive(ProcessRef(int(pid), int(start)))
    return found


class Trap:
    """Kills this process at the chosen point of the chosen phase."""

    def __init__(self, directory: Path, phase: str, point: str) -> None:
        self._directory = directory
        self.wanted = phase, point
        #: What the service is doing now; written by the walking thread, read by all.
        self.phase = ""
        self._told = threading.Lock()

    def at(self, point: str) -> None:
        """The service has come to this point."""
        if (self.phase, point) == self.wanted:
            # Several sessions may come to the same point at once: the first one tells, for good.
            self._told.acquire()
            # Written aside first: the test reads it as soon as it is there.
            aside = self._directory / "reached.new"
            aside.write_text("\n".join(alive_in(self._directory).elements()))
            aside.rename(self._directory / "reached")
            os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(60)  # not a step further, whichever thread the signal takes first

    def at_shell(self, point: str) -> None:
        """The service has started a shell in the background: the point is where it has begun to run."""
        if (self.phase, point) == self.wanted:
            while not alive_in(self._directory)["shell"]:
                time.sleep(0.001)
            self.at(point)

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
                case ToolEvent(name="run_shell_command"):
                    self._trap.at_shell("background_running")
                case ToolEvent():
                    self._trap.at("tool_ended")
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
    points = {"write second half": "saving", "rename": "renaming", "done": "saved"}
    return lambda step: trap.at(points[step]) if step in points else None
