"""What a shell command may touch, and how each one ends: in the session's sandbox, within its limits, with all it left.

agentao's own executor kills a command's process group when the turn is cancelled, but not what left the group; its
background commands outlive even `agent.close()`; and it leaves the killed process unreaped and its pipes open until
the collector comes by. So the processes are ours here: waited for, closed, and found again by the tag they inherit.
"""

from __future__ import annotations

import contextlib
import contextvars
import functools
import itertools
import os
import queue
import re
import select
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from agentao.capabilities import BackgroundHandle, LocalShellExecutor, ShellResult
from agentao.capabilities.shell import _HeadTailBuffer, _popen_target, resolve_shell_executable
from agentao.tools.base import SHELL_TOOL_NAME

from agentao_gov.governor.tools import current_record, mark_denied
from agentao_gov.process import procfs
from agentao_gov.process.oslimits import explain_start_failure, explain_tool_exit
from agentao_gov.process.sandbox import Sandbox, SandboxLayers, require_sandbox
from agentao_gov.process.supervision import command_started
from agentao_gov.process.tags import KIND_VARIABLE
from agentao_gov.process.tree import SessionTree, kill_processes
from agentao_gov.process.warden.processes import below, resident

if TYPE_CHECKING:
    from agentao_gov.config.profile import Profile

#: The one line to write where no sandbox can be had.
_NO_SANDBOX = (
    "shell commands need a sandbox, and neither bubblewrap nor Landlock works here (see `agentao-gov doctor`). To run "
    'them without, write into the profile: [tools] sandbox = "off"'
)


def sandbox_of(profile: Profile, workdir: Path, layers: Callable[[], SandboxLayers]) -> Sandbox | None:
    """The sandbox of a session's commands in `workdir`; None where there is none, by choice or for want of a layer.

    `layers` tells what this machine has. Raises ConfigError where the profile requires one that cannot be had.
    """
    if profile.tools.sandbox == "off" or SHELL_TOOL_NAME not in profile.tools.allow:
        return None
    if profile.tools.sandbox == "required":
        require_sandbox(f'Profile {profile.name} says [tools] sandbox = "required"', layers())
    if layers().best is None:
        return None
    readable = tuple(os.path.realpath(Path(path).expanduser()) for path in profile.tools.readable)
    return Sandbox(layers(), workdir.resolve(), profile.tools.network, readable)


def confined_server(
    name: str, config: Mapping[str, Any], workdir: Path, layers: SandboxLayers, *, network: bool
) -> dict[str, Any]:
    """The changes to an MCP server's `config`, agentao's form, by which it runs in the sandbox of `workdir`.

    It may also read its program and the files and directories that its arguments name. Raises ConfigError where no
    sandbox can be had.
    """
    require_sandbox(f"MCP server {name} says sandbox = true", layers)
    program = shutil.which(config["command"]) or config["command"]
    read = {program, os.path.realpath(program), config["cwd"], *filter(os.path.isabs, config["args"])}
    for path in (program, os.path.realpath(program)):
        # What an interpreter imports stands beside it.
        home = Path(path).parent.parent
        if (home / "lib").is_dir() and home != Path("/"):
            read.add(str(home))
    sandbox = Sandbox(layers, workdir.resolve(), network, tuple(sorted(read - {str(workdir)})))
    program, *args = sandbox.command([program, *config["args"]], Path(config["cwd"]))
    return {"command": program, "args": args, "env": {**sandbox.places, **config["env"]}}


# ── the shell ─────────────────────────────────────────────────────────────────────────────────────

