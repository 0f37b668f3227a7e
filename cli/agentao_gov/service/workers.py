"""`--workers N`: uvicorn's own worker processes over one socket, one ledger and one session archive.

The parent serves nothing. It passes each signal on once to each worker, whose own ladder it begins or steps, replaces
one that died or hung, and ends when they have ended.
"""

from __future__ import annotations

import contextlib
import faulthandler
import functools
import logging
import os
import signal
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection
from typing import Any

import uvicorn
from uvicorn.supervisors.multiprocess import Multiprocess, Process

from agentao_gov.monitor.logs import log_event
from agentao_gov.process import ORPHANS_KILLED, Owner, child_env, session_tag, sweep
from agentao_gov.process.supervision import BEAT_S, WardenPlan
from agentao_gov.service.server import ending_signals

#: Runs one worker on the listening socket and returns its exit code: `(settings, worker, started, listener)`.
WorkerMain = Callable[[Mapping[str, Any], int, Callable[[], None], socket.socket], int]

#: Restarts of workers that died, per minute of life: a worker that cannot start must not be forked for ever.
_RESTARTS_PER_MINUTE = 10
#: Before its first answer a worker has so many times the patience: it answers only when all is imported, which many
#: workers on few cores do at once. One that never gets there is ended in the end, and replaced.
_START_FACTOR = 10


class WorkerWatch:
    """Asks one worker for signs of life, and ends it when none come. Used by the parent's main thread alone.

    The warden above `serve` hears the parent alone, which serves nothing and never hangs. A worker whose interpreter
    lock is held by a C call cannot answer its parent, so the parent does for it what the warden does for a lone
    service.
    """

    def __init__(self, number: int, pid: int, line: Connection, now: float, plan: WardenPlan | None = None) -> None:
        """Begins at `now`, in monotonic seconds.

        `number`, `pid`: the worker's. `line`: where it answers each message with one. `plan`: how long it may be
        silent; None is the warden's own.
        """
        self._number = number
        self._pid = pid
        self._line = line
        self._plan = plan or WardenPlan()
        self._heard_at = self._asked_at = self._looked_at = now
        self._asked = False
        #: How long it may be silent.
        self._patience_s = self._plan.stale_s * _START_FACTOR
        #: When it was told to dump its stacks; None while it is well.
        self._told_at: float | None = None

    def look(self, now: float) -> None:
        """Asks, listens, and ends a worker that has been silent for too long. Call it often; it never waits."""
        if now - self._looked_at > BEAT_S:
            # This process did not run either, as in a paused container: nobody knows what it would have heard.
            self._heard_at += now - self._looked_at
        self._looked_at = now
        with contextlib.suppress(EOFError, OSError):  # it is dead: seen by its exit code
            self._exchange(now)
        if self._told_at is None and now - self._heard_at >= self._patience_s:
            self._told_at = now
            log_event("worker hung, ending it", logging.CRITICAL, worker=self._number, silent_s=self._patience_s)
            self._end(signal.SIGABRT)
        elif self._told_at is not None and now - self._told_at >= self._plan.dump_s:
            self._end(signal.SIGKILL)

    def _exchange(self, now: float) -> None:
        while self._line.poll(0):
            self._line.recv()
            self._heard_at, self._asked = now, False
            self._patience_s = self._plan.stale_s
        if not self._asked and now - self._asked_at >= BEAT_S:
            self._line.send(b"ping")
            self._asked, self._asked_at = True, now

    def _end(self, signum: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._pid, signum)


class _Worker(Process):
    """One worker process; `main` must be importable by name, because the process is spawned, not forked."""

    def __init__(
        self,
        config: uvicorn.Config,
        sockets: list[socket.socket],
        main: WorkerMain,
        settings: Any,
        number: int,
        orphans_killed: int,
    ) -> None:
        """`orphans_killed`: of its predecessor, for this one's metrics: the parent has none."""
        self._orphans_killed = orphans_killed
        self._main = main
        self._settings = settings
        self._number = number
        self._started = False
        super().__init__(config, sockets)

    def __getstate__(self) -> dict[str, Any]:
        """What goes into the new process: not the parent's end, or the worker would never see the parent go."""
        return {name: value for name, value in vars(self).items() if name not in ("parent_conn", "process")}

    def target(self, sockets: list[socket.socket] | None = None) -> None:
        """Runs in the worker."""
        # A Ctrl-C at the terminal reaches the whole foreground group; the parent alone passes it on, once.
        os.setpgid(0, 0)
        faulthandler.enable(all_threads=True)  # what a worker that hung was doing: it is ended with SIGABRT
        threading.Thread(target=self._answer_parent, name="worker-pong", daemon=True).start()
        assert sockets
        ORPHANS_KILLED.add(self._orphans_killed)
        code = self._main(self._settings, self._number, self._mark_started, sockets[0])
        os._exit(code)

    def _mark_started(self) -> None:
        self._started = True

    def _answer_parent(self) -> None:
        try:
            while True:
                self.child_conn.recv()
                self.child_conn.send(self._started)
        except (EOFError, OSError):
            # The parent is gone, however it went: nobody would ever end this worker.
            os.kill(os.getpid(), signal.SIGTERM)

    def send(self, signum: int) -> None:
        """Passes a signal on."""
        if self.pid is not None and self.exitcode is None:
            os.kill(self.pid, signum)


