"""Sessions on disk: whole or not at all, one turn at a time over all processes, gone when deleted."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from agentao_gov.clock import Deadline
from agentao_gov.errors import SessionDamagedError, StoreError
from agentao_gov.governor.types import Conversation, SessionKey
from agentao_gov.pool import SessionArchive, SessionHead, SessionUsage
from agentao_gov.pool.archive import SessionDir
from tests.support.clock import FakeClock

KEY = SessionKey("acme", "s1")
TALK = Conversation(
    messages=(
        {"role": "user", "content": "Grüße, 世界 \ud83d"},
        {"role": "assistant", "content": None, "tool_calls": []},
    ),
    todos=({"content": "go on", "status": "pending"},),
    active_skills=("pdf",),
    anchor={"prompt_tokens": 12, "messages": 1},
)

#: Every point of a write at which the power can go.
STEPS = ("create", "write first half", "write second half", "sync file", "rename", "done")


def a_head(key: SessionKey = KEY, last_turn_at: float = 1_790_000_000.0) -> SessionHead:
    return SessionHead(
        key, 0, "ann", "qa", "in-process", "simulated", 1_790_000_000.0, last_turn_at, SessionUsage(1, 2)
    )


def saved(archive: SessionArchive, head: SessionHead, talk: Conversation = TALK) -> SessionHead:
    held = hold(archive, head.key)
    try:
        return archive.save(held, head, talk)
    finally:
        held.release()


def hold(archive: SessionArchive, key: SessionKey = KEY) -> SessionDir:
    held = archive.hold(key, Deadline.after(5))
    assert held is not None
    return held


@pytest.fixture
def archive(tmp_path: Path) -> SessionArchive:
    return SessionArchive(tmp_path / "sessions")


def test_a_session_comes_back_as_it_was(archive: SessionArchive) -> None:
    """Messages in every script, to-dos, skills, the token anchor, and what is known of it."""
    head = saved(archive, a_head())

    loaded = archive.load(KEY)

    assert loaded == (head, TALK)
    assert archive.head(KEY) == head
    assert head.version == 1


def test_versions_grow_with_each_save(archive: SessionArchive) -> None:
    """That is how a worker finds out that another one went on."""
    saved(archive, a_head())

    head = saved(archive, a_head())

    held = hold(archive)
    assert head.version == archive.version(held) == 2
    held.release()


def test_what_was_never_saved_is_not_there(archive: SessionArchive) -> None:
    """No file, no session, version 0."""
    assert archive.load(KEY) is None
    assert archive.head(KEY) is None
    assert not archive.delete(KEY)
    held = hold(archive)
    assert archive.version(held) == 0
    held.release()


@pytest.mark.parametrize("session", [".", "..", "a:b", "x" * 128, "s/../../evil", "Ü" * 100, "%2e", "lock"])
def test_no_session_id_is_a_path(archive: SessionArchive, session: str) -> None:
    """Whatever the id, its files lie below the root, and are its own."""
    key = SessionKey("../acme", session)

    saved(archive, a_head(key))

    assert [head.key for head in archive.page("../acme", 10)[0]] == [key]
    assert archive.count() == 1
    assert all(path.name.startswith("t-") for path in archive.root.iterdir())
    assert [path.name for path in archive.root.parent.iterdir()] == ["sessions"]


def test_two_tenants_have_two_sessions_of_one_name(archive: SessionArchive) -> None:
    """Neither sees the other's."""
    other = SessionKey("globex", KEY.session)
    saved(archive, a_head())

    saved(archive, a_head(other), Conversation())

    assert archive.page("acme", 10) == ([archive.head(KEY)], False)
    assert archive.delete(other)
    assert archive.load(KEY) is not None


def test_the_lock_keeps_the_second_holder_out(archive: SessionArchive) -> None:
    """Until the first gives it back, for threads and processes alike."""
    first = hold(archive)

    assert archive.hold(KEY, Deadline.after(0.02)) is None
    first.release()

    hold(archive).release()


def test_waiting_for_the_lock_can_be_given_up(archive: SessionArchive) -> None:
    """A client that leaves does not wait on."""
    first = hold(archive)

    assert archive.hold(KEY, Deadline.never(), lambda: True) is None

    first.release()


def test_a_dead_holder_holds_nothing(archive: SessionArchive) -> None:
    """The lock dies with its process."""
    code = f"""
        import os, sys
        from pathlib import Path
        from agentao_gov.clock import Deadline
        from agentao_gov.governor.types import SessionKey
        from agentao_gov.pool.archive import SessionArchive
        held = SessionArchive(Path({str(archive.root)!r})).hold(SessionKey("acme", "s1"), Deadline.after(5))
        print("held", flush=True)
        sys.stdin.read()
    """
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "held\n"
        assert archive.hold(KEY, Deadline.after(0)) is None

        child.kill()
        child.wait()

    held = archive.hold(KEY, Deadline.after(10))
    assert held is not None
    held.release()


