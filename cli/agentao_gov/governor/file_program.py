"""The program that runs agentao's file tools: one fork a call, which can be killed.

A model chooses the pattern, the path and the text, and no time limit reaches a Python thread: `**/*/**/*` over a deep
tree spins for ever, `(a+)+$` holds the interpreter lock while it backtracks, a similarity search over a large file
takes hours. So each call runs in a process of its own with limits on processor time, memory and file size, which ends
when the service closes its end of the call's socket.

This process stays single-threaded, because a fork of a threaded process inherits locks that nobody will ever release.
It imports nothing of the package around it, so that it starts in a tenth of a second and forks in a millisecond.
Control is a socket of whole messages: one byte, the call's socket, and Landlock's rules where the kernel has it. A
call's socket carries one JSON line each way.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import json
import os
import re
import resource
import select
import signal
import socket
import stat
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import agentao.tools.search
from agentao.capabilities import LocalFileSystem
from agentao.tools.file_ops import EditTool, ReadFileTool, ReadFolderTool, WriteFileTool
from agentao.tools.search import FindFilesTool, SearchTextTool

#: What the process is called; its command line is `python -P PROGRAM CONTROL`.
NAME = "gov-files"
PROGRAM = os.path.abspath(__file__)  # noqa: PTH100
#: agentao's tools that read and write files, by name.
TOOLS: dict[str, type[Any]] = {
    "glob": FindFilesTool,
    "list_directory": ReadFolderTool,
    "read_file": ReadFileTool,
    "replace": EditTool,
    "search_file_content": SearchTextTool,
    "write_file": WriteFileTool,
}

#: The tools hold a whole file in memory, some of them several times.
_FILE_BYTES_MAX = 32 << 20
#: What a tool may make of a file, by appending or replacing.
_WRITTEN_BYTES_MAX = 256 << 20
#: Address space of one call: four times the largest file in the widest encoding, and the interpreter.
_MEMORY_BYTES = 768 << 20
#: agentao keeps 40,000 characters of a result for the model and the rest in a file.
_RESULT_CHARS_MAX = 1 << 20
#: One line: an honest pattern takes microseconds.
_LINE_S_MAX = 1.0
_LOOK_S = 0.2
#: Calls at once.
_CALLS_MAX = 64
#: Without a call for this long the process ends; the next call starts another.
_IDLE_S = 30.0
#: An honest call is done before it has used this much of a processor; a longer one yields to turns.
_PROMPT_S, _NICE = 0.25, 10
_PR_SET_PDEATHSIG, _PR_SET_NAME, _PR_SET_NO_NEW_PRIVS = 1, 15, 38
_LANDLOCK_RESTRICT_SELF = 446
_LIBC = ctypes.CDLL(None, use_errno=True)


class OutsideError(PermissionError):
    """A tool reached for a path outside the session's directory."""


