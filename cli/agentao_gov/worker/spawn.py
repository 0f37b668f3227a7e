"""Starts session processes below wardens: forked from the zygote, or cold with a tenant's own Python."""

from __future__ import annotations

import json
import os
import select
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from agentao_gov.clock import Deadline
from agentao_gov.errors import InternalError
from agentao_gov.process import warden
from agentao_gov.process.oslimits import OsLimits, SessionCgroup
from agentao_gov.worker.session_process import Ends, SessionProcess

__all__ = ["ColdSpawner", "ZygoteSpawner", "proxies", "scrubbed_env"]

#: What a session process is started with of the service's environment. Keys, tokens and everything else stay behind.
_KEPT = ("PATH", "LANG", "LC_ALL", "LC_CTYPE", "TZ", "SSL_CERT_FILE", "SSL_CERT_DIR", "NIX_SSL_CERT_FILE")
_PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY")
#: From the death of the owner to SIGKILL: a polite MCP server leaves in 0.25 s.
GRACE_S = 0.3
#: Importing everything takes a zygote two seconds, on a busy machine ten times that. A fork takes milliseconds.
_START_S_MAX = 60.0


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
            *(self._python, "-P", "-m", "agentao_gov.worker.main", json.dumps(limits.to_wire())),
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
            process.hint = f"Try `{self._python} -c 'import agentao_gov.worker.main'`: it must be installed there."
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
        while not select.select([control], [], [], 0.1)[0]:
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
