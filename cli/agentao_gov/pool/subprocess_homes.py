"""The private HOME directories of session processes, and what a service that was killed left of them.

A directory is `RUN-HASH`, with `RUN.lock` locked while its service lives. A lock tells the living from the dead also
where pids do not: between containers that share a state directory, and after a pid was reused. Names are short because
tools make Unix sockets below TMPDIR, and their paths may have no more than 107 characters.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import secrets
import shutil
import threading
from pathlib import Path

from agentao_gov.governor.types import SessionKey

__all__ = ["Homes"]

#: Each is lost only to a service that starts at the same moment.
_TRIES = 100


class Homes:
    """Hands out the homes of one service's sessions. Thread-safe."""

    def __init__(self, root: Path) -> None:
        """Removes what dead services left in `root`; makes nothing before the first home is asked for."""
        self._root = root
        self._lock = threading.Lock()
        # Under `_lock`: this run's name, empty before the first home; and its locked descriptor, -1 when there is none.
        self._run = ""
        self._fd = -1
        _remove_left_behind(root)

    def of(self, key: SessionKey) -> Path:
        """Lives as long as the session is resident; what is to be kept belongs into its working directory."""
        with self._lock:
            if not self._run:
                self._run, self._fd = _begin(self._root)
            name = hashlib.sha256(f"{key.tenant}\0{key.session}".encode()).hexdigest()[:16]
            return self._root / f"{self._run}-{name}"

    def close(self) -> None:
        """Removes this run's. Idempotent."""
        with self._lock:
            if self._fd >= 0:
                _remove(self._root, self._run)
                os.close(self._fd)
                self._fd = -1


def _begin(root: Path) -> tuple[str, int]:
    """A run nobody else has, locked. Raises OSError where `root` cannot be written or knows no locks."""
    root.mkdir(mode=0o700, parents=True, exist_ok=True)
    for _ in range(_TRIES):
        run = secrets.token_hex(4)
        path = root / f"{run}.lock"
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            # Whoever starts beside us may have found it before it was locked, and removed it.
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
    for path in root.glob(f"{run}-*"):
        shutil.rmtree(path, ignore_errors=True)
    (root / f"{run}.lock").unlink(missing_ok=True)
