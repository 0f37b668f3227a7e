"""Plays a script of faults while the load runs: at the simulated model, and at the service's own processes.

    [[fault]]
    at = "10s"                     # since the load began
    for = "5s"
    kind = "hang"                  # slow_first_token drip hang 429 500 drop malformed endless_tools
                                   # kill_session kill_worker

Each fault is reported with what the turns that met it ended as, how long until turns were answered again, and what it
left behind.
"""

from __future__ import annotations

import threading
import time
import tomllib
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

import psutil
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from agentao_gov.config.units import parse_duration_s
from agentao_gov.errors import ConfigError
from agentao_gov.loadtest.record import Status, TurnSample
from agentao_gov.loadtest.server_series import ServerRow, listening_process, session_processes, talks_to, tree_of
from agentao_gov.loadtest.target import Target
from agentao_gov.loadtest.view import Stop

Seconds = Annotated[float, BeforeValidator(parse_duration_s)]
Kind = Literal[
    "slow_first_token", "drip", "hang", "429", "500", "drop", "malformed", "endless_tools",
    "kill_session", "kill_worker",
]  # fmt: skip
#: What the simulated model does during each fault; directives in prompts are off for its length.
_BEHAVIOURS: dict[str, dict[str, Any]] = {
    "slow_first_token": {"first_token": "5s", "answer_tokens": 50},
    "drip": {"fault": {"kind": "drip", "interval": "1s"}},
    "hang": {"fault": "hang"},
    "429": {"fault": {"kind": "status", "status": 429, "retry_after": "1s"}},
    "500": {"fault": {"kind": "status", "status": 500}},
    "drop": {"fault": {"kind": "drop", "after": 3}, "answer_tokens": 50},
    "malformed": {"fault": {"kind": "malformed", "after": 3}, "answer_tokens": 50},
    "endless_tools": {"tool": {"name": "glob", "args": {"pattern": "*.{round}"}, "rounds": "endless", "vary": True}},
}
_KILLS = ("kill_session", "kill_worker")
_NOT_PLAYED = "not played: "
_LEFTOVER_S = 5.0
#: An idle session's process dies unnoticed; one with a turn in flight is worth waiting for.
_AT_WORK_S_MAX = 5.0
_LEFT_BEHIND = ("fds", "children", "threads", "threads_abandoned")


