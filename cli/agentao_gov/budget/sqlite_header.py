"""The first page of a ledger file as it is on disk, read beside SQLite: tells a file that was written over in place.

`cp old.db ledger.db` keeps the file's name and identity, and SQLite goes on with what it remembers of it. But the copy
brings its own change counter: one that is lower than it was can only come from an older file.
"""

from __future__ import annotations

import os
import struct
import threading
import weakref
from pathlib import Path

__all__ = ["FileHeader", "Identity", "identity"]

#: Device and inode.
Identity = tuple[int, int]

#: SQLite's file format: a 4-byte big-endian counter, 24 bytes into the file.
_COUNTER = struct.Struct(">I")
_COUNTER_AT = 24

#: One descriptor a file, and how many use it. Re-entrant: garbage may be collected while it is held.
_LOCK = threading.RLock()
_shared: dict[Identity, tuple[int, int]] = {}


class FileHeader:
    """Reads the counter through a descriptor that all openings of the file in this process share. Thread-safe.

    It stays open as long as any of them: closing any descriptor of a file lets go of all locks that the process has
    on it, those of SQLite's connections too.
    """

    def __init__(self, path: Path) -> None:
        with _LOCK:
            self.identity = identity(path)
            descriptor, users = _shared.get(self.identity, (-1, 0))
            if not users:
                descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            _shared[self.identity] = (descriptor, users + 1)
        self._descriptor = descriptor
        # With the process all of it ends anyway, but a thread may still be writing until then.
        weakref.finalize(self, _leave, self.identity).atexit = False

    def counter(self) -> int:
        """The change counter; -1 where the file is too short to have one. Raises OSError."""
        found = os.pread(self._descriptor, _COUNTER.size, _COUNTER_AT)
        return int(_COUNTER.unpack(found)[0]) if len(found) == _COUNTER.size else -1


def identity(path: Path) -> Identity:
    """Which file is at the path. Raises OSError."""
    status = path.stat()
    return status.st_dev, status.st_ino


def _leave(key: Identity) -> None:
    with _LOCK:
        descriptor, users = _shared.pop(key)
        if users > 1:
            _shared[key] = (descriptor, users - 1)
        else:
            os.close(descriptor)
