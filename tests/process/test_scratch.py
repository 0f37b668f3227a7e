"""Scratch directories last as long as their run, and nobody removes those of another that lives."""

from __future__ import annotations

import errno
import fcntl
import subprocess
import sys
from pathlib import Path

import pytest

from agentao_gov.process.scratch import ScratchDirs


def test_nothing_is_made_before_a_directory_is_asked_for(tmp_path: Path) -> None:
    """A service in another mode leaves no trace of this one."""
    ScratchDirs(tmp_path / "scratch").close()

    assert not (tmp_path / "scratch").exists()


def test_a_name_keeps_its_directory_and_shares_it_with_no_other_run(tmp_path: Path) -> None:
    """The same for the same name; another for another name, and for another service with the same one."""
    one, two = ScratchDirs(tmp_path), ScratchDirs(tmp_path)

    paths = {one.path("a"), one.path("a"), one.path("b"), two.path("a"), one.make(), one.make()}

    assert len(paths) == 5
    # A tool's Unix socket below it must have room in 107 characters.
    assert max(len(path.name) for path in paths) <= 20
    one.close()
    two.close()
    assert list(tmp_path.iterdir()) == []


def test_directories_go_with_their_service_and_not_with_another(tmp_path: Path) -> None:
    """One that starts or ends beside a living one leaves its directories alone, whatever pids either can see."""
    living = ScratchDirs(tmp_path)
    living.path("a").mkdir()

    beside = ScratchDirs(tmp_path)
    beside.path("a").mkdir()
    beside.close()

    assert living.path("a").is_dir()
    assert not beside.path("a").exists()
    living.close()
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_service_left_is_removed_by_the_next(tmp_path: Path) -> None:
    """Its lock fell with it, so neither a reused pid nor another container keeps a tenant's files on the disk."""
    program = (
        "import os, sys\nfrom pathlib import Path\nfrom agentao_gov.process.scratch import ScratchDirs\n"
        "path = ScratchDirs(Path(sys.argv[1])).make()\n"
        "(path / 'secret').write_text('x'); os.kill(os.getpid(), 9)\n"
    )
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=False)
    assert done.returncode == -9
    assert list(tmp_path.glob("*-*/secret"))

    ScratchDirs(tmp_path)

    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("why", [errno.ENOLCK, errno.EAGAIN])
def test_a_directory_where_nothing_can_be_locked_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, why: int
) -> None:
    """Some network file systems know no locks. Nobody waits for them, and no lock files pile up there."""

    def flock(*_: object) -> None:
        raise OSError(why, "as such a file system answers")

    monkeypatch.setattr(fcntl, "flock", flock)

    with pytest.raises(OSError, match="such a file system" if why == errno.ENOLCK else "taken away") as caught:
        ScratchDirs(tmp_path).path("a")

    assert caught.value.errno == why
    assert why != errno.ENOLCK or list(tmp_path.iterdir()) == []
