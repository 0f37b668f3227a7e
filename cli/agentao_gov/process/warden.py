"""The warden: a small supervisor above a process, which ends the whole tree when either side dies.

Runs as `python -I -S warden.py [options] -- command...` and imports a few standard modules only, so that it stays
small (about 4 MiB of its own) and cannot fail with the thing it guards. The zygote calls `supervise` in a fork instead.

- *Lifeline*: a pipe whose write end only the owner holds. Its end-of-file means the owner died, however it died.
- *Sub-reaper*: whatever daemonises below becomes the warden's own child, so nothing escapes by double fork or by
  emptying its environment. Killing is race-free: direct children cannot have their pids reused before they are
  reaped here, and the tree is gone exactly when `waitpid` says that there are no children.
- *Heartbeat*: a service whose interpreter lock is held by a C call cannot beat; stale means SIGABRT (faulthandler
  dumps the stacks), then SIGKILL, then a restart where asked for.
- *Pair*: two wardens watch each other, so that even SIGKILL of the outer one leaves nothing behind.
"""

from __future__ import annotations

import ctypes
import errno
import os
import select
import signal
import sys
import time

# Typing costs a third of the start time of this program, and annotations are never evaluated.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import NoReturn

_LIBC = ctypes.CDLL(None, use_errno=True)
_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_SET_NAME, _PR_SET_CHILD_SUBREAPER = 1, 4, 15, 36
_CLONE_NEWNS, _CLONE_NEWUSER, _CLONE_NEWPID = 0x20000, 0x10000000, 0x20000000
_MS_NOSUID, _MS_NODEV, _MS_NOEXEC, _MS_REC, _MS_PRIVATE = 2, 4, 8, 0x4000, 0x40000

_FORWARDED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)
#: Ends with this code ask for a restart (EX_TEMPFAIL), e.g. when too many turns are stuck.
RESTART_EXIT = 75
#: A process in uninterruptible sleep cannot be killed; after this long the warden leaves it to the next reaper.
_KILL_S_MAX = 5.0
#: How often memory and process counts are looked at, and how often when they do not move.
_LOOK_S, _LOOK_QUIET_S = 0.1, 0.25


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
        self.restarts = restarts
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


def prctl(option: int, value: int | bytes) -> bool:
    """One prctl call; False where the system refuses."""
    return bool(_LIBC.prctl(option, value, 0, 0, 0) == 0)


def name_process(name: str) -> None:
    """The name `ps` shows, and the census reads."""
    prctl(_PR_SET_NAME, name.encode()[:15])


def _join(cgroup: str) -> None:
    """Moves this process into a control group; one more layer, never a condition."""
    if cgroup:
        try:
            with open(f"{cgroup}/cgroup.procs", "w") as file:  # noqa: PTH123
                file.write("0")
        except OSError:
            pass


def die_with_parent(parent: int) -> None:
    """SIGKILL for this process when its parent's *thread* ends: only right in a fork of a single-threaded parent."""
    prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before the call
        os._exit(137)


# -- the tree below ---------------------------------------------------------------------------------------------------


def _parents() -> dict[int, int]:
    """pid -> ppid of every living process."""
    found = {}
    for name in os.listdir("/proc"):  # noqa: PTH208 (pathlib is too large for this program)
        if name.isdigit():
            try:
                with open(f"/proc/{name}/stat", "rb") as file:  # noqa: PTH123
                    fields = file.read().rpartition(b") ")[2].split()
            except OSError:
                continue
            if fields and fields[0] not in (b"Z", b"X"):
                found[int(name)] = int(fields[1])
    return found


def _children_of(pid: int) -> list[int]:
    """Direct children, whichever thread started them. Raises OSError where the kernel does not list them."""
    found: list[int] = []
    try:
        threads = os.listdir(f"/proc/{pid}/task")  # noqa: PTH208
    except FileNotFoundError:
        return found
    for thread in threads:
        try:
            with open(f"/proc/{pid}/task/{thread}/children") as file:  # noqa: PTH123
                found += [int(child) for child in file.read().split()]
        except ProcessLookupError:
            continue
        except FileNotFoundError:
            if os.path.isdir(f"/proc/{pid}/task/{thread}"):  # noqa: PTH112
                raise  # a kernel without CONFIG_PROC_CHILDREN
    return found


def below() -> list[int]:
    """Every process below this one, zombies too. Reads this tree alone: 0.3 ms where a look at all takes 10."""
    try:
        found, frontier = [], [os.getpid()]
        while frontier:
            children = _children_of(frontier.pop())
            found += children
            frontier += children
    except OSError:
        return list(descendants())
    return found


