"""Starts session processes below wardens: forked from the zygote, or cold with a tenant's own Python."""

from __future__ import annotations

import contextlib
import json
import os
import select
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from agentao_gov.clock import Deadline
from agentao_gov.errors import InternalError
from agentao_gov.process import procfs, warden
from agentao_gov.process.oslimits import OsLimits, SessionCgroup
from agentao_gov.process.procfs import ProcessRef
from agentao_gov.process.tree import ORPHANS_KILLED, kill_processes

#: What a session process is started with of the service's environment. Keys, tokens and everything else stay behind.
_KEPT = ("PATH", "LANG", "LC_ALL", "LC_CTYPE", "TZ", "SSL_CERT_FILE", "SSL_CERT_DIR", "NIX_SSL_CERT_FILE")
_PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY")
#: From the death of the owner to SIGKILL: a polite MCP server leaves in 0.25 s.
GRACE_S = 0.3
#: Importing everything takes a zygote two seconds, on a busy machine ten times that. A fork takes milliseconds.
_START_S_MAX = 60.0


@dataclass
class SessionProcess:
    """One running session process as its owner has it: the pipes that lead to it, and how it is ended."""

    #: The warden: root of the tree, for accounting and for the kill of last resort.
    root: ProcessRef
    wire: socket.socket
    #: Write end of the lifeline; closing it ends the tree, a byte on it ends it at once. -1: given up already.
    lifeline: int
    #: What the warden says: `limit ...`, `exit ...`; end-of-file: nothing of the tree is left.
    status: int
    #: Read end of its standard error, until somebody takes it over; -1: taken or closed.
    errors: int
    #: Its control group, where there is one.
    cgroup: SessionCgroup | None = None
    #: Whether the warden said at its end that it had ended everything below itself.
    ended_well: bool = False
    started_at: float = field(default_factory=time.monotonic)
    #: What to look at where it does not come up.
    hint: str | None = None
    _lock: threading.Lock = field(default_factory=threading.Lock)
    # Under `_lock`: how many wait for the status's end, and its descriptor once it was read and is to be closed.
    _watchers: int = 0
    _read: int = -1

    @property
    def alive(self) -> bool:
        """Whether its warden still runs."""
        return procfs.alive(self.root)

    def take_errors(self) -> int:
        """Hands over what it writes to its standard error; the caller closes it. Once."""
        with self._lock:
            fd, self.errors = self.errors, -1
        return fd

    def let_go(self) -> None:
        """Closes the lifeline, so that the warden ends what is still there after its grace, and untaken errors."""
        with self._lock:
            if self.lifeline >= 0:
                os.close(self.lifeline)
                self.lifeline = -1
        if (errors := self.take_errors()) >= 0:
            os.close(errors)

    def kill(self) -> None:
        """Ends the whole tree now; idempotent."""
        with self._lock:
            if self.lifeline >= 0:
                with contextlib.suppress(OSError):
                    os.write(self.lifeline, b"K")

    def wait_gone(self, within_s: float) -> bool:
        """Waits until nothing of the tree is left; if the warden itself hangs, kills by descent and by group."""
        gone = self._status_ended(within_s)
        if not gone:
            with contextlib.suppress(OSError):  # without a free descriptor nobody can be looked for
                gone = not kill_processes(roots=[self.root], within_s=1.0).survivors
        if self.cgroup is not None:
            gone &= self.cgroup.end()
        return gone

    def _status_ended(self, within_s: float) -> bool:
        with self._lock:
            if self.status < 0:
                return True
            # Whoever reads the exit meanwhile leaves it open: another could get its number. Not a duplicate,
            # because a process must be ended also where no descriptor is to be had.
            watched = self.status
            self._watchers += 1
        try:
            until = time.monotonic() + within_s
            poller = select.poll()
            poller.register(watched, select.POLLHUP)
            while (left := until - time.monotonic()) > 0:
                for _, event in poller.poll(left * 1000):
                    if event & select.POLLHUP:
                        return True
            return False
        finally:
            with self._lock:
                self._watchers -= 1
            self._close_read()

    def _close_read(self) -> None:
        """Closes what the exit was read from, once nobody watches it any more."""
        with self._lock:
            if self._watchers == 0 and self._read >= 0:
                os.close(self._read)
                self._read = -1

    def read_exit(self, within_s: float) -> tuple[int | None, str | None]:
        """The worker's exit code (negative: signal) and the limit that struck; call once, after the wire ended."""
        self._status_ended(within_s)
        with self._lock:
            if self.status < 0:
                return None, None
            fd, self.status = self.status, -1
        os.set_blocking(fd, False)
        text = b""
        with contextlib.suppress(BlockingIOError):
            while chunk := os.read(fd, 4096):
                text += chunk
        with self._lock:
            self._read = fd
        self._close_read()
        code, struck = None, self.cgroup.struck() if self.cgroup is not None else None
        for line in text.decode(errors="replace").splitlines():
            word, _, rest = line.partition(" ")
            if word == "exit":
                code, self.ended_well = int(rest), True
            elif word == "killed":
                ORPHANS_KILLED.add(int(rest))
            elif word == "limit":
                struck = rest
        return code, struck