class PlannedFault(BaseModel):
    """One fault."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    at_s: Seconds = Field(alias="at")
    for_s: Seconds = Field(default=5.0, alias="for")
    kind: Kind


class _Script(BaseModel):
    model_config = ConfigDict(extra="forbid")

    fault: list[PlannedFault] = Field(min_length=1)


def load_faults(path: Path) -> tuple[PlannedFault, ...]:
    """Reads a script. Raises ConfigError with the file and what is wrong."""
    try:
        script = _Script.model_validate(tomllib.loads(path.read_text(encoding="utf-8-sig")))
    except OSError as error:
        raise ConfigError(f"--faults {path}: {error.strerror}.") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"--faults {path} is no TOML: {error}.") from None
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in problem["loc"])
        raise ConfigError(f"--faults {path}: {where}: {problem['msg']}") from None
    return tuple(sorted(script.fault, key=lambda fault: fault.at_s))


class FaultPlayer:
    """Plays the script in a thread of its own, from the moment the load has begun."""

    def __init__(self, faults: Sequence[PlannedFault], target: Target, stop: Stop) -> None:
        """Plays `faults` at the `target`'s processes and model until `stop` says so."""
        self._faults = faults
        self._target = target
        self._stop = stop
        self._done = threading.Event()
        self._thread: threading.Thread | None = None
        #: Wall times at which each fault began and ended, and what was done; appended by the thread only.
        self._played: list[tuple[PlannedFault, float, float, str]] = []
        self._origin = 0.0

    def start(self, origin: Callable[[], float | None]) -> None:
        """Waits for the load's second 0, which `origin` tells once it is known, and plays."""
        self._thread = threading.Thread(target=self._run, args=(origin,), name="loadtest-faults", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Ends the play and mends what is broken."""
        self._done.set()
        if self._thread is not None:
            self._thread.join(10.0)

    def _run(self, origin: Callable[[], float | None]) -> None:
        while not (begun := origin()):
            if self._done.wait(0.05):
                return
        self._origin = begun
        for fault in self._faults:
            if self._wait_until(begun + fault.at_s):
                return
            what = self._begin(fault)
            # Only now: to find the process to kill may take a second on a busy machine.
            began = time.time()
            self._wait_until(began + fault.for_s)
            self._end(fault)
            self._played.append((fault, began, time.time(), what))

    def _wait_until(self, at: float) -> bool:
        return self._done.wait(max(0.0, at - time.time())) or self._stop()

    def _begin(self, fault: PlannedFault) -> str:
        if fault.kind in _KILLS:
            return self._kill(fault.kind)
        if self._target.simulator is None:
            return f"{_NOT_PLAYED}the model is not the simulator"
        self._target.simulator.configure({"default": _BEHAVIOURS[fault.kind], "directives": False})
        return f"the model: {fault.kind}"

    def _end(self, fault: PlannedFault) -> None:
        if fault.kind in _BEHAVIOURS and self._target.simulator is not None and self._target.simulator.alive:
            self._target.simulator.configure({"directives": True})

    def _kill(self, kind: str) -> str:
        """Kills the process that serves (its warden starts another), or a session's that is at work."""
        pid = self._target.pid
        if pid is None:
            return f"{_NOT_PLAYED}the service's processes are elsewhere"
        if kind == "kill_worker":
            victim = listening_process(tree_of(pid), urlsplit(self._target.url).port)
        else:
            victim = self._session_at_work(pid)
        if victim is None:
            return _NOT_PLAYED + ("nothing listens" if kind == "kill_worker" else "there is no session process")
        try:
            victim.kill()
        except psutil.Error:
            return f"{_NOT_PLAYED}the process was gone"
        return f"killed process {victim.pid}"

    def _session_at_work(self, pid: int) -> psutil.Process | None:
        """One that talks to the model, waited for a little; else the youngest, if there is any."""
        deadline = time.monotonic() + _AT_WORK_S_MAX
        while True:
            sessions = session_processes(tree_of(pid))
            model = self._target.simulator.port if self._target.simulator is not None else None
            busy = next((process for process in reversed(sessions) if talks_to(process, model)), None)
            if busy is not None or time.monotonic() > deadline or self._done.wait(0.02):
                return busy or next(reversed(sessions), None)

    def findings(self, samples: Sequence[TurnSample], rows: Sequence[ServerRow]) -> list[dict[str, Any]]:
        """Each fault with how the turns in `samples` met it, its recovery, and what it left in the service's `rows`.

        Those whose time never came say so.
        """
        found = [self._finding(*played, samples, rows) for played in self._played]
        return found + [_never_played(fault) for fault in self._faults[len(found) :]]

    def _finding(
        self,
        fault: PlannedFault,
        began: float,
        ended: float,
        what: str,
        samples: Sequence[TurnSample],
        rows: Sequence[ServerRow],
    ) -> dict[str, Any]:
        start_s, end_s = began - self._origin, ended - self._origin
        played = not what.startswith(_NOT_PLAYED)
        # A process dies at once; a model is well again when the fault ends.
        over_s = start_s if fault.kind in _KILLS else end_s
        met = [s for s in samples if s.sent_s < end_s and s.ended_s > start_s] if played else []
        healed = [s.ended_s for s in samples if s.sent_s >= over_s and s.status is Status.ANSWERED] if played else []
        before = [row for row in rows if row.at < began]
        after = [row for row in rows if row.at > ended + _LEFTOVER_S]
        return {
            "kind": fault.kind,
            "at_s": round(start_s, 2),
            "for_s": round(end_s - start_s, 2),
            "played": played,
            "done": what,
            "turns_met": len(met),
            "outcomes": dict(sorted(Counter(s.outcome for s in met).items())),
            "recovery_s": round(min(healed) - over_s, 3) if healed else None,
            "left_behind": {name: _growth(before, after, name) for name in _LEFT_BEHIND},
        }


def _never_played(fault: PlannedFault) -> dict[str, Any]:
    return {
        "kind": fault.kind,
        "at_s": fault.at_s,
        "for_s": fault.for_s,
        "played": False,
        "done": f"{_NOT_PLAYED}the load had ended",
        "turns_met": 0,
        "outcomes": {},
        "recovery_s": None,
        "left_behind": dict.fromkeys(_LEFT_BEHIND),
    }


def _growth(before: Sequence[ServerRow], after: Sequence[ServerRow], name: str) -> int | None:
    """How much a count is higher at its lowest after the fault than at its highest before; None: not seen."""
    highest = max((v for row in before if (v := getattr(row, name)) is not None), default=None)
    lowest = min((v for row in after if (v := getattr(row, name)) is not None), default=None)
    return None if highest is None or lowest is None else max(0, lowest - highest)