def descendants() -> dict[int, int]:
    """pid -> ppid of every living process below this one."""
    parents = _parents()
    children: dict[int, list[int]] = {}
    for pid, ppid in parents.items():
        children.setdefault(ppid, []).append(pid)
    found: dict[int, int] = {}
    frontier = [os.getpid()]
    while frontier:
        for pid in children.get(frontier.pop(), ()):
            if pid not in found:
                found[pid] = parents[pid]
                frontier.append(pid)
    return found


def _children() -> list[int]:
    me = os.getpid()
    try:
        with open(f"/proc/{me}/task/{me}/children") as file:  # noqa: PTH123
            return [int(pid) for pid in file.read().split()]
    except OSError:  # a kernel without CONFIG_PROC_CHILDREN
        return [pid for pid, ppid in _parents().items() if ppid == me]


def _freeze() -> None:
    """Stops everything below until a look finds nothing new, so that a fork bomb stands still while it is killed."""
    stopped: set[int] = set()
    until = time.monotonic() + 1.0
    while time.monotonic() < until:
        fresh = [(pid, ppid) for pid, ppid in descendants().items() if pid not in stopped]
        if not fresh:
            return
        for pid, ppid in fresh:
            stopped.add(pid)
            _stop(pid, ppid)


def _stop(pid: int, ppid: int) -> None:
    """SIGSTOP through a descriptor, after a second look at the parent: the pid may have been reused meanwhile."""
    try:
        fd = os.pidfd_open(pid)
    except OSError:
        return
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:  # noqa: PTH123
            now = int(file.read().rpartition(b") ")[2].split()[1])
        if now in (ppid, os.getpid()):
            signal.pidfd_send_signal(fd, signal.SIGSTOP)
    except (OSError, IndexError):
        pass
    finally:
        os.close(fd)


def kill_everything() -> int:
    """Kills and reaps all that is below; returns how many were reaped. Only direct children are signalled."""
    reaped = 0
    until = time.monotonic() + _KILL_S_MAX
    _freeze()
    while time.monotonic() < until:
        for pid in _children():
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        while True:
            try:
                pid, _ = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return reaped
            if not pid:
                break
            reaped += 1
        time.sleep(0.0005)
    return reaped


def _resident(pid: int) -> int:
    try:
        with open(f"/proc/{pid}/statm", "rb") as file:  # noqa: PTH123
            return int(file.read().split()[1]) * 4096
    except (OSError, IndexError):
        return 0


def _proportional(pid: int) -> int:
    try:
        with open(f"/proc/{pid}/smaps_rollup", "rb") as file:  # noqa: PTH123
            for line in file:
                if line.startswith(b"Pss:"):
                    return int(line.split()[1]) * 1024
    except OSError:
        pass
    return 0


# -- one warden -------------------------------------------------------------------------------------------------------


