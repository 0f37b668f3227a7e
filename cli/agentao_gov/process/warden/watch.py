"""One warden at work: it starts the child, watches until it ends, and leaves nothing behind."""

from __future__ import annotations

import errno
import os
import select
import signal
import time

from .processes import kill_everything
from .system import (
    PR_SET_CHILD_SUBREAPER,
    PR_SET_DUMPABLE,
    die_with_parent,
    join_cgroup,
    mount_proc,
    name_process,
    prctl,
    unshare_pids,
)
from .tree_limits import Look

# Typing costs a third of the start time of this program, and annotations are never evaluated.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import NoReturn

#: Ends with this code ask for a restart (EX_TEMPFAIL), e.g. when too many turns are stuck.
RESTART_EXIT = 75


class Options:
    """What one warden does. Zero and -1 mean off."""

    def __init__(
        self,
        *,
        lifeline: int = -1,
        status: int = -1,
        heartbeat: bool = False,
        stale_s: float = 30.0,
        dump_s: float = 2.0,
        restarts: int = 0,
        restart_every_s: float = 600.0,
        restart_pause_s: float = 60.0,
        grace_s: float = 0.3,
        memory_bytes: int = 0,
        processes: int = 0,
        name: str = "gov-warden",
        leash: bool = True,
        cgroup: str = "",
    ) -> None:
        self.lifeline = lifeline
        self.status = status
        self.heartbeat = heartbeat
        self.stale_s = stale_s
        self.dump_s = dump_s
        #: How often a child that crashed or hung is started again at once.
        self.restarts = restarts
        #: One restart is given back for so many seconds that the child lived.
        self.restart_every_s = restart_every_s
        #: With no restart left a child that had come up is started again after so many seconds (0: it is given up, as
        #: one that had not). Whoever can end a service five times must not keep it down for good.
        self.restart_pause_s = restart_pause_s
        self.grace_s = grace_s
        self.memory_bytes = memory_bytes
        self.processes = processes
        self.name = name
        #: SIGKILL for the child when the warden dies. Not between the two of a pair: the inner one must live to kill.
        self.leash = leash
        #: Directory of a control group to live in, with everything below.
        self.cgroup = cgroup
        #: Descriptors only the child needs, closed in the warden after the fork.
        self.closes: tuple[int, ...] = ()


_FORWARDED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)
#: The child says by it that it started something. Harmless to a parent that is no warden: its default is nothing.
_STARTED = signal.SIGWINCH
#: A watched service beats once a second. Waiting no longer than that shows how long this process did not run itself.
_WATCH_S_MAX = 1.0
#: Woken this much too late, it did not run: frozen with the service, as a paused container is.
_PAUSED_S = 0.5
#: Before a restart: a service that dies at once must not spin.
_BREATH_S = 1.0
_ENDING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)
#: Tells the child how often it was started again.
_RESTARTS_VARIABLE = "AGENTAO_GOV_RESTARTS"