#: Git runs no program that a repository's own configuration names, and takes no directory for a repository that does
#: not say so: the model can write both. Hooks stay out, too.
_GIT = {
    "GIT_CONFIG_COUNT": "3",
    "GIT_CONFIG_KEY_0": "safe.bareRepository",
    "GIT_CONFIG_VALUE_0": "explicit",
    "GIT_CONFIG_KEY_1": "core.fsmonitor",
    "GIT_CONFIG_VALUE_1": "false",
    "GIT_CONFIG_KEY_2": "core.hooksPath",
    "GIT_CONFIG_VALUE_2": "/dev/null",
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_TERMINAL_PROMPT": "0",
}
#: Names one command, so that a timed-out one takes its helpers with it and leaves the others alone.
_COMMAND_VARIABLE = "AGENTAO_GOV_COMMAND"
#: agentao drops the providers' own variables; a service's others are no business of a command the model wrote either.
_SECRET_NAME = re.compile(r"(?i)(key|token|secret|passw|credential|_auth|auth_)")
#: The password stands in an address, as a proxy's or a database's may. A proxy's needs no scheme, nor a colon.
_SECRET_ADDRESS = re.compile(r"://[^/\s@:]*:[^\s@]+@")
_numbers = itertools.count(1)

#: Kept of each stream, first and last half; the model sees 40,000 characters of it.
_KEPT_BYTES = 1024 * 1024
#: How often a running command is looked at for cancellation and inactivity.
_POLL_S = 0.05
#: A helper that inherited a finished command's pipe may hold it open; its output is not waited for any longer.
_DRAIN_S = 1.0
#: A supervisor kills within milliseconds; it may be stopped or gone.
_SUPERVISOR_S = 0.5
#: What one command may run at once, and the memory that all of it may use. A build runs some dozens of processes.
_PROCESSES_MAX = 256
_MEMORY_BYTES_MAX = min(4 << 30, os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2)


class _Command:
    """One command in the foreground."""

    def __init__(self, process: subprocess.Popen[bytes], on_chunk: Callable[[str], None] | None) -> None:
        self.process = process
        self._on_chunk = on_chunk
        self.active_at = time.monotonic()
        self.stdout, self.stderr = _HeadTailBuffer(_KEPT_BYTES), _HeadTailBuffer(_KEPT_BYTES)
        self._readers = [
            self._reader(process.stdout, self.stdout),
            self._reader(process.stderr, self.stderr),
        ]

    def _reader(self, pipe: IO[bytes] | None, buffer: Any) -> threading.Thread:
        assert pipe is not None
        thread = threading.Thread(target=self._read, args=(pipe, buffer), name="shell-output", daemon=True)
        thread.start()
        return thread

    def _read(self, pipe: IO[bytes], buffer: Any) -> None:
        # The reader closes its pipe itself: closing it from outside would wait for the lock that a blocked read holds.
        with pipe:
            while chunk := pipe.read1(65536):  # type: ignore[attr-defined]
                buffer.append(chunk)
                self.active_at = time.monotonic()
                if self._on_chunk is not None:
                    with contextlib.suppress(Exception):
                        self._on_chunk(chunk.decode("utf-8", "replace"))

    def wait(self, idle_s: float, token: Any) -> str | None:
        """Waits for the end; returns why it was not waited for any longer.

        `cancelled`, `timed_out` (nothing was written for `idle_s`), or a sentence that names the limit it went over.
        """
        while True:
            if _ended_within(self.process, _POLL_S):
                return None
            if token is not None and token.is_cancelled:
                return "cancelled"
            if time.monotonic() - self.active_at > idle_s:
                return "timed_out"
            if (limit := _over_limit(self.process.pid)) is not None:
                self.stderr.append(f"\n{limit}\n".encode())
                return limit

    def result(self, ended: str | None) -> ShellResult:
        """What agentao gets, once the process is gone."""
        until = time.monotonic() + _DRAIN_S
        for reader in self._readers:
            reader.join(max(0.0, until - time.monotonic()))
        limit = explain_tool_exit(self.process.returncode or 0, self.stdout.snapshot()[0] + self.stderr.snapshot()[0])
        if limit is not None:
            self.stderr.append(f"\n{limit}\n".encode())
        (out, out_omitted, out_at), (err, err_omitted, err_at) = self.stdout.snapshot(), self.stderr.snapshot()
        return ShellResult(
            returncode=self.process.returncode if self.process.returncode is not None else -signal.SIGKILL,
            stdout=out,
            stderr=err,
            timed_out=ended == "timed_out",
            cancelled=ended == "cancelled",
            stdout_omitted_bytes=out_omitted,
            stderr_omitted_bytes=err_omitted,
            stdout_omitted_at=out_at,
            stderr_omitted_at=err_at,
        )


