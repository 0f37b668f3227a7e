"""Sessions on disk: each turn's end is written, so that a session goes on after eviction, restart or crash.

    SESSIONS/t-TENANT/s-SESSION/
        session    head (a JSON line) and conversation (zlib over JSON), replaced whole
        lock       held by whoever runs a turn on the session, in any process
        work       the session's private working directory

The head carries a version that grows with each save. A worker process with a copy in memory compares versions before
a turn: another worker may have gone on with the session meanwhile.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import threading
import time
import uuid
import zlib
from bisect import bisect_right
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from pydantic import TypeAdapter

from agentao_gov.clock import SYSTEM_CLOCK, Clock, Deadline
from agentao_gov.errors import SessionDamagedError, StoreError
from agentao_gov.governor.report import Mode
from agentao_gov.governor.types import Conversation, SessionKey
from agentao_gov.pool.types import SessionUsage

#: Hears the name of each step of a write, before it is taken: what the crash tests hang on to.
Step = Callable[[str], None]

_LOCK = "lock"


def nothing(_: str) -> None:
    """The step listener of everyday."""


@contextmanager
def as_store_error(what: str) -> Iterator[None]:
    """Turns the operating system's refusal into the error a user can act on; `what` is the beginning of its text."""
    try:
        yield
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else str(error)
        raise StoreError(
            f"{what}: {reason}.", hint="See `[state] dir`: its disk, its owner and its permissions.", retry_after_s=5.0
        ) from error


@contextmanager
def _reaching(session: SessionKey, path: Path) -> Iterator[None]:
    """As `as_store_error`; but what stands in the session's place will be refused for ever, and is its damage."""
    try:
        with as_store_error(f"Session {session} cannot be reached"):
            yield
    except StoreError as error:
        if not isinstance(error.__cause__, (IsADirectoryError, NotADirectoryError, FileExistsError)):
            raise
        raise SessionDamagedError(
            f"Something else stands where session {session} is kept: {error.__cause__}.",
            hint=f"Look at {path}, or delete the session.",
        ) from error.__cause__


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


_SCHEMA = "agentao-gov/session/1"
_FILE = "session"
_WORK = "work"
#: Directories on their way out; never a session's name, since those begin with `s-`.
_TRASH = "deleted-"
#: Longer names are replaced by their hash: file systems end at 255 bytes.
_NAME_MAX = 200
#: Tenants whose lists of sessions are remembered, some 0.7 MB each with 10,000 sessions.
_LISTED_MAX = 32
#: Coarser than any file system's clock, network ones included.
_TICK_NS = 2_000_000_000
#: Pauses between looks at a lock that another process holds.
_LOCK_PAUSE_S = (0.001, 0.05)


@dataclass(frozen=True, slots=True)
class SessionHead:
    """What is known of a session without reading its conversation."""

    key: SessionKey
    version: int
    user: str
    profile: str
    mode: Mode
    model: str
    #: Seconds since the epoch.
    created_at: float
    last_turn_at: float
    usage: SessionUsage


#: What reading a damaged head or conversation raises.
_WRONG = (ValueError, KeyError, TypeError, RecursionError, zlib.error)
_HEAD = TypeAdapter(SessionHead)


