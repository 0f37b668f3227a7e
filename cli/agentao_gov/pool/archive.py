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
import heapq
import json
import os
import shutil
import threading
import time
import uuid
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from agentao_gov.clock import SYSTEM_CLOCK, Clock, Deadline
from agentao_gov.errors import StoreError
from agentao_gov.governor.report import Mode
from agentao_gov.governor.types import Conversation, SessionKey
from agentao_gov.pool.types import SessionUsage

__all__ = ["SessionArchive", "SessionDir", "SessionHead", "Step", "as_store_error", "nothing", "private_dir"]


# Private directories, a file replaced whole or not at all, and the lock that gives a session to one process.

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


_SCHEMA = "agentao-gov/session/1"
_FILE = "session"
_WORK = "work"
#: Directories on their way out; never a session's name, since those begin with `s-`.
_TRASH = "deleted-"
#: Longer names are replaced by their hash: file systems end at 255 bytes.
_NAME_MAX = 200
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
            with as_store_error(f"Session {key} cannot be locked"):
                held = SessionDir.try_hold(path)
            if held is not None or deadline.passed or given_up():
                return held
            time.sleep(min(pause_s, deadline.remaining_s()))
            pause_s = min(pause_s * 2, pause_s_max)

    def version(self, held: SessionDir) -> int:
        """The version on disk of the session that is `held`, 0 where nothing was saved yet."""
        with as_store_error("A session cannot be read"):
            line = held.read_head(_FILE)
        return 0 if line is None else int(json.loads(line)["version"])

    def load(self, key: SessionKey) -> tuple[SessionHead, Conversation] | None:
        """The session `key` as its last turn left it; None where there is none. Needs no lock: files change whole."""
        try:
            with as_store_error(f"Session {key} cannot be read"):
                content = self._file(key).read_bytes()
        except StoreError as error:
            if isinstance(error.__cause__, FileNotFoundError):
                return None
            raise
        line, _, body = content.partition(b"\n")
        try:
            return _read_head(line), Conversation(**json.loads(zlib.decompress(body)))
        except (ValueError, KeyError, TypeError, zlib.error) as error:
            raise StoreError(
                f"The archive of session {key} is damaged: {error}.",
                hint=f"Restore {self._file(key)} from a backup, or delete the session.",
            ) from error

    def head(self, key: SessionKey) -> SessionHead | None:
        """What is known of the session `key` without its conversation; None where there is none."""
        return self._head_at(self._file(key))

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
        shutil.rmtree(trash, ignore_errors=True)
        return had_session

    def workdir(self, key: SessionKey) -> Path:
        """The private working directory of the session `key`, made if there is none."""
        with as_store_error(f"The working directory of session {key} cannot be made"):
            return private_dir(self._path(key) / _WORK)

    # -- all sessions ----------------------------------------------------------------------------------------------

    def count(self) -> int:
        """How many sessions are on disk; what other processes did shows after the next `sweep`."""
        with self._lock:
            if self._known is None:
                self._known = {file.parent for file in self._files("*")}
            return len(self._known)

    def heads(self, tenant: str, limit: int = 1000) -> tuple[int, list[SessionHead]]:
        """How many sessions `tenant` has on disk, and at most `limit` of them, the latest first."""
        stamps = _stamps(self.root / _name("t", tenant))
        latest = heapq.nlargest(limit, stamps)
        return len(stamps), [head for _, file in latest if (head := self._head_at(Path(file))) is not None]

    def sweep(self, retain_s: float, in_use: Callable[[SessionKey], bool] = lambda _: False) -> int:
        """Deletes sessions whose last turn is over `retain_s` seconds ago, and what crashes left; returns how many.

        A session that `in_use` says yes to is kept.
        """
        for trash in self.root.glob(f"*/{_TRASH}*"):
            shutil.rmtree(trash, ignore_errors=True)
        with self._lock:
            self._fresh = set()
        oldest = self._clock.time() - retain_s
        deleted = 0
        found: set[Path] = set()
        for file in list(self._files("*")):
            head = self._head_at(file) if _modified_at(file) < oldest else None
            old = head is not None and head.last_turn_at < oldest and not in_use(head.key)
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

    def _head_at(self, file: Path) -> SessionHead | None:
        try:
            with file.open("rb") as opened:
                return _read_head(opened.readline())
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (ValueError, KeyError, TypeError):
            # `load` says what is wrong with it to whoever wants to go on with it.
            return None


def _name(kind: str, id: str) -> str:
    """A file name that cannot be a path, nor `.` or `..`, nor two ids' at once."""
    name = quote(id, safe=":")
    if len(name) > _NAME_MAX:
        return f"{kind}-%{hashlib.sha256(id.encode()).hexdigest()}"
    return f"{kind}-{name}"


def _stamps(tenant_dir: Path) -> list[tuple[float, str]]:
    """When each session of a tenant was saved last, and its file. A tenth of a glob's time: 20 ms for 10,000."""
    stamps = []
    with suppress(FileNotFoundError):
        for entry in os.scandir(tenant_dir):
            if entry.name.startswith("s-"):
                file = f"{entry.path}/{_FILE}"
                with suppress(OSError):
                    stamps.append((os.stat(file).st_mtime, file))  # noqa: PTH116 -- a Path each costs three times that
    return stamps


def _modified_at(file: Path) -> float:
    try:
        return file.stat().st_mtime
    except FileNotFoundError:
        return 0.0


def _fields(head: SessionHead) -> dict[str, Any]:
    return {name: getattr(head, name) for name in SessionHead.__dataclass_fields__}


def _read_head(line: bytes) -> SessionHead:
    fields = json.loads(line)
    if fields.pop("schema") != _SCHEMA:
        raise ValueError("its schema is another version's")
    return SessionHead(**{**fields, "key": SessionKey(**fields["key"]), "usage": SessionUsage(**fields["usage"])})
