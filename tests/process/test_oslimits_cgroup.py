"""Where control groups can be made, a session's group holds everything it started, whatever it does to itself."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from agentao_gov.process import procfs
from agentao_gov.process.oslimits import OsLimits, SessionCgroup, groups_can_be_made, own_cgroup, sweep_cgroups
from tests.process import zoo

#: Starts a daemon with an empty environment and says its pid: neither tag nor descent finds it afterwards.
LEAVES = """
import os, sys
if os.fork() == 0:
    os.setsid()
    pid = os.fork()
    if pid:
        print(pid, flush=True)
        os._exit(0)
    null = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1, 2): os.dup2(null, fd)
    os.execve(sys.executable, [sys.executable, "-I", "-S", "-c", "import time; time.sleep(60)"], {})
os.wait()
"""


@pytest.fixture
def group() -> Iterator[SessionCgroup]:
    made = SessionCgroup.create(OsLimits())
    if made is None:
        pytest.skip("this process may not make control groups")
    yield made
    made.end()


def test_a_daemon_without_descent_and_environment_ends_with_its_group(group: SessionCgroup) -> None:
    """One write kills whoever is in it, and the group is gone."""
    join = f"open({str(group.path / 'cgroup.procs')!r}, 'w').write('0')\n"
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", join + LEAVES], capture_output=True, text=True, timeout=10, check=True
    )
    daemon = procfs.read_stat(int(done.stdout))
    assert daemon is not None
    assert group.members() == [daemon.ref.pid]

    assert group.end()

    assert zoo.until(lambda: not procfs.alive(daemon.ref))
    assert not group.path.exists()
    assert group.end()


def test_groups_of_dead_owners_are_swept(group: SessionCgroup) -> None:
    """Named after an owner that is gone: who is in it is ended with it. A living owner's stays, and a container's."""
    child = subprocess.Popen([sys.executable, "-I", "-S", "-c", "import time; time.sleep(60)"])
    namespace = group.path.name.split("-")[2]
    left = group.path.with_name(f"agentao-gov-{namespace}-{child.pid}-1-1")  # this pid, but another start
    left.mkdir()
    foreign = group.path.with_name(f"agentao-gov-1-{child.pid}-1-1")
    foreign.mkdir()
    (left / "cgroup.procs").write_text(str(child.pid))

    # How many it ends is not asked: any service that starts on this machine sweeps, too.
    sweep_cgroups()

    assert child.wait(10) == -9
    assert not left.exists()
    assert group.path.exists()
    assert foreign.exists()
    foreign.rmdir()


#: Eats 200 MiB, half of it in a child, from within a group.
EATS = """
import os, sys
open(sys.argv[1], "w").write("0")
child = os.fork()
held = []
for _ in range(100): held.append(bytearray(os.urandom(1)) * (1 << 20))
os.wait() if child else None
"""


def test_the_kernel_holds_a_group_s_memory() -> None:
    """A tree over its memory ends whole although no warden looks, and the limit is named."""
    limits = OsLimits(memory_bytes=64 << 20)
    group = SessionCgroup.create(limits)
    if group is None or not group.memory_bytes:
        if group is not None:
            group.end()
        pytest.skip("the memory controller of cgroups v2 is not delegated to this process")
    command = [sys.executable, "-I", "-S", "-c", EATS, str(group.path / "cgroup.procs")]

    done = subprocess.run(command, timeout=30, check=False)

    assert done.returncode == -9
    assert group.members() == []
    assert "[pool] session_memory = 64 MiB" in (limits.explain_exit(-9, group.struck()) or "")
    assert group.end()


def test_the_kernel_holds_a_group_s_processes() -> None:
    """What forks faster than a warden looks gets no more than the kernel allows."""
    group = SessionCgroup.create(OsLimits(processes=10))
    if group is None or not (group.path / "pids.max").exists():
        if group is not None:
            group.end()
        pytest.skip("the pids controller of cgroups v2 is not delegated to this process")
    program = (
        "import os, sys, time\nopen(sys.argv[1], 'w').write('0')\nmade = 0\n"
        "try:\n  while made < 500:\n    if os.fork() == 0: time.sleep(30); os._exit(0)\n    made += 1\n"
        "except BlockingIOError: pass\nprint(made)"
    )
    command = [sys.executable, "-I", "-S", "-c", program, str(group.path / "cgroup.procs")]

    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)

    assert 10 <= int(done.stdout) < 100
    assert group.end()


def test_what_is_not_there_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a v2 hierarchy there is no group, and nothing to sweep."""
    monkeypatch.setattr("agentao_gov.process.oslimits.own_cgroup", lambda: None)

    assert SessionCgroup.create(OsLimits()) is None
    assert sweep_cgroups() == 0


def test_our_own_group_is_found_or_there_is_none() -> None:
    """A directory with this process in it."""
    here = own_cgroup()

    assert here is None or str(os.getpid()) in Path(here / "cgroup.procs").read_text().split()


_FILES = ("memory.max", "memory.oom.group", "memory.events", "memory.peak", "pids.max")