class Warden:
    """Watches one child. `run` returns the child's wait status, with nothing left alive below."""

    def __init__(self, child_main: Callable[[int], NoReturn], options: Options) -> None:
        self._main = child_main
        self._options = options
        self._signals: list[int] = []
        #: Signals with a handler here; the child begins without it.
        self._heard: list[int] = []
        self._child = 0
        self._wait_status: int | None = None
        #: Whether somebody asked for the end: then a death is no crash, and nothing is restarted.
        self._ending = False
        self._beat_fd = -1
        #: Monotonic time of the last beat; None before the first, so that a slow start is not stale.
        self._last_beat: float | None = None
        #: Monotonic time at which the last wait ended.
        self._awake_at = time.monotonic()
        self._kill_at = float("inf")
        self._look = Look(options.memory_bytes, options.processes)
        self._hung = False
        #: Whether the child has ever beaten its heart, and when it began.
        self._came_up = False
        self._began_at = 0.0
        #: Restarts so far, and those that may follow at once.
        self._restarted = 0
        self._left = options.restarts

    @property
    def ending(self) -> bool:
        """Whether an end was asked for."""
        return self._ending

    def run(self) -> int:
        """Starts the child, restarting it as often as allowed, and returns its last wait status."""
        name_process(self._options.name)
        prctl(PR_SET_CHILD_SUBREAPER, 1)
        join_cgroup(self._options.cgroup)
        wake_r, wake_w = os.pipe()
        os.set_blocking(wake_w, False)
        os.set_blocking(wake_r, False)
        signal.set_wakeup_fd(wake_w, warn_on_full_buffer=False)
        # Under `nohup` the end of the terminal is to be nobody's business, the child's neither.
        deaf = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
        self._heard = [n for n in (*_FORWARDED, _STARTED, signal.SIGCHLD) if not (deaf and n == signal.SIGHUP)]
        for signum in self._heard:
            signal.signal(signum, lambda number, _frame: self._signals.append(number))
        while True:
            self._start(wake_r, wake_w)
            self._watch(wake_r)
            killed = kill_everything()
            status = self._wait_status
            assert status is not None
            self._say(f"killed {killed}")
            pause_s = self._pause_before_restart(status)
            if pause_s is None:
                self._say(f"exit {os.waitstatus_to_exitcode(status)}")
                return status
            self._say(f"restart {os.waitstatus_to_exitcode(status)}")
            told = self._told_to_end_within(pause_s, wake_r)
            if told is not None:
                self._say(f"exit -{told}")
                return told
            self._restarted += 1

    def _pause_before_restart(self, status: int) -> float | None:
        """Seconds after which the child is started again; None: it is not. Writes the death to standard error."""
        options = self._options
        crashed = os.WIFSIGNALED(status) or os.waitstatus_to_exitcode(status) == RESTART_EXIT
        if self._ending or options.restarts <= 0 or not (crashed or self._hung):
            return None
        given_back = int((time.monotonic() - self._began_at) / options.restart_every_s)
        self._left = min(options.restarts, self._left + given_back)
        pause_s: float | None = None
        if self._left > 0:
            self._left -= 1
            pause_s = _BREATH_S
        elif self._came_up and options.restart_pause_s > 0:
            pause_s = options.restart_pause_s
        _write_death(os.waitstatus_to_exitcode(status), self._hung, self._left, pause_s)
        return pause_s

    def _told_to_end_within(self, pause_s: float, wake_r: int) -> int | None:
        """Waits; the signal that asked for the end meanwhile, SIGTERM where the owner died, else None."""
        poll = select.poll()
        for fd in (wake_r, self._options.lifeline):
            if fd >= 0:
                poll.register(fd, select.POLLIN)
        until = time.monotonic() + pause_s
        while (left_s := until - time.monotonic()) > 0:
            ready = poll.poll(left_s * 1000)
            if any(fd == self._options.lifeline for fd, _ in ready):
                self._ending = True
                return signal.SIGTERM
            if ready:
                os.read(wake_r, 512)
            asked = next((signum for signum in self._signals if signum in _ENDING), None)
            if asked is not None:
                self._ending = True
                return asked
        return None

    def _say(self, line: str) -> None:
        if self._options.status >= 0:
            try:
                os.write(self._options.status, line.encode() + b"\n")
            except OSError:
                self._options.status = -1

    def _start(self, *warden_fds: int) -> None:
        self._wait_status, self._hung, self._kill_at, self._last_beat = None, False, float("inf"), None
        self._came_up, self._began_at = False, time.monotonic()
        beat_w = -1
        if self._options.heartbeat:
            self._beat_fd, beat_w = os.pipe()
            os.set_blocking(self._beat_fd, False)
        me = os.getpid()
        self._child = os.fork()
        if self._child == 0:
            signal.set_wakeup_fd(-1)
            for signum in self._heard:
                signal.signal(signum, signal.SIG_DFL)
            if self._options.leash:
                die_with_parent(me)
            for fd in (*warden_fds, self._options.lifeline, self._options.status, self._beat_fd):
                if fd >= 0:
                    os.close(fd)
            if self._options.restarts > 0:
                os.environ[_RESTARTS_VARIABLE] = str(self._restarted)
            self._main(beat_w)
        if beat_w >= 0:
            os.close(beat_w)
        for fd in self._options.closes:
            os.close(fd)
        self._options.closes = ()
        if self._options.restarts == 0:
            # Else the other end would not see end-of-file when the child closes its side of the wire.
            null = os.open(os.devnull, os.O_RDWR)
            os.dup2(null, 0)
            os.dup2(null, 1)
            os.close(null)
        self._say(f"pid {self._child}")

    def _watch(self, wake_r: int) -> None:
        """Until the child is reaped."""
        poll = select.poll()
        poll.register(wake_r, select.POLLIN)
        for fd in (self._options.lifeline, self._beat_fd):
            if fd >= 0:
                poll.register(fd, select.POLLIN)
        while self._wait_status is None:
            ready = self._wait(poll)
            for fd, _ in ready:
                if fd == self._beat_fd:
                    self._beat(poll)
                elif fd == self._options.lifeline:
                    if not os.read(fd, 1):
                        poll.unregister(fd)
                        self._end(self._options.grace_s)
                    else:  # a byte on the line: the owner wants the end now
                        self._end(0.0)
                else:
                    os.read(wake_r, 512)
            self._handle_signals()
            # As of the wait's end: a pause since then shows at the end of the next one.
            self._check(self._awake_at)
        if self._beat_fd >= 0:
            os.close(self._beat_fd)
            self._beat_fd = -1

    def _wait(self, poll: select.poll) -> list[tuple[int, int]]:
        """Until something happens or is due. Silence counts only while this process ran to hear it."""
        timeout_ms, began = self._timeout_ms(), self._awake_at
        ready = poll.poll(timeout_ms)
        self._awake_at = time.monotonic()
        if self._last_beat is not None and timeout_ms is not None:
            # From the end of the wait before: a process is stopped anywhere, not only where it waits.
            away_s = self._awake_at - began
            if away_s - timeout_ms / 1000 > _PAUSED_S:
                self._last_beat += away_s  # nobody knows how much of it was spent hearing
        return ready

    def _timeout_ms(self) -> int | None:
        """Until the next thing that is due."""
        due = min(self._kill_at, self._look.due)
        if self._last_beat is not None and not self._hung:
            due = min(due, self._last_beat + self._options.stale_s, time.monotonic() + _WATCH_S_MAX)
        return None if due == float("inf") else max(1, int((due - time.monotonic()) * 1000) + 1)

    def _beat(self, poll: select.poll) -> None:
        if os.read(self._beat_fd, 4096):
            self._last_beat, self._came_up = time.monotonic(), True
        else:  # closed in order: the service is on its way out, the watch over it ends
            poll.unregister(self._beat_fd)
            self._last_beat = None

    def _handle_signals(self) -> None:
        pending, self._signals[:] = self._signals[:], []
        for signum in pending:
            if signum == _STARTED:
                self._look.soon(time.monotonic())
            elif signum != signal.SIGCHLD:
                self._ending |= signum in _ENDING
                self._signal_child(signum)
        while self._wait_status is None:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if not pid:
                return
            if pid == self._child:
                self._wait_status = status

    def _signal_child(self, signum: int) -> None:
        if self._wait_status is None:  # not reaped yet, so the pid is still this child's
            os.kill(self._child, signum)

    def _end(self, grace_s: float) -> None:
        """The owner died or wants the end: ask, wait the grace, kill."""
        self._ending = True
        if grace_s > 0:
            self._signal_child(signal.SIGTERM)
        self._kill_at = min(self._kill_at, time.monotonic() + grace_s)

    def _check(self, now: float) -> None:
        if self._wait_status is not None:
            return
        if now >= self._kill_at:
            self._kill_at = float("inf")
            self._signal_child(signal.SIGKILL)
        stale = self._last_beat is not None and now - self._last_beat >= self._options.stale_s
        if stale and not self._hung:
            self._hung = True
            self._say(f"stale {self._options.stale_s}")
            self._signal_child(signal.SIGABRT)
            self._kill_at = now + self._options.dump_s
        if now >= self._look.due:
            struck = self._look.take(now, self._child)
            if struck is not None:
                name, observed, allowed = struck
                self._say(f"limit {name} {observed} {allowed}")
                self._ending = True
                self._signal_child(signal.SIGKILL)