def _pipe(undo: contextlib.ExitStack) -> tuple[int, int]:
    ends = os.pipe()
    for end in ends:
        undo.callback(os.close, end)
    return ends


@dataclass
class Ends:
    """Both ends of what connects owner and session process. Raises InternalError where no descriptor is to be had."""

    def __post_init__(self) -> None:
        with contextlib.ExitStack() as undo:
            try:
                self.ours, self.theirs = (undo.enter_context(end) for end in socket.socketpair())
                self.lifeline_r, self.lifeline_w = _pipe(undo)
                self.status_r, self.status_w = _pipe(undo)
                self.errors_r, self.errors_w = _pipe(undo)
            except OSError as error:
                raise InternalError(f"A session process could not be started: {error}.") from error
            undo.pop_all()

    @property
    def given(self) -> list[int]:
        return [self.theirs.fileno(), self.lifeline_r, self.status_w, self.errors_w]

    def close_theirs(self) -> None:
        self.theirs.close()
        os.close(self.lifeline_r)
        os.close(self.status_w)
        os.close(self.errors_w)

    def close_ours(self) -> None:
        self.ours.close()
        os.close(self.lifeline_w)
        os.close(self.status_r)
        os.close(self.errors_r)

    def process(self, pid: int, cgroup: SessionCgroup | None) -> SessionProcess:
        stat = procfs.read_stat(pid)
        root = stat.ref if stat is not None else ProcessRef(pid, -1)
        return SessionProcess(root, self.ours, self.lifeline_w, self.status_r, self.errors_r, cgroup)


def scrubbed_env(extra: Mapping[str, str]) -> dict[str, str]:
    """The environment a session process is started with."""
    env = {name: os.environ[name] for name in _KEPT if name in os.environ}
    # One arena: memory freed by one thread is used by the next, and resident memory stays near what is in use.
    env["MALLOC_ARENA_MAX"] = "2"
    env["PYTHONNOUSERSITE"] = "1"
    return {**env, **extra}


def proxies() -> dict[str, str]:
    """The way out of the network: behind a proxy no session would reach its model otherwise.

    Told over the wire, because an address may hold a password: what a process is started with can be read in `/proc` by
    each tool it starts. The agent's shell keeps such an address from its commands.
    """
    names = (*_PROXIES, *map(str.lower, _PROXIES))
    return {name: os.environ[name] for name in names if name in os.environ}


class ColdSpawner:
    """Starts a session process from nothing, with any Python that has the package installed: about a second."""

    def __init__(self, python: str | Path = sys.executable, *, pid_namespace: bool = False) -> None:
        self._python = str(python)
        self._pid_namespace = pid_namespace

    def spawn(self, env: Mapping[str, str], limits: OsLimits) -> SessionProcess:
        """Raises InternalError if the program cannot be started."""
        ends = Ends()
        options = ["--lifeline", str(ends.lifeline_r), "--status", str(ends.status_w), "--grace-s", str(GRACE_S)]
        memory_bytes, processes = limits.tree_limits()
        options += ["--memory-bytes", str(memory_bytes), "--processes", str(processes)]
        cgroup = SessionCgroup.create(limits)
        if cgroup is not None:
            options += ["--cgroup", str(cgroup.path)]
        if self._pid_namespace:
            options.append("--pid-namespace")
        command = [
            *(sys.executable, "-I", "-S", warden.PROGRAM, *options, "--"),
            *(self._python, "-P", "-m", "agentao_gov.worker.child", json.dumps(limits.to_wire())),
        ]
        try:
            child = subprocess.Popen(  # noqa: S603
                command,
                env=scrubbed_env(env),
                stdin=ends.theirs.fileno(),
                stdout=ends.theirs.fileno(),
                stderr=ends.errors_w,
                pass_fds=(ends.lifeline_r, ends.status_w),
                start_new_session=True,
            )
        except OSError as error:
            ends.close_ours()
            if cgroup is not None:
                cgroup.end()
            raise InternalError(f"A session process could not be started: {error}.") from error
        finally:
            ends.close_theirs()
        # Reaped by a thread of its own; its end is seen through the status pipe.
        threading.Thread(target=child.wait, name="gov-reap", daemon=True).start()
        process = ends.process(child.pid, cgroup)
        if self._python != sys.executable:
            process.hint = f"Try `{self._python} -c 'import agentao_gov.worker.child'`: it must be installed there."
        return process