class _Supervisor(Multiprocess):
    """uvicorn's parent process, with the ladder's signals in place of its own."""

    def __init__(
        self, config: uvicorn.Config, listener: socket.socket, main: WorkerMain, settings: Mapping[str, Any]
    ) -> None:
        # Before uvicorn takes every signal that it knows.
        self._ending = ending_signals()
        super().__init__(config, [listener])
        self._main = main
        self._settings = settings
        self._signals: list[int] = []
        self._restarts: list[float] = []
        #: How often each worker was started again; the first tells of the service's own restarts, too.
        self._restarted = Counter({0: settings["restarts"]})
        #: By worker, for as long as it lives.
        self._watches: dict[int, WorkerWatch] = {}

    def _spawn(self, number: int, orphans_killed: int = 0) -> _Worker:
        settings = {**self._settings, "restarts": self._restarted[number]}
        worker = _Worker(self.config, self.sockets, self._main, settings, number, orphans_killed)
        worker.start()
        worker.child_conn.close()
        assert worker.pid is not None
        self._watches[number] = WorkerWatch(number, worker.pid, worker.parent_conn, time.monotonic())
        return worker

    def init_processes(self) -> None:
        """Starts all workers."""
        # What this process swept at its start is told by the first: the parent has no metrics.
        self.processes = [
            self._spawn(number, 0 if number else ORPHANS_KILLED.total) for number in range(self.processes_num)
        ]

    def run(self) -> None:
        """Until the last worker has ended."""
        self.init_processes()
        while any(worker.process.is_alive() for worker in self.processes):
            self.handle_signals()
            for number, worker in enumerate(self.processes):
                # Also on the way down: one that hangs would keep the others' end from being the service's.
                if worker.process.is_alive():
                    self._watches[number].look(time.monotonic())
            if not self._signals:
                self._replace_dead()
            time.sleep(0.05)
        self.join_all()

    @property
    def exit_code(self) -> int:
        """By the first signal; without one the workers' worst."""
        if self._signals:
            return 128 + self._signals[0]
        return max((worker.exitcode or 0 for worker in self.processes), default=0)

    def handle_signals(self) -> None:
        """Passes on what ends the service; the rest of uvicorn's signals have no meaning here."""
        while self.signal_queue:
            signum = self.signal_queue.pop(0)
            if signum not in self._ending:
                continue
            self._signals.append(signum)
            for worker in self.processes:
                assert isinstance(worker, _Worker)
                worker.send(signum)

    def _replace_dead(self) -> None:
        for number, worker in enumerate(self.processes):
            if worker.process.is_alive():
                continue
            worker.join()
            # At once: its successor, which sweeps too, takes seconds to get there.
            killed = sweep(functools.partial(_is, worker.pid)).killed
            log_event("worker died", logging.ERROR, worker=number, exit_code=worker.exitcode, orphans_killed=killed)
            now = time.monotonic()
            self._restarts = [at for at in self._restarts if now - at < 60] + [now]
            if len(self._restarts) > _RESTARTS_PER_MINUTE or worker.exitcode == 3:
                log_event("too many workers died, giving up", logging.CRITICAL)
                self._signals.append(signal.SIGTERM)
                for other in self.processes:
                    assert isinstance(other, _Worker)
                    other.send(signal.SIGTERM)
                return
            self._restarted[number] += 1
            self.processes[number] = self._spawn(number, killed)


def _is(pid: int | None, owner: Owner) -> bool:
    return owner.ref.pid == pid


def run_workers(main: WorkerMain, settings: Mapping[str, Any], listener: socket.socket, count: int) -> int:
    """Runs `count` workers until they have all ended; returns the exit code. Call on the main thread."""
    os.environ["PYTHONSAFEPATH"] = "1"  # -P for the spawned: nothing is imported from the directory this began in
    # Wardens end the workers with this process. Where wardens were killed, too, the next start finds them by this.
    os.environ.update(child_env(session_tag("", "worker")))
    config = uvicorn.Config("agentao_gov.service.app:create_app", workers=count, log_config=None)
    listener.set_inheritable(True)
    supervisor = _Supervisor(config, listener, main, settings)
    supervisor.run()
    return supervisor.exit_code