class FakeTree:
    """A v2 hierarchy of plain files, for what this machine's kernel may not offer: which controllers there are."""

    def __init__(self, root: Path, *controllers: str) -> None:
        self.root = root
        self._controllers = controllers
        (root / "cgroup.subtree_control").touch()

    def mkdir(self, path: Path) -> None:
        os.mkdir(path)  # noqa: PTH102 - the method of Path is this one
        for name in ("cgroup.procs", "cgroup.kill"):
            (path / name).touch()
        self._fill(path)

    def _fill(self, group: Path) -> None:
        """The files of the controllers that were switched on for the groups below."""
        enabled = (self.root / "cgroup.subtree_control").read_text()
        for name in _FILES:
            if f"+{name.partition('.')[0]}" in enabled:
                (group / name).touch()

    def rmdir(self, path: Path) -> None:
        for file in path.iterdir():  # the kernel's own files go with their group
            file.unlink()
        os.rmdir(path)  # noqa: PTH106

    def write(self, path: Path, text: str) -> int:
        if not path.exists():  # a controller that is not there cannot be set
            raise FileNotFoundError(errno.ENOENT, "no such controller", str(path))
        if path.name == "cgroup.subtree_control":  # all of one write or nothing
            if not {word[1:] for word in text.split()} <= set(self._controllers):
                raise OSError(errno.ENOENT, "no such controller", str(path))
            with path.open("a") as file:
                file.write(text)
            for group in path.parent.glob("agentao-gov-*"):
                self._fill(group)
            return len(text)
        with path.open("w") as file:
            return file.write(text)


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., FakeTree]:
    """Puts a fake hierarchy in place of the machine's."""

    def make(*controllers: str) -> FakeTree:
        tree = FakeTree(tmp_path, *controllers)
        monkeypatch.setattr("agentao_gov.process.oslimits.own_cgroup", lambda: tree.root)
        monkeypatch.setattr(Path, "mkdir", lambda path, *_, **__: tree.mkdir(path))
        monkeypatch.setattr(Path, "rmdir", lambda path: tree.rmdir(path))
        monkeypatch.setattr(Path, "write_text", lambda path, text, *_, **__: tree.write(path, text))
        groups_can_be_made.cache_clear()
        return tree

    return make


@pytest.fixture(autouse=True)
def _forget_what_can_be_made() -> Iterator[None]:
    yield
    groups_can_be_made.cache_clear()


LIMITS = OsLimits(memory_bytes=512 << 20, processes=100)


def test_a_delegated_memory_controller_gets_the_limit(fake: Callable[..., FakeTree]) -> None:
    """The kernel then holds it without looking, and ends the whole group at once."""
    fake("memory", "pids")

    made = SessionCgroup.create(LIMITS)

    assert made is not None
    assert made.memory_bytes == 512 << 20
    assert (made.path / "memory.max").read_text() == str(512 << 20)
    assert (made.path / "memory.oom.group").read_text() == "1"
    # Above what the warden allows: the warden names the limit, the kernel only stops what outruns it.
    assert int((made.path / "pids.max").read_text()) > 100
    assert (made.path.parent / "cgroup.subtree_control").read_text() == "+memory+pids"


def test_a_controller_that_is_not_delegated_does_not_keep_the_other_from_being_used(
    fake: Callable[..., FakeTree],
) -> None:
    """Where an operator delegates the number of processes and not the memory, the kernel holds that much."""
    fake("pids")

    made = SessionCgroup.create(LIMITS)

    assert made is not None
    assert made.memory_bytes == 0
    assert int((made.path / "pids.max").read_text()) > 100


def test_without_the_controllers_the_group_only_holds_together(fake: Callable[..., FakeTree]) -> None:
    """It says that it holds no memory, so the warden's own look goes on."""
    fake()

    made = SessionCgroup.create(LIMITS)

    assert made is not None
    assert made.memory_bytes == 0
    assert made.struck() is None


@pytest.mark.parametrize(
    ("events", "peak", "struck"),
    [
        ("low 0\nhigh 0\nmax 9\noom 1\noom_kill 3\n", str(600 << 20), f"session_memory {600 << 20} {512 << 20}"),
        ("oom_kill 1\n", "7", f"session_memory {512 << 20} {512 << 20}"),
        ("low 0\nhigh 0\nmax 4\noom 0\noom_kill 0\n", str(512 << 20), None),
        ("", "", None),
        ("nonsense", "nonsense", None),
    ],
)
def test_what_the_kernel_killed_for_is_named(
    fake: Callable[..., FakeTree], events: str, peak: str, struck: str | None
) -> None:
    """`memory.events` says that the group was ended for its memory; the sentence names the setting."""
    fake("memory", "pids")
    made = SessionCgroup.create(LIMITS)
    assert made is not None
    (made.path / "memory.events").write_text(events)
    (made.path / "memory.peak").write_text(peak)

    assert made.struck() == struck
    if struck is not None:
        assert "[pool] session_memory = 512 MiB" in (LIMITS.explain_exit(-9, struck) or "")


def test_ending_a_group_is_one_write(fake: Callable[..., FakeTree], monkeypatch: pytest.MonkeyPatch) -> None:
    """`cgroup.kill` reaches whoever is in it, at once; then the directory goes."""
    tree = fake()
    made = SessionCgroup.create(LIMITS)
    assert made is not None
    told: list[tuple[str, str]] = []
    monkeypatch.setattr(Path, "write_text", lambda path, text: told.append((path.name, text)))

    assert made.end()

    assert told == [("cgroup.kill", "1")]
    assert [path.name for path in tree.root.iterdir()] == ["cgroup.subtree_control"]


def test_where_groups_cannot_be_made_or_killed_none_is_used(
    fake: Callable[..., FakeTree], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A read-only hierarchy, as most containers have it, and a kernel before 5.14, which cannot kill a group."""
    fake()
    monkeypatch.setattr(Path, "mkdir", lambda path, *_, **__: os.mkdir(path))  # noqa: PTH102
    too_old = SessionCgroup.create(LIMITS)

    def refused(path: Path, *_: Any, **__: Any) -> None:
        raise PermissionError(errno.EROFS, "Read-only file system", str(path))

    groups_can_be_made.cache_clear()
    monkeypatch.setattr(Path, "mkdir", refused)

    assert too_old is None
    assert SessionCgroup.create(LIMITS) is None