def test_what_a_turn_writes_after_its_session_was_deleted_is_lost(archive: SessionArchive) -> None:
    """The turn's lock is of the old directory: a new session of the same name stays as it is."""
    saved(archive, a_head())
    old = hold(archive)

    assert archive.delete(KEY)
    saved(archive, a_head(), Conversation())
    with pytest.raises(StoreError):
        archive.save(old, a_head(), TALK)
    old.release()

    loaded = archive.load(KEY)
    assert loaded is not None
    assert list(loaded[1].messages) == []


def test_deleting_removes_the_working_directory_too(archive: SessionArchive) -> None:
    """Nothing of the session is left below the root."""
    saved(archive, a_head())
    (archive.workdir(KEY) / "notes").mkdir()
    (archive.workdir(KEY) / "notes" / "secret.txt").write_text("secret")

    assert archive.delete(KEY)

    assert [path for path in archive.root.rglob("*") if path.is_file()] == []
    assert archive.count() == 0


def test_sessions_leave_after_their_retention(tmp_path: Path) -> None:
    """Those not used for so long, unless they are in memory; with what a crash left of deleted and of unused ones."""
    clock = FakeClock()
    archive = SessionArchive(tmp_path / "sessions", clock=clock)
    for name, age_s in (("old", 100), ("used", 100), ("young", 10)):
        key = SessionKey("acme", name)
        saved(archive, a_head(key, clock.time() - age_s))
        os.utime(archive.root / "t-acme" / f"s-{name}" / "session", (clock.time() - age_s,) * 2)
    (archive.root / "t-acme" / "deleted-0").mkdir()
    archive.workdir(SessionKey("acme", "empty"))
    os.utime(archive.root / "t-acme" / "s-empty", (clock.time() - 100,) * 2)

    before = archive.count()
    deleted = archive.sweep(50, lambda key: key.session == "used")

    assert (before, deleted, archive.count()) == (3, 1, 2)
    assert sorted(path.name for path in (archive.root / "t-acme").iterdir()) == ["s-used", "s-young"]


def body(conversation: Any) -> bytes:
    """The second line of a session's file."""
    return zlib.compress(json.dumps(conversation).encode(), 1)


def rewritten(file: Path, **changes: Any) -> bytes:
    """The file with some of its head's fields changed."""
    line, _, rest = file.read_bytes().partition(b"\n")
    return json.dumps({**json.loads(line), **changes}).encode() + b"\n" + rest