class ConfinedFileSystem:
    """agentao's `FileSystem` protocol, confined to one directory, links resolved. Stateless but for the root.

    agentao contains writes but not reads: its `read_file` opens any path of the machine, in read-only mode too. It is
    on purpose not a `LocalFileSystem`: for that class the search tool would run `git grep` or `rg` itself, and a `.git`
    that the model wrote can point git at any other tree.
    """

    def __init__(self, root: Path, denied: Callable[[], None]) -> None:
        """Confines to `root`; `denied` is called when a tool reaches outside."""
        self._root = root.resolve()
        self._denied = denied
        self._inner = LocalFileSystem()

    def _inside(self, path: Path) -> Path:
        """The path with links resolved. Raises OutsideError where it leads out of the directory."""
        if not self._holds(path):
            self._denied()
            raise OutsideError(f"{path} is outside the working directory, which is all this session may read and write")
        return Path(path).resolve()

    def _holds(self, path: Path) -> bool:
        resolved = Path(path).resolve()
        return resolved == self._root or self._root in resolved.parents

    def _readable(self, path: Path) -> Path:
        """A regular file of a size that a tool can hold. Raises OSError else: a pipe would never end."""
        inside = self._inside(path)
        found = inside.stat()
        if not stat.S_ISREG(found.st_mode):
            raise OSError(f"{path} is no regular file")
        if found.st_size > _FILE_BYTES_MAX:
            raise OSError(f"{path} has {found.st_size:,} bytes; file tools read up to {_FILE_BYTES_MAX:,}")
        return inside

    def read_bytes(self, path: Path) -> bytes:
        """The file's bytes."""
        data: bytes = self._inner.read_bytes(self._readable(path))
        return data

    def read_partial(self, path: Path, n: int) -> bytes:
        """Up to `n` bytes from the start."""
        data: bytes = self._inner.read_partial(self._readable(path), n)
        return data

    def open_text(self, path: Path) -> Iterator[str]:
        """The file's lines. Refuses before the first line, not at it."""
        lines: Iterator[str] = self._inner.open_text(self._readable(path))
        return lines

    def write_text(self, path: Path, data: str, *, append: bool = False) -> None:
        """Writes or appends."""
        inside = self._inside(path)
        if inside.exists() and not inside.is_file():
            raise OSError(f"{path} is no regular file")
        self._inner.write_text(inside, data, append=append)

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


class _PatternTooSlowError(Exception):
    """A search that was given up. No OSError, which the tool would take for an unreadable file and go on."""


class _Timed:
    """A compiled pattern that gives up a line that takes too long: `re` looks at signals while it backtracks."""

    def __init__(self, compiled: re.Pattern[str]) -> None:
        self._compiled = compiled
        self._line_began = time.monotonic()
        signal.signal(signal.SIGALRM, self._look)
        signal.setitimer(signal.ITIMER_REAL, _LOOK_S, _LOOK_S)

    def _look(self, _signum: int, _frame: object) -> None:
        if time.monotonic() - self._line_began > _LINE_S_MAX:
            raise _PatternTooSlowError(f"the pattern took more than {_LINE_S_MAX:.0f} s on one line; use a simpler one")

    def search(self, line: str) -> re.Match[str] | None:
        self._line_began = time.monotonic()
        return self._compiled.search(line)


class _TimedRe:
    """What agentao's search tool uses of `re`."""

    IGNORECASE = re.IGNORECASE
    error = re.error

    @staticmethod
    def compile(pattern: str, flags: int = 0) -> _Timed:
        try:
            return _Timed(re.compile(pattern, flags))
        except (RecursionError, OverflowError):
            raise re.error("it is nested too deeply or repeats too often") from None


# ── one call, in its own process ──────────────────────────────────────────────────────────────────


def _lower(which: int, value: int) -> None:
    hard = resource.getrlimit(which)[1]
    value = value if hard == resource.RLIM_INFINITY else min(value, hard)
    resource.setrlimit(which, (value, value))


def _run(order: dict[str, Any]) -> dict[str, Any]:
    """Runs one tool; what the service is told of it."""
    denied: list[bool] = []
    tool = TOOLS[order["tool"]]()
    tool.working_directory = Path(order["directory"])
    tool.filesystem = ConfinedFileSystem(tool.working_directory, lambda: denied.append(True))
    _lower(resource.RLIMIT_CPU, int(order["limit_s"]) + 2)
    _lower(resource.RLIMIT_AS, _MEMORY_BYTES)
    _lower(resource.RLIMIT_FSIZE, _WRITTEN_BYTES_MAX)
    _lower(resource.RLIMIT_CORE, 0)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        result = str(tool.execute(**order["arguments"]))
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}"[:_RESULT_CHARS_MAX], "denied": bool(denied)}
    if result.startswith("Error") and result.endswith(": "):
        # A MemoryError, which says nothing.
        result += f"it needs more than {_MEMORY_BYTES >> 20} MiB of memory"
    if len(result) > _RESULT_CHARS_MAX:
        result = f"{result[:_RESULT_CHARS_MAX]}\n[{len(result) - _RESULT_CHARS_MAX:,} characters are left out]"
    return {"result": result, "denied": bool(denied)}