class ZygoteSpawner:
    """Starts session processes by fork of a preloaded zygote: milliseconds each. Thread-safe.

    The zygote starts with the first spawn, or ahead of it with `start`, and again if it died.
    """

    def __init__(self, env: Mapping[str, str]) -> None:
        self._env = dict(env)
        self._lock = threading.Lock()
        #: Control socket of the running zygote; under `_lock`.
        self._control: socket.socket | None = None
        self._child: subprocess.Popen[bytes] | None = None
        #: Whether the zygote has said that it is ready; written under `_lock`, read without.
        self._up = False
        #: Set while somebody closes: a start in progress gives up.
        self._closing = threading.Event()

    def start(self, deadline: Deadline) -> None:
        """Makes sure that the zygote runs and is preloaded."""
        with self._lock:
            self._ensure(deadline)

    def spawn(self, limits: OsLimits, deadline: Deadline, *, pid_namespace: bool = False) -> SessionProcess:
        """Raises InternalError if the zygote cannot be started or refuses."""
        ends = Ends()
        cgroup = SessionCgroup.create(limits)
        order = {
            "limits": limits.to_wire(),
            "grace_s": GRACE_S,
            "pid_namespace": pid_namespace,
            "cgroup": str(cgroup.path) if cgroup is not None else "",
        }
        try:
            with self._lock:
                control = self._ensure(deadline)
                try:
                    socket.send_fds(control, [json.dumps(order).encode()], ends.given)
                    answer = self._receive(control, deadline)
                except OSError as error:
                    self._drop()
                    raise InternalError(f"The zygote of session processes is gone: {error}.") from error
        except BaseException:
            ends.close_theirs()
            ends.close_ours()
            if cgroup is not None:
                cgroup.end()
            raise
        ends.close_theirs()
        if "pid" not in answer:
            ends.close_ours()
            if cgroup is not None:
                cgroup.end()
            raise InternalError(f"A session process could not be forked: {answer.get('error')}.")
        return ends.process(int(answer["pid"]), cgroup)

    @property
    def ready(self) -> bool:
        """Whether a fork is to be had at once. Does not wait for a zygote that is being started."""
        child = self._child
        return self._up and child is not None and child.poll() is None

    def process_id(self) -> int | None:
        """The zygote's pid while it runs."""
        child = self._child
        return child.pid if child is not None and child.poll() is None else None

    def close(self) -> None:
        """Ends the zygote; running sessions have lifelines of their own. One that still starts is not waited for."""
        self._closing.set()
        with self._lock:
            self._drop()
            self._closing.clear()

    def _ensure(self, deadline: Deadline) -> socket.socket:
        if self._control is not None and self._child is not None and self._child.poll() is None:
            return self._control
        self._drop()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            self._child = self._launch(theirs)
        except OSError as error:
            ours.close()
            raise InternalError(f"The zygote of session processes could not be started: {error}.") from error
        finally:
            theirs.close()
        self._control = ours
        try:
            hello = self._hello(ours, deadline)
        except OSError as error:
            self._drop()
            raise InternalError(f"The zygote of session processes did not come up: {error}.") from error
        if hello.get("tasks") != 1:
            self._drop()
            raise InternalError(f"The zygote runs {hello.get('tasks')} threads; a fork of it could hang.")
        self._up = True
        return ours

    def _launch(self, control: socket.socket) -> subprocess.Popen[bytes]:
        return subprocess.Popen(  # noqa: S603
            [sys.executable, "-P", "-m", "agentao_gov.worker.zygote", str(control.fileno())],
            env=scrubbed_env(self._env),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            pass_fds=(control.fileno(),),
            start_new_session=True,
        )

    def _hello(self, control: socket.socket, deadline: Deadline) -> dict[str, Any]:
        """Waits for the zygote's first word; gives up at once when it is closed meanwhile."""
        until = time.monotonic() + min(deadline.remaining_s(), _START_S_MAX)
        poller = select.poll()
        poller.register(control, select.POLLIN)
        while not poller.poll(100):
            if self._closing.is_set():
                raise InterruptedError("it was closed while it started")
            if time.monotonic() >= until:
                raise TimeoutError("it took too long")
        return self._receive(control, deadline)

    @staticmethod
    def _receive(control: socket.socket, deadline: Deadline) -> dict[str, Any]:
        control.settimeout(max(0.1, min(deadline.remaining_s(), _START_S_MAX)))
        message = control.recv(65536)
        if not message:
            raise ConnectionResetError("it ended")
        answer = json.loads(message)
        assert isinstance(answer, dict)
        return answer

    def _drop(self) -> None:
        up, self._up = self._up, False
        if self._control is not None:
            self._control.close()
            self._control = None
        if self._child is not None:
            if not up:  # in the middle of its imports it would not see that the socket is closed
                self._child.kill()
            try:
                self._child.wait(1.0)
            except subprocess.TimeoutExpired:
                self._child.kill()
                self._child.wait()
            self._child = None