class Warden:
    """Watches one child. `run` returns the child's wait status, with nothing left alive below."""

    def __init__(self, child_main: Callable[[int], NoReturn], options: Options) -> None:
        self._main = child_main
        self._options = options
        self._signals: list[int] = []
        self._child = 0
        self._wait_status: int | None = None
        #: Whether somebody asked for the end: then a death is no crash, and nothing is restarted.
        self._ending = False
        self._beat_fd = -1
        #: Monotonic time of the last beat; None before the first, so that a slow start is not stale.
        self._last_beat: float | None = None
        self._kill_at = float("inf")
        self._look_at = 0.0
        self._resident_last = 0
        self._hung = False

    @property
    def ending(self) -> bool:
        """Whether an end was asked for."""
        return self._ending

    def run(self) -> int:
        """Starts the child, restarting it as often as allowed, and returns its last wait status."""
        name_process(self._options.name)
        prctl(_PR_SET_CHILD_SUBREAPER, 1)
        _join(self._options.cgroup)
        wake_r, wake_w = os.pipe()
        os.set_blocking(wake_w, False)
        os.set_blocking(wake_r, False)
        signal.set_wakeup_fd(wake_w, warn_on_full_buffer=False)
        for signum in (*_FORWARDED, signal.SIGCHLD):
            signal.signal(signum, lambda number, _frame: self._signals.append(number))
        left = self._options.restarts
        while True:
            self._start(wake_r, wake_w)
            self._watch(wake_r)
            killed = kill_everything()
            status = self._wait_status
            assert status is not None
            crashed = os.WIFSIGNALED(status) or os.waitstatus_to_exitcode(status) == RESTART_EXIT
            self._say(f"killed {killed}")
            if self._ending or left <= 0 or not (crashed or self._hung):
                self._say(f"exit {os.waitstatus_to_exitcode(status)}")
                return status
            left -= 1
            self._say(f"restart {os.waitstatus_to_exitcode(status)}")
            time.sleep(1.0)  # a service that dies at once must not spin

    def _say(self, line: str) -> None:
        if self._options.status >= 0:
            try:
                os.write(self._options.status, line.encode() + b"\n")
            except OSError:
                self._options.status = -1

    def _start(self, *warden_fds: int) -> None:
        self._wait_status, self._hung, self._kill_at, self._last_beat = None, False, float("inf"), None
        beat_w = -1
        if self._options.heartbeat:
            self._beat_fd, beat_w = os.pipe()
            os.set_blocking(self._beat_fd, False)
        me = os.getpid()
        self._child = os.fork()
        if self._child == 0:
            signal.set_wakeup_fd(-1)
            for signum in (*_FORWARDED, signal.SIGCHLD):
                signal.signal(signum, signal.SIG_DFL)
            if self._options.leash:
                die_with_parent(me)
            for fd in (*warden_fds, self._options.lifeline, self._options.status, self._beat_fd):
                if fd >= 0:
                    os.close(fd)
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
            ready = poll.poll(self._timeout_ms())
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
            self._check(time.monotonic())
        if self._beat_fd >= 0:
            os.close(self._beat_fd)
            self._beat_fd = -1

    def _timeout_ms(self) -> int | None:
        """Until the next thing that is due."""
        due = self._kill_at
        if self._last_beat is not None and not self._hung:
            due = min(due, self._last_beat + self._options.stale_s)
        if self._options.memory_bytes or self._options.processes:
            due = min(due, self._look_at)
        return None if due == float("inf") else max(1, int((due - time.monotonic()) * 1000) + 1)

    def _beat(self, poll: select.poll) -> None:
        if os.read(self._beat_fd, 4096):
            self._last_beat = time.monotonic()
        else:  # closed in order: the service is on its way out, the watch over it ends
            poll.unregister(self._beat_fd)
            self._last_beat = None

    def _handle_signals(self) -> None:
        pending, self._signals[:] = self._signals[:], []
        for signum in pending:
            if signum != signal.SIGCHLD:
                self._ending |= signum in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)
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
        if (self._options.memory_bytes or self._options.processes) and now >= self._look_at:
            self._look(now)

    def _look(self, now: float) -> None:
        """The limits no rlimit can hold for a whole tree: memory, and processes."""
        tree = below()
        resident = sum(map(_resident, tree))
        moved = abs(resident - self._resident_last) > 4 << 20
        self._resident_last = resident
        self._look_at = now + (_LOOK_S if moved or resident * 2 > self._options.memory_bytes > 0 else _LOOK_QUIET_S)
        if 0 < self._options.processes < len(tree):
            self._strike("session_processes", len(tree), self._options.processes)
        elif 0 < self._options.memory_bytes < resident:
            # Resident counts pages shared with the zygote in every process; the fair share costs a millisecond.
            share = sum(map(_proportional, tree))
            if share > self._options.memory_bytes:
                self._strike("session_memory", share, self._options.memory_bytes)

    def _strike(self, limit: str, observed: int, allowed: int) -> None:
        self._say(f"limit {limit} {observed} {allowed}")
        self._ending = True
        self._signal_child(signal.SIGKILL)


def end_like(status: int, *, told: bool = False) -> NoReturn:
    """Ends this process the way the child did: same exit code, or the same signal. `told`: it was told to end."""
    code = os.waitstatus_to_exitcode(status)
    prctl(_PR_SET_DUMPABLE, 0)  # its death is worth a core dump, not ours
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


# -- pairs and namespaces ---------------------------------------------------------------------------------------------


def _unshare_pids() -> bool:
    """A pid namespace for the next fork; with a user namespace where that is what it takes."""
    if _LIBC.unshare(_CLONE_NEWPID) == 0:
        return True
    uid, gid = os.geteuid(), os.getegid()
    if _LIBC.unshare(_CLONE_NEWUSER | _CLONE_NEWPID) != 0:
        return False
    try:
        for name, text in (("setgroups", "deny"), ("uid_map", f"{uid} {uid} 1"), ("gid_map", f"{gid} {gid} 1")):
            with open(f"/proc/self/{name}", "w") as file:  # noqa: PTH123
                file.write(text)
    except OSError:
        return False
    return True