EMPTY: dict[str, Any] = {"messages": [], "todos": [], "active_skills": [], "anchor": None}
#: What may stand in a session's file, whoever wrote it.
DAMAGES: dict[str, Callable[[Path], bytes]] = {
    "truncated": lambda file: file.read_bytes()[:-10],
    "empty": lambda _: b"",
    "garbage": lambda _: bytes(range(256)),
    "nested": lambda _: b"[" * 100_000,
    "no object": lambda _: b"7\n",
    "other schema": lambda file: rewritten(file, schema="agentao-gov/session/2"),
    "version of words": lambda file: rewritten(file, version="seven"),
    "no version": lambda file: rewritten(file, version=None),
    "usage of a list": lambda file: rewritten(file, usage=[]),
    "another session's": lambda file: rewritten(file, key={"tenant": "globex", "session": "s1"}),
    "body of a number": lambda file: file.read_bytes().partition(b"\n")[0] + b"\n" + body(7),
    "messages of numbers": lambda file: (
        file.read_bytes().partition(b"\n")[0] + b"\n" + body({**EMPTY, "messages": [1]})
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_an_error_of_its_session_alone(archive: SessionArchive, damage: str) -> None:
    """It names the file, promises nothing by waiting, and lets the session be deleted; others are listed and go on."""
    saved(archive, a_head())
    other = saved(archive, a_head(SessionKey("acme", "s2")))
    file = archive.root / "t-acme" / "s-s1" / "session"
    file.write_bytes(DAMAGES[damage](file))

    with pytest.raises(SessionDamagedError, match="damaged") as error:
        archive.load(KEY)

    assert str(file) in str(error.value)
    assert error.value.retry_after_s is None
    assert other in archive.page("acme", 10)[0]
    assert archive.delete(KEY)
    assert archive.load(KEY) is None


@pytest.mark.parametrize("what", ["session", "directory"])
def test_what_stands_in_a_session_s_place_is_that_session_s_damage(archive: SessionArchive, what: str) -> None:
    """A directory for its file, a file for its directory: no turn, no endless waiting, and it can be deleted."""
    other = saved(archive, a_head(SessionKey("acme", "s2")))
    place = archive.root / "t-acme" / "s-s1"
    if what == "session":
        (place / "session").mkdir(parents=True)
    else:
        place.write_text("")

    with pytest.raises(SessionDamagedError):
        archive.load(KEY)
    with pytest.raises(SessionDamagedError):
        archive.head(KEY)
    if what == "directory":
        with pytest.raises(SessionDamagedError):
            archive.hold(KEY, Deadline.after(0))
    assert archive.page("acme", 10) == ([other], False)
    archive.delete(KEY)
    assert not place.exists()
    assert archive.load(KEY) is None


def test_pages_tell_each_session_once_whatever_happens_between_them(archive: SessionArchive) -> None:
    """One that is saved anew does not move, one that is deleted is still the place to go on from."""
    ids = [f"s{n:03}" for n in range(25)]
    for session in ids:
        saved(archive, a_head(SessionKey("acme", session)))

    told: list[str] = []
    after, more = None, True
    while more:
        heads, more = archive.page("acme", 10, after)
        told += [head.key.session for head in heads]
        after = told[-1]
        archive.delete(SessionKey("acme", after))
        saved(archive, a_head(SessionKey("acme", ids[0])))

    assert told == ids
    assert len(archive.places("acme")) == 22


def test_a_list_knows_at_once_what_another_process_added_or_removed(archive: SessionArchive) -> None:
    """Also where the list was remembered, long after the last change."""
    saved(archive, a_head())
    directory = archive.root / "t-acme"
    os.utime(directory, (1e9, 1e9))
    remembered = [archive.places("acme") for _ in range(2)]

    neighbour = SessionArchive(archive.root)
    saved(neighbour, a_head(SessionKey("acme", "s2")))
    added = archive.places("acme")
    neighbour.delete(KEY)

    assert remembered == [["s-s1"]] * 2
    assert added == ["s-s1", "s-s2"]
    assert archive.places("acme") == ["s-s2"]


def test_a_state_directory_that_cannot_be_made_is_a_store_error(tmp_path: Path) -> None:
    """The reason is the operating system's."""
    (tmp_path / "file").write_text("")

    with pytest.raises(StoreError, match="cannot be made: File exists"):
        SessionArchive(tmp_path / "file" / "sessions")


def crash(root: Path, step: str) -> int:
    """Saves the second version in a child that kills itself at the step; returns how the child ended."""
    code = f"""
        import os, signal
        from pathlib import Path
        from agentao_gov.governor.types import Conversation
        from agentao_gov.pool.archive import SessionArchive
        from tests.pool.test_archive import a_head, saved
        at = lambda step: os.kill(os.getpid(), signal.SIGKILL) if step == {step!r} else None
        saved(SessionArchive(Path({str(root)!r}), step=at), a_head(), Conversation(messages=[{{"n": 2}}]))
    """
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], cwd=Path(__file__).parents[2], check=False
    ).returncode


@pytest.mark.slow
@pytest.mark.parametrize("step", STEPS)
def test_a_kill_at_any_point_of_the_write_leaves_the_old_or_the_new(tmp_path: Path, step: str) -> None:
    """SIGKILL before each step: the session loads whole, its lock is free, and it can be saved again."""
    archive = SessionArchive(tmp_path / "sessions")
    saved(archive, a_head(), Conversation(messages=[{"n": 1}]))

    assert crash(archive.root, step) == -signal.SIGKILL

    loaded = archive.load(KEY)
    assert loaded is not None
    expected = 2 if step == "done" else 1
    assert list(loaded[1].messages) == [{"n": expected}]
    assert saved(archive, a_head()).version == expected + 1


@pytest.mark.slow
def test_a_full_disk_is_a_store_error_and_the_old_session_stays(tmp_path: Path) -> None:
    """A file size limit stands for the full disk: the write fails half way, nothing half-written is left."""
    archive = SessionArchive(tmp_path / "sessions")
    saved(archive, a_head(), Conversation(messages=[{"n": 1}]))
    code = f"""
        import os, resource, signal, json
        from pathlib import Path
        from agentao_gov.errors import StoreError
        from agentao_gov.governor.types import Conversation
        from agentao_gov.pool.archive import SessionArchive
        from tests.pool.test_archive import a_head, saved
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
        try:
            big = Conversation(messages=[{{"n": os.urandom(9000).hex()}}])
            saved(SessionArchive(Path({str(archive.root)!r})), a_head(), big)
        except StoreError as error:
            print(json.dumps([error.exit_code, error.message]))
    """

    child = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        cwd=Path(__file__).parents[2], capture_output=True, text=True, check=True,
    )  # fmt: skip

    assert json.loads(child.stdout) == [9, "Session acme/s1 cannot be saved: File too large."]
    loaded = archive.load(KEY)
    assert loaded is not None
    assert list(loaded[1].messages) == [{"n": 1}]
    assert sorted(path.name for path in (archive.root / "t-acme" / "s-s1").iterdir()) == ["lock", "session"]
