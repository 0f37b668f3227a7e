"""Private homes last as long as their service, and nobody removes those of another that lives."""

from __future__ import annotations

import errno
import fcntl
import subprocess
import sys
from pathlib import Path

import pytest

from agentao_gov.governor import SessionKey
from agentao_gov.worker.factory import Homes

KEY = SessionKey("acme", "s1")


def test_nothing_is_made_before_a_home_is_asked_for(tmp_path: Path) -> None:
    """A service in another mode leaves no trace of this one."""
    Homes(tmp_path / "homes").close()

    assert not (tmp_path / "homes").exists()


def test_a_session_keeps_its_home_and_shares_it_with_nobody(tmp_path: Path) -> None:
    """The same for the same session; another for another session, and for another service with the same one."""
    one, two = Homes(tmp_path), Homes(tmp_path)

    homes = {
        one.of(KEY),
        one.of(KEY),
        one.of(SessionKey("acme", "s2")),
        one.of(SessionKey("umbrella", "s1")),
        two.of(KEY),
    }

    assert len(homes) == 4
    # A tool's Unix socket below it must have room in 107 characters.
    assert max(len(home.name) for home in homes) <= 32
    one.close()
    two.close()


def test_homes_go_with_their_service_and_not_with_another(tmp_path: Path) -> None:
    """One that starts or ends beside a living one leaves its homes alone, whatever pids either can see."""
    living = Homes(tmp_path)
    living.of(KEY).mkdir()

    beside = Homes(tmp_path)
    beside.of(KEY).mkdir()
    beside.close()

    assert living.of(KEY).is_dir()
    assert not beside.of(KEY).exists()
    living.close()
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_service_left_is_removed_by_the_next(tmp_path: Path) -> None:
    """Its lock fell with it, so neither a reused pid nor another container keeps a tenant's files on the disk."""
    program = (
        "import os, sys\nfrom pathlib import Path\nfrom agentao_gov.governor import SessionKey\n"
        "from agentao_gov.worker.factory import Homes\n"
        "home = Homes(Path(sys.argv[1])).of(SessionKey('acme', 's1'))\n"
        "home.mkdir(); (home / 'secret').write_text('x'); os.kill(os.getpid(), 9)\n"
    )
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=False)
    assert done.returncode == -9
    assert list(tmp_path.glob("*-*/secret"))

    Homes(tmp_path)

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
        Homes(tmp_path).of(KEY)

    assert caught.value.errno == why
    assert why != errno.ENOLCK or list(tmp_path.iterdir()) == []
