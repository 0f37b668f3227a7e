"""The file system the agent's tools see: the session's working directory and nothing else, symlinks resolved.

agentao contains writes but not reads: its `read_file` opens any path of the machine, in read-only mode too. This is
handed to agentao as its `filesystem` capability, so every file and search tool goes through it. It is on purpose not a
`LocalFileSystem`: for that class the search tool would run `git grep` or `rg` itself, and a `.git` that the model wrote
can point git at any other tree.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from agentao.capabilities import BackgroundHandle, LocalFileSystem, LocalShellExecutor, ShellResult
from agentao.capabilities.shell import _HeadTailBuffer, _popen_target

from agentao_gov.governor.tools import current_record, mark_denied
from agentao_gov.process import procfs
from agentao_gov.process.oslimits import explain_start_failure, explain_tool_exit
from agentao_gov.process.supervision import command_started
from agentao_gov.process.tags import KIND_VARIABLE
from agentao_gov.process.tree import SessionTree, kill_processes

__all__ = ["ConfinedFileSystem", "OutsideError", "TrackedShell"]


class OutsideError(PermissionError):
    """A tool reached for a path outside the session's directory."""


class ConfinedFileSystem:
    """agentao's `FileSystem` protocol, confined to one directory. Stateless but for the root."""

    def __init__(self, root: Path) -> None:
        self._root = root.resolve()
        self._inner = LocalFileSystem()

    def _inside(self, path: Path) -> Path:
        """The path with links resolved. Raises OutsideError where it leads out of the directory."""
        resolved = Path(path).resolve()
        if resolved != self._root and self._root not in resolved.parents:
            mark_denied()
            raise OutsideError(f"{path} is outside the working directory, which is all this session may read and write")
        return resolved

    def _holds(self, path: Path) -> bool:
        resolved = Path(path).resolve()
        return resolved == self._root or self._root in resolved.parents

    def read_bytes(self, path: Path) -> bytes:
        """The file's bytes."""
        data: bytes = self._inner.read_bytes(self._inside(path))
        return data

    def read_partial(self, path: Path, n: int) -> bytes:
        """Up to `n` bytes from the start."""
        data: bytes = self._inner.read_partial(self._inside(path), n)
        return data

    def open_text(self, path: Path) -> Iterator[str]:
        """The file's lines. Refuses before the first line, not at it."""
        lines: Iterator[str] = self._inner.open_text(self._inside(path))
        return lines

    def write_text(self, path: Path, data: str, *, append: bool = False) -> None:
        """Writes or appends."""
        self._inner.write_text(self._inside(path), data, append=append)

    def list_dir(self, path: Path) -> list[Any]:
        """A directory's entries; links that lead outside are left out."""
        base = self._inside(path)
        return [entry for entry in self._inner.list_dir(base) if self._holds(base / entry.name)]

    def glob(self, base: Path, pattern: str, *, recursive: bool) -> list[Path]:
        """Matches below `base`. A pattern with `..` finds nothing outside: matches that lead out are left out."""
        self._inside(base)
        return [found for found in self._inner.glob(base, pattern, recursive=recursive) if self._holds(found)]

    def stat(self, path: Path) -> Any:
        """Size, time and kind."""
        return self._inner.stat(self._inside(path))

    def exists(self, path: Path) -> bool:
        """Whether it exists within the directory."""
        return bool(self._inner.exists(self._inside(path)))

    def is_dir(self, path: Path) -> bool:
        """Whether it is a directory."""
        return bool(self._inner.is_dir(self._inside(path)))

    def is_file(self, path: Path) -> bool:
        """Whether it is a file."""
        return bool(self._inner.is_file(self._inside(path)))


# The agent's shell, tracked: every command carries the session's tag, its time limit is ours, and nothing outlives it.
#
# agentao's own executor kills a command's process group when the turn is cancelled, but not what left the group; its
# background commands outlive even `agent.close()`; and it leaves the killed process unreaped and its pipes open until
# the collector comes by. So the processes are ours here: waited for, closed, and found again by the tag they inherit.

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
        """Waits for the end; returns why it was not waited for any longer, `cancelled` or `timed_out`."""
        while True:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(_POLL_S)
                return None
            if token is not None and token.is_cancelled:
                return "cancelled"
            if time.monotonic() - self.active_at > idle_s:
                return "timed_out"

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


class TrackedShell(LocalShellExecutor):
    """agentao's `ShellExecutor`. Thread-safe."""

    def __init__(self, tree: SessionTree, limit_s: float, secrets: Callable[[], tuple[str, ...]]) -> None:
        super().__init__()
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
        process = self._start(request.launch, f"{next(_numbers)}", subprocess.DEVNULL)
        with self._lock:
            self._background.append(process)
        # It leads its own session, so its group is its pid.
        return BackgroundHandle(pid=process.pid, pgid=process.pid, command=request.command, cwd=request.cwd)

    def sweep(self) -> int:
        """Ends every command that is still there, and what it started; returns how many processes."""
        if not self.used:
            return 0
        self.used = False
        killed = self._kill(lambda pid: procfs.environ_value(pid, KIND_VARIABLE.encode()) == "shell")
        with self._lock:
            background, self._background = self._background, []
        for process in background:
            _kill_group(process)
            _reap(process)
        return killed

    def _start(self, launch: Any, number: str, output: int) -> subprocess.Popen[bytes]:
        self.used = True
        target, options = _popen_target(launch)
        secrets = set(self._secrets())
        inherited: Mapping[str, str] = options["env"]
        kept = {n: value for n, value in inherited.items() if value not in secrets and not _is_secret(n, value)}
        options["env"] = {**kept, **self._tree.env("shell"), _COMMAND_VARIABLE: number}
        try:
            process = subprocess.Popen(  # noqa: S603 - running the model's command is what it is for; permissions decide
                target, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True, **options
            )
        except OSError as error:
            raise explain_start_failure(error) from error
        command_started(process.pid)
        return process

    def _end(self, process: subprocess.Popen[bytes], number: str) -> None:
        _kill_group(process)
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