def _mount_proc() -> bool:
    """A `/proc` of the new pid namespace; without it pids would be read in one namespace and used in another."""
    if _LIBC.unshare(_CLONE_NEWNS) != 0 or _LIBC.mount(None, b"/", None, _MS_REC | _MS_PRIVATE, None) != 0:
        return False
    flags = _MS_NOSUID | _MS_NODEV | _MS_NOEXEC
    return bool(_LIBC.mount(b"proc", b"/proc", b"proc", flags, None) == 0)


def pid_namespace_works() -> bool:
    """Tries it out in a fork: unshare, become pid 1, mount `/proc`."""
    pid = os.fork()
    if pid == 0:
        if not _unshare_pids():
            os._exit(1)
        inner = os.fork()
        if inner == 0:
            os._exit(0 if os.getpid() == 1 and _mount_proc() else 1)
        os._exit(os.waitstatus_to_exitcode(os.waitpid(inner, 0)[1]) & 1)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def supervise_pair(child_main: Callable[[int], NoReturn], options: Options, *, pid_namespace: bool) -> NoReturn:
    """Two wardens, each ending the tree when the other dies; the inner one is init of a pid namespace if asked."""
    line_r, line_w = os.pipe()
    if pid_namespace and not _unshare_pids():
        raise OSError(errno.EPERM, "no pid namespace; ask pid_namespace_works() first")

    def inner(_beat: int) -> NoReturn:
        os.close(line_w)
        os.setsid()  # a Ctrl-C reaches the outer warden alone and is passed on once: each signal is one rung
        if pid_namespace and not _mount_proc():
            os._exit(71)
        options.lifeline, options.name = line_r, "gov-init"
        supervise(child_main, options)

    outer = Options(lifeline=options.lifeline, grace_s=options.grace_s + 0.1, name=options.name, leash=False)
    outer.cgroup, options.cgroup = options.cgroup, ""
    # The outer one says nothing but keeps the status pipe open: its end-of-file means that nothing at all is left.
    outer.closes = options.closes
    supervise(inner, outer)


# -- command line -----------------------------------------------------------------------------------------------------


def _probe() -> NoReturn:
    """What this machine offers, one word a line: `layers` reads it."""
    print("subreaper" if prctl(_PR_SET_CHILD_SUBREAPER, 1) else "-")  # noqa: T201
    try:
        os.close(os.pidfd_open(os.getpid()))
        print("pidfd")  # noqa: T201
    except OSError:
        print("-")  # noqa: T201
    sys.stdout.flush()
    user = os.fork()
    if user == 0:
        os._exit(0 if _LIBC.unshare(_CLONE_NEWUSER) == 0 else 1)
    print("user_namespace" if os.waitpid(user, 0)[1] == 0 else "-")  # noqa: T201
    sys.stdout.flush()
    print("pid_namespace" if pid_namespace_works() else "-")  # noqa: T201
    sys.stdout.flush()
    os._exit(0)


def _parse(arguments: list[str]) -> tuple[Options, set[str], list[str]]:
    """`--name value` pairs and flags up to `--`; then the command."""
    options, flags = Options(), set()
    rest = iter(arguments)
    for word in rest:
        if word == "--":
            break
        name = word[2:].replace("-", "_")
        if name in ("pair", "pid_namespace", "probe"):
            flags.add(name)
        elif name == "heartbeat":
            options.heartbeat = True
        elif hasattr(options, name):
            kind = type(getattr(options, name))
            setattr(options, name, kind(next(rest)))
        else:
            sys.exit(f"warden: unknown option {word}")
    return options, flags, list(rest)


def main() -> NoReturn:
    """The program."""
    options, flags, command = _parse(sys.argv[1:])
    if "probe" in flags:
        _probe()
    for fd in (options.lifeline, options.status):
        if fd >= 0:
            os.set_inheritable(fd, False)

    def run(beat_fd: int) -> NoReturn:
        if beat_fd >= 0:
            os.set_inheritable(beat_fd, True)
            os.environ["AGENTAO_GOV_HEARTBEAT_FD"] = str(beat_fd)
        try:
            os.execvp(command[0], command)  # noqa: S606
        except OSError as error:
            os.write(2, f"warden: cannot run {command[0]}: {error}\n".encode())
            os._exit(127)

    if "pair" in flags or "pid_namespace" in flags:
        pid_namespace = "pid_namespace" in flags and pid_namespace_works()
        supervise_pair(run, options, pid_namespace=pid_namespace)
    supervise(run, options)


if __name__ == "__main__":
    main()