def _write_death(code: int, hung: bool, left: int, pause_s: float | None) -> None:
    """One line on standard error, as the service's own log writes them: JSON, or plain on a terminal."""
    how = f"killed by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"
    what = "hung" if hung else "asked to be replaced" if code == RESTART_EXIT else "died"
    then = "not started again" if pause_s is None else f"started again in {pause_s:g} s"
    if os.isatty(2):
        line = f"{time.strftime('%H:%M:%S')} error   service {what} how={how!r} restarts_left={left} then={then!r}"
    else:
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S+00:00", time.gmtime())
        line = (
            f'{{"time": "{stamp}", "level": "error", "logger": "agentao_gov.warden", "event": "service {what}", '
            f'"how": "{how}", "restarts_left": {left}, "then": "{then}"}}'
        )
    try:
        os.write(2, line.encode() + b"\n")
    except OSError:  # nobody reads it any more
        return


def end_like(status: int, *, told: bool = False) -> NoReturn:
    """Ends this process the way the child did: same exit code, or the same signal. `told`: it was told to end."""
    code = os.waitstatus_to_exitcode(status)
    prctl(PR_SET_DUMPABLE, 0)  # its death is worth a core dump, not ours
    if told and code in (-signal.SIGTERM, -signal.SIGINT):
        # It was passed on before the service had its handlers: the orderly codes, 143 and 130, all the same.
        os._exit(128 - code)
    if code < 0:
        signal.signal(-code, signal.SIG_DFL) if -code not in (signal.SIGKILL, signal.SIGSTOP) else None
        os.kill(os.getpid(), -code)
        time.sleep(0.05)  # as pid 1 of a namespace one cannot be killed by oneself
        code = 128 - code
    os._exit(code)


