"""One running session process as its owner has it: the pipes that lead to it, and how it is ended."""

from __future__ import annotations

import contextlib
import os
import select
import socket
import threading
import time
from dataclasses import dataclass, field

from agentao_gov.errors import InternalError
from agentao_gov.process import procfs
from agentao_gov.process.oslimits import SessionCgroup
from agentao_gov.process.procfs import ProcessRef
from agentao_gov.process.tree import ORPHANS_KILLED, kill_processes

__all__ = ["Ends", "SessionProcess"]


@dataclass
class SessionProcess:
    """One running session process, seen from its owner."""

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
    #: Whether the warden's last word said that it had ended everything below itself.
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
            # Whoever reads the last words meanwhile leaves it open: another could get its number. Not a duplicate,
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
        """Closes what the last words were read from, once nobody watches it any more."""
        with self._lock:
            if self._watchers == 0 and self._read >= 0:
                os.close(self._read)
                self._read = -1

    def last_words(self, within_s: float) -> tuple[int | None, str | None]:
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
