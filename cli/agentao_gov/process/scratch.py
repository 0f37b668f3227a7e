"""Temporary directories of one run of the product, and the removal of those that a killed run left behind.

A directory is `RUN-NAME`, with `RUN.lock` locked while its run lives. The kernel gives the lock back when the process
ends, however it ends. A pid would not do: containers that share a state directory see each other's pids as dead, and
the working directory of a turn in flight would be deleted.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import secrets
import shutil
import tempfile
import threading
from pathlib import Path

from agentao_gov.errors import ConfigError

#: Each try is lost only to a process that starts at the same moment.
_TRIES = 100


def provide_temporary_directory(state_dir: Path) -> None:
    """Makes `state_dir/tmp` the temporary directory of this process and its children where the system has none.

    A container with a read-only root has no other place than the volume of its state. Raises ConfigError where that
    cannot be written either.
    """
    try:
        tempfile.gettempdir()
    except FileNotFoundError:
        directory = state_dir / "tmp"
        try:
            state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
            directory.mkdir(mode=0o700, exist_ok=True)
            with tempfile.TemporaryFile(dir=directory):
                pass
        except OSError as error:
            raise ConfigError(
                f"No temporary directory can be written, and {directory} cannot either: {error.strerror}.",
                hint="Set TMPDIR to a directory that can, or AGENTAO_GOV_STATE to the volume of the state.",
            ) from None
        tempfile.tempdir = os.environ["TMPDIR"] = str(directory)


class ScratchDirs:
    """Names and makes directories that end with this run. Thread-safe."""

    def __init__(self, root: Path) -> None:
        """Removes from `root` what dead runs left; makes nothing before the first directory is asked for."""
        self._root = root
        self._lock = threading.Lock()
        #: This run's name; empty before the first directory. Under `_lock`.
        self._run = ""
        #: The locked descriptor of this run's lock file; -1: none. Under `_lock`.
        self._fd = -1
        _remove_left_behind(root)

    def path(self, name: str) -> Path:
        """The directory of that name, which the caller makes and removes.

        `name` is short, because tools make Unix sockets below it and their paths may have no more than 107 characters.
        Raises OSError where `root` cannot be written or its file system knows no locks.
        """
        with self._lock:
            if not self._run:
                self._run, self._fd = _begin(self._root)
            return self._root / f"{self._run}-{name}"

    def make(self) -> Path:
        """A new empty directory of this user alone. Raises OSError as `path` does."""
        prefix = self.path("")
        return Path(tempfile.mkdtemp(prefix=prefix.name, dir=self._root))

    def close(self) -> None:
        """Removes this run's directories. Idempotent."""
        with self._lock:
            if self._fd >= 0:
                _remove(self._root, self._run)
                os.close(self._fd)
                self._fd = -1


def _begin(root: Path) -> tuple[str, int]:
    """A run that nobody else has, and the descriptor of its lock file, locked."""
    root.mkdir(mode=0o700, parents=True, exist_ok=True)
    for _ in range(_TRIES):
        run = secrets.token_hex(4)
        path = root / f"{run}.lock"
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            # Another process that starts now may have found the file before it was locked, and removed it.
            with contextlib.suppress(BlockingIOError, FileNotFoundError):
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if os.fstat(fd).st_ino == path.stat().st_ino:
                    return run, fd
        except OSError:  # a file system without locks
            os.close(fd)
            path.unlink(missing_ok=True)
            raise
        os.close(fd)
    raise BlockingIOError(errno.EAGAIN, "every lock was taken away by another", str(root))


def _remove_left_behind(root: Path) -> None:
    living = set()
    for path in root.glob("*.lock"):
        with contextlib.suppress(OSError):
            fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                _remove(root, path.stem)
            except BlockingIOError:
                living.add(path.stem)
            finally:
                os.close(fd)
    for path in root.glob("*-*"):
        run = path.name.partition("-")[0]
        if run not in living and not (root / f"{run}.lock").exists():
            shutil.rmtree(path, ignore_errors=True)


def _remove(root: Path, run: str) -> None:
    # The lock file goes last: what has none is nobody's.
    for path in root.glob(f"{run}-*"):
        shutil.rmtree(path, ignore_errors=True)
    (root / f"{run}.lock").unlink(missing_ok=True)