def supervise(child_main: Callable[[int], NoReturn], options: Options) -> NoReturn:
    """Runs `child_main(heartbeat_fd)` in a fork below a warden, in this process; never returns."""
    warden = Warden(child_main, options)
    status = warden.run()
    end_like(status, told=warden.ending)


def supervise_pair(child_main: Callable[[int], NoReturn], options: Options, *, pid_namespace: bool) -> NoReturn:
    """Two wardens, each ending the tree when the other dies: even SIGKILL of one of them leaves nothing behind.

    The inner one is init of a pid namespace if asked.
    """
    line_r, line_w = os.pipe()
    if pid_namespace and not unshare_pids():
        raise OSError(errno.EPERM, "no pid namespace; ask pid_namespace_works() first")

    def inner(_beat: int) -> NoReturn:
        os.close(line_w)
        os.setsid()  # a Ctrl-C reaches the outer warden alone and is passed on once: each signal is one rung
        if pid_namespace and not mount_proc():
            os._exit(71)
        options.lifeline, options.name = line_r, "gov-init"
        supervise(child_main, options)

    outer = Options(lifeline=options.lifeline, grace_s=options.grace_s + 0.1, name=options.name, leash=False)
    outer.cgroup, options.cgroup = options.cgroup, ""
    # The outer one says nothing but keeps the status pipe open: its end-of-file means that nothing at all is left.
    outer.closes = options.closes
    supervise(inner, outer)
