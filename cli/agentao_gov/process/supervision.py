"""How a service gets a warden above itself and beats its heart for it, and how a session's tools yield to turns."""

from __future__ import annotations

import contextlib
import faulthandler
import os
import signal
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from agentao_gov.process import procfs
from agentao_gov.process import warden as warden_program
from agentao_gov.process.warden.tree_limits import TOOL_NICE, lower, lower_session

if TYPE_CHECKING:
    from typing import NoReturn

#: A guarded service that ends with this code is started again.
RESTART_EXIT = warden_program.RESTART_EXIT
_WARDENS = ("gov-warden", "gov-init")
_HEARTBEAT_FD = "AGENTAO_GOV_HEARTBEAT_FD"
_RESTARTS = "AGENTAO_GOV_RESTARTS"
#: Thirty beats fit into the default patience of 30 s: one lost to a busy machine means nothing.
BEAT_S = 1.0


@dataclass(frozen=True, slots=True)
class WardenPlan:
    """What the wardens above a service do."""

    #: Without a beat for this long the service counts as hung: stacks dumped, killed, restarted.
    stale_s: float = 30.0
    #: From the dump (SIGABRT) to SIGKILL.
    dump_s: float = 2.0
    #: How often a service that hung or crashed is started again at once.
    restarts: int = 3
    #: One of them is given back for so long a time of service: three crashes in a month are no reason to stay down.
    restart_every_s: float = 600.0
    #: Past them a service that had come up is started again after this; one that does not come up is given up.
    restart_pause_s: float = 60.0
    heartbeat: bool = True

    def command(self, argv: Sequence[str]) -> list[str]:
        """The command line that runs `argv` below a pair of wardens."""
        options = ["--pair", "--restarts", str(self.restarts), "--grace-s", "0"]
        options += ["--restart-every-s", str(self.restart_every_s), "--restart-pause-s", str(self.restart_pause_s)]
        if self.heartbeat:
            options += ["--heartbeat", "--stale-s", str(self.stale_s), "--dump-s", str(self.dump_s)]
        return [sys.executable, "-I", "-S", warden_program.PROGRAM, *options, "--", *argv]


def is_guarded() -> bool:
    """Whether a warden is right above this process. Told by the parent's name: a variable would be inherited."""
    parent = procfs.read_stat(os.getppid())
    return parent is not None and parent.comm in _WARDENS


def run_below_warden(argv: Sequence[str], plan: WardenPlan | None = None) -> NoReturn:
    """Replaces this process by a pair of wardens that run `argv`, which must find `is_guarded()` true and go on.

    The pid stays the one the user knows: signals to it are passed on once each, and its exit code is the service's.
    """
    command = (plan or WardenPlan()).command(argv)
    sys.stdout.flush()
    sys.stderr.flush()
    os.execv(command[0], command)  # noqa: S606


class Heartbeat:
    """Tells the warden once a second that this interpreter still runs Python code. Does nothing without a warden.

    A thread is the right witness: it needs the interpreter lock to beat, and a call that holds the lock stops it.
    """

    def __init__(self) -> None:
        fd = os.environ.pop(_HEARTBEAT_FD, None)
        #: How often the warden has started this service again.
        self.restarts = int(os.environ.pop(_RESTARTS, "0"))
        #: The pipe to the warden; -1: none. Owned by the beating thread once started.
        self._fd = int(fd) if fd is not None else -1
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        if self._fd >= 0:
            os.set_inheritable(self._fd, False)

    @property
    def watched(self) -> bool:
        """Whether a warden listens."""
        return self._fd >= 0

    def start(self) -> None:
        """Begins to beat; from now on silence is taken for a hang. SIGABRT prints all stacks to standard error."""
        if self.watched and self._thread is None:
            faulthandler.enable(all_threads=True)
            self._thread = threading.Thread(target=self._run, name="gov-heartbeat", daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """Ends the watch in order: what follows may take as long as it needs."""
        if self._thread is not None:
            self._stop.set()
            self._thread.join()
            self._thread = None

    def _run(self) -> None:
        try:
            while not self._stop.is_set():
                os.write(self._fd, b".")
                self._stop.wait(BEAT_S)
        except OSError:  # the warden is gone; its death ends this process by other means
            pass
        finally:
            os.close(self._fd)
            self._fd = -1


#: Whether this process is a session's own; set once, before its first session.
_yields = False


def let_tools_yield() -> None:
    """Says that this process hosts one session, below a warden: there tools have a tenth of a turn's weight.

    A session that spins or forks without end then costs its neighbours nothing that they would notice
    (`benchmarks/isolation`). In a service that hosts sessions itself nothing yields: a thread that is rarely let run
    may hold the interpreter lock meanwhile, and all other sessions would wait for it.
    """
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
