"""A measured capacity goes into a deployment file without disturbing anything else in it."""

from __future__ import annotations

import errno
import os
import tomllib
from pathlib import Path

import pytest

from agentao_gov.config import load_deployment
from agentao_gov.config.edit import write_capacity, write_new
from agentao_gov.errors import ConfigError

PLAN = {"sessions": 42, "memory": "900MiB"}
FILE = """# ours
[pool]
max_sessions = 50                # resident

[capacity]
# what it is meant to hold
sessions = 10  # measured in May
alert_at = 0.9

[tenants.acme]
max_sessions = 5
"""


def test_values_are_replaced_and_everything_else_stays(tmp_path: Path) -> None:
    """Comments, order, other keys and other tables; a second time changes nothing; whole, with the mode it had."""
    path = tmp_path / "agentao-gov.toml"
    path.write_text(FILE)
    path.chmod(0o640)

    write_capacity(path, PLAN)
    once = path.read_text()
    write_capacity(path, PLAN)

    data = tomllib.loads(once)
    assert path.read_text() == once
    assert data["capacity"] == {"sessions": 42, "memory": "900MiB", "alert_at": 0.9}
    assert data["tenants"] == {"acme": {"max_sessions": 5}}
    for line in ("# ours", "# what it is meant to hold", "sessions = 42  # measured in May"):
        assert line in once
    assert load_deployment(path, environ={}).deployment.capacity.sessions == 42
    assert path.stat().st_mode & 0o777 == 0o640
    assert [p.name for p in tmp_path.iterdir()] == ["agentao-gov.toml"]


@pytest.mark.parametrize("text", ["", "[pool]\nmax_sessions = 3\n", "[capacity]\n", "[capacity]  # empty"])
def test_a_file_without_values_gets_them(text: str, tmp_path: Path) -> None:
    """Whatever there is so far."""
    path = tmp_path / "agentao-gov.toml"
    path.write_text(text)

    write_capacity(path, PLAN)

    assert tomllib.loads(path.read_text())["capacity"] == PLAN


@pytest.mark.parametrize("text", ["[capacity", "[capacity]\nsessions = -1\n", "capacity = 3\n"])
def test_a_wrong_file_stays_as_it_is(text: str, tmp_path: Path) -> None:
    """It is the user's to mend; nothing is written over it."""
    path = tmp_path / "agentao-gov.toml"
    path.write_text(text)

    with pytest.raises(ConfigError):
        write_capacity(path, PLAN)

    assert path.read_text() == text


@pytest.mark.parametrize("links", [True, False])
def test_a_new_file_never_takes_the_place_of_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, links: bool
) -> None:
    """Also on a file system without hard links, such as exFAT, where `init` must work all the same."""
    if not links:
        monkeypatch.setattr(os, "link", _no_links)
    path = tmp_path / "profiles" / "mine.toml"

    first, second = write_new(path, "mine"), write_new(path, "theirs")

    assert (first, second, path.read_text()) == (True, False, "mine")
    assert [file.name for file in path.parent.iterdir()] == ["mine.toml"]


def _no_links(*_paths: object) -> None:
    raise PermissionError(errno.EPERM, "Operation not permitted")
