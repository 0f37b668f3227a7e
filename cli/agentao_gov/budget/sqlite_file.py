"""The open ledger file: is it still the one at the path, is all of it on the disk, does it give back unused space."""

from __future__ import annotations

import os
import sqlite3
import threading
import time
from pathlib import Path

from agentao_gov.budget.high_water import Mark
from agentao_gov.budget.sqlite_header import FileHeader, Identity, identity
from agentao_gov.budget.sqlite_schema import Synchronous, connect, patiently, raise_counter, store_error
from agentao_gov.errors import StoreError

__all__ = ["LedgerFile"]

#: How often the path is compared with the open file: often enough to stop within a call, rare enough to cost nothing.
_LOOK_S = 0.05
#: Unused pages given back to the file system per look, so that nobody waits for long; and how many are kept.
_FREED_PAGES = 256
_SPARE_PAGES = 256


#: Raised in every child: to compare it costs less than to ask the kernel who we are, in every step.
_forks = 0


def _count_fork() -> None:
    global _forks
    _forks += 1


os.register_at_fork(after_in_child=_count_fork)


class LedgerFile:
    """A second connection to the file, for what may take time and must not be done on a turn's."""

    def __init__(self, path: Path, synchronous: Synchronous, lock_wait_s: float) -> None:
        self._path = path
        self._lock_wait_s = lock_wait_s
        self._forks = _forks
        #: One thread on the connection at a time.
        self.lock = threading.Lock()
        self.sql = connect(path, synchronous, lock_wait_s)
        self._header = FileHeader(path)
        self._log_path = path.with_name(f"{path.name}-wal")
        #: The write-ahead log's identity, and the least that the file's change counter can be: as of the last sync.
        self._log: Identity | None = None
        self._counter = 0
        #: Set once it was found to be another's file: what SQLite writes to it later hides that.
        self._lost = ""
        #: When the files are looked at again, on the monotonic clock.
        self._look_again_s = 0.0

    @property
    def forked(self) -> bool:
        """Whether this is a child of the process that opened the file."""
        return _forks != self._forks

    def check_process(self) -> None:
        """Raises StoreError after a fork. Before any lock: a thread that is not in the child may have held it."""
        if _forks != self._forks:
            raise StoreError("The token ledger was opened before a fork.", hint="Open it in the child process.")

    def check(self) -> None:
        """Raises StoreError when what is at the path is no longer the file that is open."""
        now_s = time.monotonic()
        if now_s < self._look_again_s:
            return
        self._look()
        self._look_again_s = now_s + _LOOK_S

    def _look(self) -> None:
        if not self._lost:
            try:
                self._lost = self._problem()
            except OSError as error:
                raise store_error(self._path, error) from error
        if self._lost:
            raise StoreError(
                f"The token ledger {self._path} {self._lost} while it was open.", hint="Restart to use the new file."
            )

    def _problem(self) -> str:
        if identity(self._path) != self._header.identity:
            return "was replaced"
        # Twice, because SQLite may be writing the page at this moment.
        if self._header.counter() < self._counter and self._header.counter() < self._counter:
            return "was written over with an older copy"
        if self._log is not None and (not self._log_path.exists() or identity(self._log_path) != self._log):
            return "lost its write-ahead log"
        return ""

    def sync(self, mark: Mark) -> None:
        """Moves the log into the file, so that no turn waits for the disk meanwhile; the mark may rely on it then."""

        # Before anything is written to the file, which might cover what shows that it is not ours.
        self._look()

        def move() -> tuple[int, int, int, int]:
            raise_counter(self.sql)
            (last,) = self.sql.execute("SELECT max(number) FROM journal").fetchone()
            return (last, *self.sql.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone())

        try:
            last, busy, pages, moved = patiently(move, self._lock_wait_s)
        except sqlite3.Error as error:
            raise store_error(self._path, error) from error
        if not busy and pages == moved:
            try:
                self._counter = max(self._counter, self._header.counter())
                self._log = identity(self._log_path)
                mark.on_disk(last)
            except (OSError, ValueError, TypeError) as error:
                raise store_error(self._path, error) from error

    def give_back(self) -> None:
        """Returns some unused pages to the file system: a file that once was large does not stay so."""
        (unused,) = self.sql.execute("PRAGMA freelist_count").fetchone()
        if unused > _SPARE_PAGES:
            count = min(_FREED_PAGES, unused - _SPARE_PAGES)
            # As a script: a plain statement is not run to its end, and frees one page.
            patiently(lambda: self.sql.executescript(f"PRAGMA incremental_vacuum({count})"), self._lock_wait_s)