def _ended_within(process: subprocess.Popen[bytes], seconds: float) -> bool:
    """Waits for a process's end; wakes with it, where `Popen.wait` sleeps up to 50 ms longer."""
    with contextlib.suppress(OSError):
        fd = os.pidfd_open(process.pid)
        try:
            poll = select.poll()
            poll.register(fd, select.POLLIN)
            poll.poll(seconds * 1000)
        finally:
            os.close(fd)
        return process.poll() is not None
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(seconds)
    return process.returncode is not None


def _over_limit(pid: int) -> str | None:
    """A sentence where a command's processes are too many or too large together; None: all is well."""
    try:
        processes = [pid, *below(pid)]
        if len(processes) > _PROCESSES_MAX:
            return f"The command was ended: it ran {len(processes)} processes; {_PROCESSES_MAX} are allowed."
        used = sum(map(resident, processes))
    except OSError:
        return None
    if used > _MEMORY_BYTES_MAX:
        return f"The command was ended: it used {used >> 20} MiB of memory; {_MEMORY_BYTES_MAX >> 20} are allowed."
    return None


class TrackedShell(LocalShellExecutor):
    """agentao's `ShellExecutor`. Thread-safe."""

    def __init__(
        self,
        tree: SessionTree,
        limit_s: float,
        secrets: Callable[[], tuple[str, ...]],
        *,
        sandbox: Sandbox | None,
        required: bool,
    ) -> None:
        """Runs the commands of the session whose children `tree` marks.

        `limit_s` is the longest silence of a command in seconds, `secrets` gives values that no command may find in
        its environment, `sandbox` holds the commands, and `required` says that none runs without one.
        """
        super().__init__()
        self._sandbox = sandbox
        self._required = required
        self._tree = tree
        self._limit_s = limit_s
        self._secrets = secrets
        self._lock = threading.Lock()
        # Under `_lock`: background commands of this turn, kept so that they are reaped.
        self._background: list[subprocess.Popen[bytes]] = []
        #: Whether any command was started since the last sweep: a look through /proc costs milliseconds.
        self.used = False

    def run(self, request: Any) -> ShellResult:
        """A command in the foreground, with the model's own time limit clamped to ours."""
        number = f"{next(_numbers)}"
        process = self._start(request.launch, number, subprocess.PIPE)
        command = _Command(process, request.on_chunk)
        ended: str | None = "cancelled"
        try:
            ended = command.wait(min(request.timeout, self._limit_s), request.cancellation_token)
        finally:
            if ended is not None:
                self._end(process, number)
        record = current_record()
        if ended == "timed_out" and record is not None:
            record.outcome = "timeout"
        return command.result(ended)

    def run_background(self, request: Any) -> BackgroundHandle:
        """A command in the background: it ends with the turn at the latest."""
        started: queue.SimpleQueue[subprocess.Popen[bytes] | OSError] = queue.SimpleQueue()
        context = contextvars.copy_context()
        # A sandbox ends with the thread that started it, so that thread stays as long as the command.
        body = functools.partial(context.run, self._host, request.launch, started)
        threading.Thread(target=body, name="shell-background", daemon=True).start()
        process = started.get()
        if isinstance(process, OSError):
            raise process
        # It leads its own session, so its group is its pid.
        return BackgroundHandle(pid=process.pid, pgid=process.pid, command=request.command, cwd=request.cwd)

    def _host(self, launch: Any, started: queue.SimpleQueue[subprocess.Popen[bytes] | OSError]) -> None:
        """Starts a background command and stays with it; ends it where it goes over its limits."""
        number = f"{next(_numbers)}"
        try:
            process = self._start(launch, number, subprocess.DEVNULL)
        except OSError as error:
            started.put(error)
            return
        with self._lock:
            self._background.append(process)
        started.put(process)
        while process.poll() is None:
            if _over_limit(process.pid) is not None:
                self._end(process, number)
                return
            time.sleep(_POLL_S * 4)

    def sweep(self) -> int:
        """Ends every command that is still there, and what it started; returns how many processes."""
        if not self.used:
            return 0
        self.used = False
        with self._lock:
            background, self._background = self._background, []
        for process in background:
            self._stop(process)
        killed = self._kill(lambda pid: procfs.environ_value(pid, KIND_VARIABLE.encode()) == "shell")
        for process in background:
            _reap(process)
        return killed

    def _start(self, launch: Any, number: str, output: int) -> subprocess.Popen[bytes]:
        marks = {**_GIT, **self._tree.env("shell"), _COMMAND_VARIABLE: number}
        target, options = self._confined(launch, marks) if self._sandbox is not None else self._open(launch, marks)
        self.used = True
        try:
            process = subprocess.Popen(  # noqa: S603 - running the model's command is what it is for; permissions decide
                target, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True, **options
            )
        except OSError as error:
            raise explain_start_failure(error) from error
        command_started(process.pid)
        return process

    def _confined(self, launch: Any, marks: Mapping[str, str]) -> tuple[Any, dict[str, Any]]:
        assert self._sandbox is not None
        shell = [launch.executable or resolve_shell_executable() or "/bin/sh", "-c", launch.command]
        line = self._sandbox.command(shell, Path(launch.cwd))
        return line, {"env": self._sandbox.environment(marks), "cwd": str(self._sandbox.root)}

    def _open(self, launch: Any, marks: Mapping[str, str]) -> tuple[Any, dict[str, Any]]:
        """Without a sandbox: as agentao would start it, less what is secret."""
        if self._required:
            mark_denied(_NO_SANDBOX)
            raise PermissionError(_NO_SANDBOX)
        target, options = _popen_target(launch)
        secrets = set(self._secrets())
        inherited: Mapping[str, str] = options["env"]
        kept = {n: value for n, value in inherited.items() if value not in secrets and not _is_secret(n, value)}
        return target, {**options, "env": {**kept, **marks}}

    def _stop(self, process: subprocess.Popen[bytes]) -> None:
        if self._sandbox is not None and self._sandbox.supervised:
            # The supervisor reaches also what left the group and emptied its environment.
            with contextlib.suppress(OSError, subprocess.TimeoutExpired):
                process.terminate()
                process.wait(_SUPERVISOR_S)
        _kill_group(process)

    def _end(self, process: subprocess.Popen[bytes], number: str) -> None:
        self._stop(process)
        # Those who left the group, found by what they inherited.
        self._kill(lambda pid: procfs.environ_value(pid, _COMMAND_VARIABLE.encode()) == number)
        _reap(process)

    def _kill(self, chosen: Callable[[int], bool]) -> int:
        with contextlib.suppress(OSError):
            roots = [ref for ref in self._tree.members() if chosen(ref.pid)]
            if roots:
                return kill_processes(roots=roots, within_s=0.5).killed
        return 0


def _is_secret(name: str, value: str) -> bool:
    """Whether a variable of the service is none of a command's business."""
    if name.lower().endswith("_proxy") and "@" in value:
        return True
    return _SECRET_NAME.search(name) is not None or _SECRET_ADDRESS.search(value) is not None


def _kill_group(process: subprocess.Popen[bytes]) -> None:
    if process.returncode is None:
        # Not reaped yet, so the pid is still its own and names its group.
        with contextlib.suppress(OSError):
            os.killpg(process.pid, signal.SIGKILL)


def _reap(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(1.0)
