"""The high-water mark beside a ledger: how far the ledger had come, so that an older copy put in its place is noticed.

It is a small file that all processes map, so keeping it costs no system call. It holds the ledger's identity, the
number of the last journal entry, the machine's boot, and the last entry that is known to be on the disk itself.
"""

from __future__ import annotations

import hashlib
import mmap
import os
import struct
from pathlib import Path
from typing import NamedTuple

from agentao_gov.errors import StoreError
from agentao_gov.process.owner import boot_id

#: Magic, ledger identity, boot, and the two figures: last entry, last entry known to be on disk.
_LAYOUT = struct.Struct("=8s16s16sQQ")
_FIGURES_AT = 8 + 16 + 16
_LAST, _ON_DISK = 0, 1
_MAGIC = b"agvmark1"


class Marked(NamedTuple):
    """The figures of a mark: the digests of ledger and boot, the last entry, and the last one known to be on disk."""

    magic: bytes
    ledger: bytes
    boot: bytes
    last: int
    on_disk: int


class HighWater:
    """The mapped file. Many processes read and raise it at once: it has to be a maximum only roughly."""

    def __init__(self, path: Path) -> None:
        self._path = path
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            status = os.fstat(descriptor)
            if status.st_mode & 0o077:
                os.fchmod(descriptor, 0o600)
            if status.st_size < _LAYOUT.size:
                # Real blocks, not a hole: writing to a mapped hole on a full disk would kill the process.
                os.posix_fallocate(descriptor, 0, _LAYOUT.size)
            self._map = mmap.mmap(descriptor, _LAYOUT.size)
            self._figures = memoryview(self._map)[_FIGURES_AT:].cast("Q")
        finally:
            os.close(descriptor)

    def read(self) -> Marked:
        """What the mark says at this moment, for `admit`."""
        return Marked(*_LAYOUT.unpack(self._map))

    def admit(self, ledger_id: str, last: int, before: Marked) -> None:
        """Compares the ledger that was opened, and ends at entry `last`, with the mark as it was `before` that.

        Neighbours go on meanwhile, and the mark with them: a later one would make a sound ledger look like an older
        copy. Raises StoreError for another ledger, and for one that has lost entries. After a reboot only entries that
        were known to be on disk count: SQLite's NORMAL may lose the last moments before a power cut.
        """
        identity, boot = _digest(ledger_id), _digest(boot_id())
        marked_last, on_disk = last, 0
        if before.magic == _MAGIC:
            if before.ledger != identity:
                raise self._problem("another ledger stands in its place")
            required = before.last if before.boot == boot else before.on_disk
            if last < required:
                raise self._problem(f"it ends at entry {last:,}, but had come to {required:,}: an older copy")
            now = self.read()
            marked_last = last if before.boot != boot else max(last, now.last)
            on_disk = now.on_disk
        self._map[:] = _LAYOUT.pack(_MAGIC, identity, boot, marked_last, on_disk)

    def check_open(self) -> None:
        """Raises StoreError when the file was let go of."""
        if self._map.closed:
            raise StoreError(f"The token ledger beside {self._path} was closed.")

    @property
    def last(self) -> int:
        """The last entry that is known to have been committed."""
        return self._figures[_LAST]

    def check(self, last: int, marked: int | None = None) -> None:
        """Raises StoreError when the ledger ends before the mark. Called in every transaction.

        One that only looks sees the ledger as it was when it began: it states the mark as it was before that.
        """
        if marked is None:
            marked = self._figures[_LAST]
        if last < marked:
            raise self._problem(f"it ends at entry {last:,}, but had come to {marked:,}: an older copy")

    def advance(self, last: int) -> None:
        """Notes the last committed entry. After the commit, never before: a crash between must not raise an alarm."""
        if last > self._figures[_LAST]:
            self._figures[_LAST] = last

    def on_disk(self, last: int) -> None:
        """Notes that everything up to `last` has been synced."""
        self._figures[_ON_DISK] = max(last, self._figures[_ON_DISK])
        self._map.flush()

    def close(self) -> None:
        """Lets go of the file."""
        self._figures.release()
        self._map.close()

    def _problem(self, what: str) -> StoreError:
        return StoreError(
            f"The token ledger beside {self._path} was replaced: {what}.",
            hint=(
                "Spending would be forgotten, so nothing is admitted. Put the right file back; or, to start from "
                f"what is there all the same, remove {self._path}."
            ),
        )


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()[:16]