class SessionArchive:
    """The sessions of one state directory. Thread-safe, and shared by all worker processes.

    Every method blocks for file access and raises StoreError when the disk refuses.
    """

    def __init__(self, root: Path, *, clock: Clock = SYSTEM_CLOCK, step: Step = nothing) -> None:
        """`root` is made private. `clock`: time for what is kept. `step` hears each step of a write."""
        self.root = root
        self._clock = clock
        self._step = step
        self._lock = threading.Lock()
        #: Sessions on disk as this process knows them, under `_lock`; None: not counted yet.
        self._known: set[Path] | None = None
        #: Tenant → when its directory was last changed, and the sessions in it, sorted; under `_lock`.
        self._listed: dict[str, tuple[int, list[str]]] = {}
        #: Those saved since the sweep under way began, under `_lock`.
        self._fresh: set[Path] = set()
        with as_store_error(f"The session directory {root} cannot be made"):
            private_dir(root)
            root.chmod(0o700)

    # -- one session -----------------------------------------------------------------------------------------------

    def hold(
        self, key: SessionKey, deadline: Deadline, given_up: Callable[[], bool] = lambda: False
    ) -> SessionDir | None:
        """Takes the session `key` for one turn, waiting while another process has it.

        None: `deadline` passed, or `given_up`, which is asked between tries, said yes.
        """
        path = self._path(key)
        pause_s, pause_s_max = _LOCK_PAUSE_S
        while True:
            with _reaching(key, path):
                held = SessionDir.try_hold(path)
            if held is not None or deadline.passed or given_up():
                return held
            time.sleep(min(pause_s, deadline.remaining_s()))
            pause_s = min(pause_s * 2, pause_s_max)

    def version(self, held: SessionDir) -> int:
        """The version on disk of the session that is `held`, 0 where nothing was saved yet."""
        with as_store_error("A session cannot be read"):
            line = held.read_head(_FILE)
        if line is None:
            return 0
        with _as_damage("What is kept of a session", "Delete the session, or restore it from a backup."):
            return int(json.loads(line)["version"])

    def load(self, key: SessionKey) -> tuple[SessionHead, Conversation] | None:
        """The session `key` as its last turn left it; None where there is none. Needs no lock: files change whole."""
        try:
            with _reaching(key, self._path(key)):
                content = self._file(key).read_bytes()
        except StoreError as error:
            if isinstance(error.__cause__, FileNotFoundError):
                return None
            raise
        line, _, body = content.partition(b"\n")
        with self._damage_of(key):
            return _read_head(line, key), Conversation.of(json.loads(zlib.decompress(body)))

    def head(self, key: SessionKey) -> SessionHead | None:
        """What is known of the session `key` without its conversation; None where there is none."""
        try:
            with _reaching(key, self._path(key)), self._file(key).open("rb") as file:
                line = file.readline()
        except StoreError as error:
            if isinstance(error.__cause__, FileNotFoundError):
                return None
            raise
        with self._damage_of(key):
            return _read_head(line, key)

    def save(self, held: SessionDir, head: SessionHead, conversation: Conversation) -> SessionHead:
        """Writes `head` and `conversation` to the session that is `held`; returns the head with its new version."""
        saved = SessionHead(**{**_fields(head), "version": self.version(held) + 1})
        line = json.dumps({"schema": _SCHEMA, **asdict(saved)}, separators=(",", ":"))
        # Not `asdict`, which copies every message before it is written: a tenth of a turn's CPU.
        fields = {name: getattr(conversation, name) for name in Conversation.__dataclass_fields__}
        body = json.dumps(fields, separators=(",", ":"), ensure_ascii=False)
        # Level 1: 0.9 ms for 200 messages, a third of level 6, and 15 % larger.
        content = line.encode() + b"\n" + zlib.compress(body.encode("utf-8", "surrogatepass"), 1)
        with as_store_error(f"Session {head.key} cannot be saved"):
            held.replace(_FILE, content, self._step)
        path = self._path(head.key)
        with self._lock:
            # Deleted during its turn: what was written is gone with the old directory.
            if self._known is not None and path.exists():
                self._known.add(path)
                self._fresh.add(path)
        return saved

    def delete(self, key: SessionKey) -> bool:
        """Removes the session `key` with all its files, at once for every process. False: there was none."""
        return self._delete_path(self._path(key))

    def _delete_path(self, path: Path) -> bool:
        had_session = (path / _FILE).exists()
        trash = path.with_name(f"{_TRASH}{uuid.uuid4().hex}")
        with as_store_error(f"{path} cannot be deleted"):
            try:
                path.rename(trash)
            except FileNotFoundError:
                return False
        with self._lock:
            if self._known is not None:
                self._known.discard(path)
                self._fresh.discard(path)
        _remove(trash)
        return had_session

    def workdir(self, key: SessionKey) -> Path:
        """The private working directory of the session `key`, made if there is none."""
        with _reaching(key, self._path(key)):
            return private_dir(self._path(key) / _WORK)

    # -- all sessions ----------------------------------------------------------------------------------------------

    def count(self) -> int:
        """How many sessions are on disk; what other processes did shows after the next `sweep`."""
        with self._lock:
            if self._known is None:
                self._known = {file.parent for file in self._files("*")}
            return len(self._known)

    def page(self, tenant: str, limit: int, after: str | None = None) -> tuple[list[SessionHead], bool]:
        """Returns up to `limit` of a `tenant`'s sessions in the order of `place`, and whether there are more.

        `after`: the session id that the page before ended with, which may have been deleted since. A session that
        cannot be read is left out. Reads no more files than it returns sessions, and one.
        """
        directory, names = self.root / _name("t", tenant), self.places(tenant)
        found: list[SessionHead] = []
        for name in names[bisect_right(names, self.place(after)) if after is not None else 0 :]:
            head = self._head_at(directory / name / _FILE)
            if head is None or (head.key.tenant, self.place(head.key.session)) != (tenant, name):
                continue
            if len(found) == limit:
                return found, True
            found.append(head)
        return found, False

    def places(self, tenant: str) -> list[str]:
        """Returns the places of all of a `tenant`'s sessions, sorted; also of those whose first turn has not ended.

        Takes a look at one stamp where no session was added or removed since the last time.
        """
        directory = self.root / _name("t", tenant)
        with as_store_error(f"The sessions of tenant {tenant!r} cannot be listed"):
            try:
                stamp_ns = directory.stat().st_mtime_ns
                with self._lock:
                    known = self._listed.get(tenant)
                if known is not None and known[0] == stamp_ns:
                    return known[1]
                with os.scandir(directory) as entries:
                    names = sorted(entry.name for entry in entries if entry.name.startswith("s-"))
            except FileNotFoundError:
                return []
        with self._lock:
            self._listed.pop(tenant, None)
            # A second change within the same tick of the file system's clock would not show.
            if time.time_ns() - stamp_ns > _TICK_NS:
                self._listed[tenant] = stamp_ns, names
                while len(self._listed) > _LISTED_MAX:
                    del self._listed[next(iter(self._listed))]
        return names

    @staticmethod
    def place(session: str) -> str:
        """Returns what the id `session` is sorted by: stable, whatever is saved or deleted between two pages."""
        return _name("s", session)

    def sweep(self, retain_s: float, in_use: Callable[[SessionKey], bool] = lambda _: False) -> int:
        """Deletes sessions whose last turn is over `retain_s` seconds ago, and what crashes left; returns how many.

        A session that `in_use` says yes to is kept.
        """
        for trash in self.root.glob(f"*/{_TRASH}*"):
            _remove(trash)
        with self._lock:
            self._fresh = set()
        oldest = self._clock.time() - retain_s
        deleted = 0
        found: set[Path] = set()
        for file in list(self._files("*")):
            old = _modified_at(file) < oldest
            if old and (head := self._head_at(file)) is not None:
                old = head.last_turn_at < oldest and not in_use(head.key)
            if old and self._delete_unused(file.parent):
                deleted += 1
            else:
                found.add(file.parent)
        for path in self.root.glob("*/s-*"):
            # Opened, and no turn of it ever ended.
            if _modified_at(path) < oldest and not (path / _FILE).exists():
                self._delete_unused(path)
        with self._lock:
            # Not left to be counted by whoever asks next: that may be the event loop, and there may be 10,000.
            self._known = found | self._fresh
        return deleted

    def _delete_unused(self, path: Path) -> bool:
        with as_store_error(f"{path} cannot be locked"):
            held = SessionDir.try_hold(path)
        if held is None:
            return False
        try:
            return self._delete_path(path)
        finally:
            held.release()

    def _files(self, tenant_dir: str) -> Iterator[Path]:
        return self.root.glob(f"{tenant_dir}/s-*/{_FILE}")

    def _path(self, key: SessionKey) -> Path:
        return self.root / _name("t", key.tenant) / _name("s", key.session)

    def _file(self, key: SessionKey) -> Path:
        return self._path(key) / _FILE

    @staticmethod
    def _head_at(file: Path) -> SessionHead | None:
        """The head of a session, None where there is none or it cannot be read: `load` says why."""
        try:
            with file.open("rb") as opened:
                return _read_head(opened.readline())
        except (OSError, *_WRONG):
            return None

    def _damage_of(self, key: SessionKey) -> AbstractContextManager[None]:
        hint = f"Restore {self._file(key)} from a backup, or delete the session."
        return _as_damage(f"The archive of session {key}", hint)