def _child(call: socket.socket, rules: list[int], parent: int) -> NoReturn:
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.signal(signal.SIGPROF, lambda *_: os.nice(_NICE) and None)
    signal.setitimer(signal.ITIMER_PROF, _PROMPT_S)
    for ruleset in rules:
        # Only now is a path that another process turns into a link while it is looked at harmless, too.
        _LIBC.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
        if _LIBC.syscall(_LANDLOCK_RESTRICT_SELF, ruleset, 0) != 0:
            os._exit(1)
    with call.makefile("rwb") as line:
        answer = _run(json.loads(line.readline()))
        line.write(json.dumps(answer).encode() + b"\n")
    os._exit(0)


# ── the process that forks ────────────────────────────────────────────────────────────────────────


class _Forks:
    """The calls that run. A call ends with its process, or when the service closes its socket."""

    def __init__(self, control: socket.socket) -> None:
        self._control = control
        #: Process id of a running call → the call's socket.
        self._calls: dict[int, socket.socket] = {}
        #: Whether no more orders are taken: the process ends with its last call.
        self._closing = False
        self._woken, self._wakes = socket.socketpair()
        self._woken.setblocking(False)
        self._wakes.setblocking(False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(self._wakes.fileno(), warn_on_full_buffer=False)

    def serve(self) -> None:
        """Until the service is gone, or nothing was asked for a while."""
        while self._calls or not self._closing:
            poll = select.poll()
            poll.register(self._woken, select.POLLIN)
            # Above the limit orders wait in the socket, and their senders have deadlines.
            if not self._closing and len(self._calls) < _CALLS_MAX:
                poll.register(self._control, select.POLLIN)
            for call in self._calls.values():
                poll.register(call, select.POLLHUP)
            ready = {fd for fd, _ in poll.poll(None if self._calls else _IDLE_S * 1000)}
            if not ready:
                self._close()
                continue
            if self._woken.fileno() in ready:
                with contextlib.suppress(BlockingIOError):
                    self._woken.recv(4096)
            self._reap(ready)
            if self._control.fileno() in ready and not self._accept():
                return

    def _close(self) -> None:
        """Takes no more orders but those that were sent before the door was shut."""
        self._closing = True
        self._control.shutdown(socket.SHUT_RD)
        self._control.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while self._accept():
                pass

    def _accept(self) -> bool:
        message, fds, _flags, _address = socket.recv_fds(self._control, 1, 2)
        if not message or not fds:
            return False
        call, rules = socket.socket(fileno=fds[0]), fds[1:]
        parent = os.getpid()
        try:
            pid = os.fork()
        except OSError:
            call.close()
            return True
        finally:
            if os.getpid() == parent:
                for ruleset in rules:
                    os.close(ruleset)
        if pid == 0:
            try:
                self._control.close()
                for other in self._calls.values():
                    other.close()
                _child(call, rules, parent)
            except BaseException:  # a fork must never return into the loop
                os._exit(1)
        self._calls[pid] = call
        return True

    def _reap(self, ready: set[int]) -> None:
        for pid, call in list(self._calls.items()):
            # A half-closed pair hangs up only when the service's end is gone.
            if call.fileno() in ready:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
            elif os.waitpid(pid, os.WNOHANG)[0] == 0:
                continue
            call.close()
            del self._calls[pid]


def main() -> NoReturn:
    """`python -P file_program.py FD`"""
    _LIBC.prctl(_PR_SET_NAME, NAME.encode(), 0, 0, 0)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    control = socket.socket(fileno=int(sys.argv[1]))
    # When memory runs out the kernel takes a call, never the service.
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("900")
    vars(agentao.tools.search)["re"] = _TimedRe
    gc.collect()
    gc.freeze()
    with contextlib.suppress(ConnectionResetError, BrokenPipeError):
        _Forks(control).serve()
    os._exit(0)


if __name__ == "__main__":
    main()
