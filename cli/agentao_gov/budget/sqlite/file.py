"""The file of a SQLite ledger: its tables, how it is opened, and whether it is still the one at the path."""

from __future__ import annotations

import contextlib
import errno
import os
import random
import secrets
import sqlite3
import struct
import threading
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Literal, TypeVar

from agentao_gov.budget import failpoints, journal
from agentao_gov.budget.high_water import HighWater
from agentao_gov.budget.journal import GENESIS, JournalEntry
from agentao_gov.budget.sqlite.migration import FROM_LAYOUT, take_over
from agentao_gov.errors import StoreError

# ── was it written over in place? ─────────────────────────────────────────────────────────────────

#: Device and inode.
Identity = tuple[int, int]

#: SQLite's file format: a 4-byte big-endian counter, 24 bytes into the file.
_COUNTER = struct.Struct(">I")
_COUNTER_AT = 24

#: One descriptor a file, and how many use it. Re-entrant: garbage may be collected while it is held.
_LOCK = threading.RLock()
_shared: dict[Identity, tuple[int, int]] = {}


class FileHeader:
    """The first page of the file as it is on disk, read beside SQLite. Thread-safe.

    `cp old.db ledger.db` keeps the file's name and identity, and SQLite goes on with what it remembers of it. But the
    copy brings its own change counter: one that is lower than it was can only come from an older file. The counter is
    read through a descriptor that all openings of the file in this process share.

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


# ── tables and opening ────────────────────────────────────────────────────────────────────────────

T = TypeVar("T")

Synchronous = Literal["NORMAL", "FULL"]

#: Two threads that open the same new file: the second finds it there.
_TOUCHING = threading.Lock()

#: Marks the file as ours ("AGVL"), and the layout below.
_APPLICATION_ID = 0x4147564C
_LAYOUT = 4

#: Pages in the write-ahead log before the writer moves them into the file: rare enough to stay out of the p99.
_CHECKPOINT_PAGES = 8_000

# A balance's number is never given to another one, although balances go: the journal knows them by it.
_TABLES = """
CREATE TABLE meta (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE owners (
    id TEXT PRIMARY KEY, pid INTEGER NOT NULL, started INTEGER NOT NULL, boot TEXT NOT NULL,
    pid_namespace TEXT NOT NULL, heartbeat INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE balances (
    id INTEGER PRIMARY KEY AUTOINCREMENT, kind TEXT NOT NULL, key TEXT NOT NULL, timezone TEXT NOT NULL,
    window TEXT NOT NULL, limit_tokens INTEGER, granted INTEGER NOT NULL DEFAULT 0,
    used INTEGER NOT NULL DEFAULT 0, reserved INTEGER NOT NULL DEFAULT 0, estimated INTEGER NOT NULL DEFAULT 0,
    cost INTEGER NOT NULL DEFAULT 0, unpriced INTEGER NOT NULL DEFAULT 0, warned INTEGER NOT NULL DEFAULT 0,
    UNIQUE (kind, key, timezone, window)) STRICT;
CREATE TABLE reservations (
    id TEXT PRIMARY KEY, owner TEXT NOT NULL, balances TEXT NOT NULL, state TEXT NOT NULL,
    held_prompt INTEGER NOT NULL, held_output INTEGER NOT NULL, used INTEGER NOT NULL DEFAULT 0,
    estimated INTEGER NOT NULL DEFAULT 0, cost INTEGER NOT NULL DEFAULT 0, unpriced INTEGER NOT NULL DEFAULT 0,
    price_prompt INTEGER, price_completion INTEGER) STRICT, WITHOUT ROWID;
CREATE INDEX held_reservations ON reservations (owner) WHERE state IN ('reserved', 'dispatched');
CREATE TABLE waiters (
    number INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE, owner TEXT NOT NULL,
    request TEXT NOT NULL) STRICT;
CREATE TABLE served (
    tenant TEXT NOT NULL, user TEXT NOT NULL, number INTEGER NOT NULL,
    PRIMARY KEY (tenant, user)) STRICT, WITHOUT ROWID;
CREATE TABLE journal (
    number INTEGER PRIMARY KEY, at_ms INTEGER NOT NULL, body TEXT NOT NULL, hash BLOB NOT NULL) STRICT;
CREATE TABLE checkpoint (
    number INTEGER NOT NULL, hash BLOB NOT NULL, body TEXT NOT NULL, size INTEGER NOT NULL) STRICT;
"""


def connect(path: Path, synchronous: Synchronous, lock_wait_s: float) -> sqlite3.Connection:
    """Opens the file with our settings. The caller serialises its use; `timeout=0`: we wait for locks ourselves."""
    # The first statement reads the file, and the one who opens or closes it at this moment may hold all of it.
    return patiently(lambda: _connect(path, synchronous), lock_wait_s)


def _connect(path: Path, synchronous: Synchronous) -> sqlite3.Connection:
    connection = sqlite3.connect(path, timeout=0, isolation_level=None, check_same_thread=False, cached_statements=256)
    connection.execute(f"PRAGMA synchronous={synchronous}")
    connection.execute(f"PRAGMA wal_autocheckpoint={_CHECKPOINT_PAGES}")
    connection.execute("PRAGMA journal_size_limit=67108864")
    connection.execute("PRAGMA cell_size_check=ON")
    connection.execute("PRAGMA trusted_schema=OFF")
    # Some builds overwrite what is deleted with zeros; there is nothing here that the rows beside it do not tell.
    connection.execute("PRAGMA secure_delete=OFF")
    return connection


def create(path: Path, now_ms: int, lock_wait_s: float) -> None:
    """Makes the file and its tables where there are none, and takes over what the version before wrote.

    The file is private from the first moment. `now_ms`, Unix milliseconds, is the time of the first entry.
    """
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    _touch(path)
    for ours in (path, path.with_name(f"{path.name}-wal"), path.with_name(f"{path.name}-shm")):
        # One that was there before may be open to others. A file of somebody else's cannot be closed: refused.
        with contextlib.suppress(FileNotFoundError):
            if ours.stat().st_mode & 0o077:
                ours.chmod(0o600)
    connection = connect(path, "FULL", lock_wait_s)
    try:
        # Half of SQLite's default: rows are small, and a commit writes whole pages. Only before the first table.
        connection.execute("PRAGMA page_size=2048")
        patiently(lambda: connection.execute("PRAGMA auto_vacuum=INCREMENTAL"), lock_wait_s)
        patiently(lambda: connection.execute("PRAGMA journal_mode=WAL").fetchone(), lock_wait_s)
        begin_immediate(connection, lock_wait_s)
        layout = connection.execute("PRAGMA user_version").fetchone()[0]
        if layout == 0:
            _fill(connection, path, now_ms)
        elif layout == FROM_LAYOUT and connection.execute("PRAGMA application_id").fetchone()[0] == _APPLICATION_ID:
            take_over(connection)
            connection.execute(f"PRAGMA user_version={_LAYOUT}")
            failpoints.reach("before_takeover_commit")
        connection.execute("COMMIT")
        check_layout(connection, path)
    finally:
        connection.close()


def _touch(path: Path) -> None:
    """Makes the empty file, if there is none.

    One that is there is never opened but by SQLite: closing any descriptor of a file lets go of all locks that this
    process has on it. A neighbour that ends would then take itself for the last one and remove the log under those
    who are still writing to it: what they write from then on is lost (`test_a_second_opening_keeps_the_locks`).
    """
    with _TOUCHING:
        if not path.exists():
            os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        elif not os.access(path, os.R_OK | os.W_OK):
            # SQLite would open it to read, and leave a log beside it that nobody may write to later either.
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))


def _fill(connection: sqlite3.Connection, path: Path, now_ms: int) -> None:
    if connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
        raise StoreError(f"{path} is a database of something else.", hint="Name another file in [budget] path.")
    for statement in _TABLES.split(";"):
        if statement.strip():
            connection.execute(statement)
    ledger_id = secrets.token_hex(16)
    connection.execute("INSERT INTO meta VALUES ('ledger_id', ?)", (ledger_id,))
    text = journal.encode(JournalEntry(now_ms, "open", "", "", (), note=ledger_id))
    connection.execute("INSERT INTO journal VALUES (1, ?, ?, ?)", (now_ms, text, journal.chain(GENESIS, text)))
    connection.execute("INSERT INTO checkpoint VALUES (0, ?, '', 0)", (GENESIS,))
    connection.execute(f"PRAGMA application_id={_APPLICATION_ID}")
    connection.execute(f"PRAGMA user_version={_LAYOUT}")


def check_layout(connection: sqlite3.Connection, path: Path) -> None:
    """Raises StoreError for a file that is no ledger, or one of another layout. Only reads."""
    application = connection.execute("PRAGMA application_id").fetchone()[0]
    layout = connection.execute("PRAGMA user_version").fetchone()[0]
    if application == _APPLICATION_ID and layout == FROM_LAYOUT:
        raise StoreError(
            f"{path} was written by an older agentao-gov.",
            hint="`agentao-gov budget show`, or any start of the service, takes it over; no balance changes.",
        )
    if application != _APPLICATION_ID or layout != _LAYOUT:
        raise StoreError(
            f"{path} is no token ledger of this version (application {application:#x}, layout {layout}).",
            hint="Name another file in [budget] path, or use the agentao-gov that wrote it.",
        )


def raise_counter(connection: sqlite3.Connection) -> None:
    """Writes the first page anew, with what it says already: then SQLite raises the file's change counter."""
    connection.execute(f"PRAGMA user_version={_LAYOUT}")


def begin_immediate(connection: sqlite3.Connection, lock_wait_s: float) -> None:
    """Takes the write lock, waiting for it; SQLite's own waiting sleeps up to 100 ms at a time."""
    try:
        connection.execute("BEGIN IMMEDIATE")
    except sqlite3.OperationalError as error:
        if not is_busy(error):
            raise
        patiently(lambda: connection.execute("BEGIN IMMEDIATE"), lock_wait_s)


def patiently(action: Callable[[], T], lock_wait_s: float) -> T:
    """Repeats what another process's lock keeps from happening, until it happens or the time is up."""
    give_up = time.monotonic() + lock_wait_s
    pause_s = 0.001
    while True:
        try:
            return action()
        except sqlite3.OperationalError as error:
            if not is_busy(error) or time.monotonic() >= give_up:
                raise
        # Another process writes, for some 0.05 ms. Whoever asks again at once takes the file from it between two of its
        # steps, and both read their pages anew: with eight processes that halves what they do together
        # (benchmarks/ledger.md). Uneven, so that waiters do not march in step.
        time.sleep(pause_s * random.uniform(0.5, 1.0))  # noqa: S311 - no secret
        pause_s = min(0.02, pause_s * 2)


def is_busy(error: sqlite3.OperationalError) -> bool:
    """Whether another process's lock is in the way, and nothing else."""
    return error.sqlite_errorcode & 0xFF in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)


#: What to do about a file that stays locked.
LOCKED_HINT = "Another program holds the file's lock; find it with `fuser`."
_HINTS = {
    sqlite3.SQLITE_BUSY: LOCKED_HINT,
    sqlite3.SQLITE_READONLY: "Make the file and its directory writable.",
    sqlite3.SQLITE_CANTOPEN: "Check that the directory exists and belongs to this user.",
    sqlite3.SQLITE_PERM: "Make the file and its directory accessible to this user.",
    sqlite3.SQLITE_FULL: "Free some space on the disk.",
    sqlite3.SQLITE_IOERR: "Look at the disk: it may be full, or failing.",
    sqlite3.SQLITE_CORRUPT: "Run `agentao-gov budget verify`, and put a sound copy back.",
    sqlite3.SQLITE_NOTADB: "Run `agentao-gov budget verify`, and put a sound copy back.",
}


def store_error(path: Path, error: Exception) -> StoreError:
    """What a failure of the file means to the operator."""
    code = getattr(error, "sqlite_errorcode", None)
    hint = _HINTS.get(code & 0xFF) if isinstance(code, int) else None
    what = str(error).rstrip(".")
    if isinstance(error, PermissionError):
        hint, what = _HINTS[sqlite3.SQLITE_PERM], os.strerror(errno.EACCES)
    return StoreError(f"The token ledger {path} cannot be used: {what}.", hint=hint)


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

    def sync(self, high_water: HighWater) -> None:
        """Moves the log into the file, so that no turn waits for the disk meanwhile, and tells the high-water mark."""

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
                high_water.on_disk(last)
            except (OSError, ValueError, TypeError) as error:
                raise store_error(self._path, error) from error

    def give_back(self) -> None:
        """Returns some unused pages to the file system: a file that once was large does not stay so."""
        (unused,) = self.sql.execute("PRAGMA freelist_count").fetchone()
        if unused > _SPARE_PAGES:
            count = min(_FREED_PAGES, unused - _SPARE_PAGES)
            # As a script: a plain statement is not run to its end, and frees one page.
            patiently(lambda: self.sql.executescript(f"PRAGMA incremental_vacuum({count})"), self._lock_wait_s)