def _name(kind: str, id: str) -> str:
    """A file name that cannot be a path, nor `.` or `..`, nor two ids' at once."""
    name = quote(id, safe=":")
    if len(name) > _NAME_MAX:
        return f"{kind}-%{hashlib.sha256(id.encode()).hexdigest()}"
    return f"{kind}-{name}"


@contextmanager
def _as_damage(what: str, hint: str) -> Iterator[None]:
    """Turns whatever JSON, compression and shapes can be wrong into the session's damage."""
    try:
        yield
    except _WRONG as error:
        raise SessionDamagedError(f"{what} is damaged: {type(error).__name__}: {error}.", hint=hint) from error


def _remove(path: Path) -> None:
    """Removes a directory, or what stands in the place of one; what cannot be removed is left for the next sweep."""
    shutil.rmtree(path, ignore_errors=True)
    with suppress(OSError):
        path.unlink(missing_ok=True)


def _modified_at(file: Path) -> float:
    try:
        return file.stat().st_mtime
    except (FileNotFoundError, NotADirectoryError):
        return 0.0


def _fields(head: SessionHead) -> dict[str, Any]:
    return {name: getattr(head, name) for name in SessionHead.__dataclass_fields__}


def _read_head(line: bytes, key: SessionKey | None = None) -> SessionHead:
    """Reads the head in a file's first line, of the session `key` if one is named. Raises one of `_WRONG`."""
    fields = json.loads(line)
    if not isinstance(fields, dict) or fields.pop("schema", None) != _SCHEMA:
        raise ValueError("its schema is another version's")
    head = _HEAD.validate_python(fields)
    if key is not None and head.key != key:
        raise ValueError(f"it is of session {head.key}")
    return head
