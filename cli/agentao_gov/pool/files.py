"""Private directories, a file replaced whole or not at all, and the lock that gives a session to one process."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from agentao_gov.errors import StoreError

__all__ = ["SessionDir", "Step", "as_store_error", "nothing", "private_dir"]

#: Hears the name of each step of a write, before it is taken: what the crash tests hang on to.
Step = Callable[[str], None]

_LOCK = "lock"


def nothing(_: str) -> None:
    """The step listener of everyday."""


@contextmanager
def as_store_error(what: str) -> Iterator[None]:
    """Turns the operating system's refusal into the error a user can act on."""
    try:
        yield
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else str(error)
        raise StoreError(
            f"{what}: {reason}.", hint="See `[state] dir`: its disk, its owner and its permissions.", retry_after_s=5.0
        ) from error


def private_dir(path: Path) -> Path:
    """Makes a directory, and its parents, that only this user can enter."""
    # `parents=True` would make the parents with the umask's mode.
    missing = [path, *path.parents]
    for directory in reversed(missing[: next(n for n, parent in enumerate(missing) if parent.is_dir())]):
        directory.mkdir(mode=0o700, exist_ok=True)
    return path


@dataclass(slots=True)
class SessionDir:
    """A session's directory, held: locked against every other holder, and reached by descriptor.

    By descriptor, because `delete` renames the directory away under a turn in flight: what that turn still writes
    goes down with the old directory instead of into a new session of the same name.
    """

    fd: int
    lock_fd: int

    @classmethod
    def try_hold(cls, path: Path) -> SessionDir | None:
        """Takes the lock if it is free now; None if somebody has it. Raises OSError."""
        private_dir(path)
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            lock_fd = os.open(_LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600, dir_fd=fd)
        except OSError:
            os.close(fd)
            raise
        held = cls(fd, lock_fd)
        try:
            fcntl.flock(lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Deleted between open and lock: the lock is of a directory that no longer has the name.
            if path.stat().st_ino == os.fstat(fd).st_ino:
                return held
        except (BlockingIOError, FileNotFoundError):
            pass
        except OSError:
            held.release()
            raise
        held.release()
        return None

    def release(self) -> None:
        """Gives the lock back. Closing the descriptor does it, also when the process dies."""
        os.close(self.lock_fd)
        os.close(self.fd)

    def replace(self, name: str, content: bytes, step: Step = nothing) -> None:
        """Writes a file so that after a crash at any point the old or the new one is there, whole. Raises OSError."""
        new = f"{name}.new"
        step("create")
        fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600, dir_fd=self.fd)
        try:
            try:
                half = len(content) // 2
                step("write first half")
                _write_all(fd, content[:half])
                step("write second half")
                _write_all(fd, content[half:])
                step("sync file")
                os.fsync(fd)
            finally:
                os.close(fd)
            step("rename")
            os.replace(new, name, src_dir_fd=self.fd, dst_dir_fd=self.fd)
        except OSError:
            # A full disk stays full while the half-written file lies there.
            with suppress(OSError):
                os.unlink(new, dir_fd=self.fd)
            raise
        # The directory is not synced: after a power cut the name may be the old file's for some seconds back, whole
        # all the same, and a turn's answer does not wait for a second flush (0.7 ms, 10 ms and more on a busy disk).
        step("done")

    def read_head(self, name: str) -> bytes | None:
        """A file's first line, None where there is no file. Raises OSError."""
        try:
            fd = os.open(name, os.O_RDONLY | os.O_CLOEXEC, dir_fd=self.fd)
        except FileNotFoundError:
            return None
        with os.fdopen(fd, "rb") as file:
            return file.readline()


def _write_all(fd: int, content: bytes) -> None:
    view = memoryview(content)
    while view:
        view = view[os.write(fd, view) :]
