"""The sweep kills what a dead owner left, and nothing that has a living one."""

from __future__ import annotations

import subprocess
import sys
import uuid
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from agentao_gov.process import Owner, SessionTree, Tag, owner, procfs, session_tag, sweep
from agentao_gov.process.sweep import find_orphans
from tests.process import zoo


@pytest.fixture(autouse=True)
def own_boot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A boot of this test's own: any service that starts on this machine sweeps, too, and would be faster at times."""
    name = tmp_path / "boot_id"
    name.write_text(f"{uuid.uuid4()}\n")
    monkeypatch.setattr(owner, "_BOOT_ID", name)
    owner.boot_id.cache_clear()
    yield
    owner.boot_id.cache_clear()


def dead_owner() -> Owner:
    """A process of ours that has ended."""
    child = subprocess.Popen([sys.executable, "-I", "-S", "-c", "input()"], stdin=subprocess.PIPE)
    stat = procfs.read_stat(child.pid)
    assert stat is not None
    child.communicate()
    return replace(Owner.me(), pid=stat.ref.pid, started=stat.ref.start)


def test_children_of_a_dead_owner_are_killed_once() -> None:
    """One sweep kills the stubborn server and its helper, the next finds nothing."""
    dead = dead_owner()
    child = zoo.start("stubborn", SessionTree(Tag(dead, "s")).env("mcp"))

    first, second = sweep(lambda o: o == dead), sweep(lambda o: o == dead)

    assert (first.killed, first.owners, first.survivors) == (1, 1, ())
    assert second.killed == 0
    child.communicate()


def test_children_of_a_living_owner_are_left_alone() -> None:
    """A sweep never touches another service's processes."""
    tree = SessionTree(session_tag("acme", "swept"))
    child = zoo.start("polite", tree.env())

    orphans = find_orphans(lambda o: o == Owner.me())

    assert orphans == {}
    assert child.poll() is None
    tree.kill()
    child.communicate()


def test_a_tag_of_another_boot_or_namespace_is_not_judged() -> None:
    """Its pids mean nothing here, so its processes are left alone even where no such owner lives."""
    dead = dead_owner()
    foreign = replace(dead, boot="another"), replace(dead, pid_namespace="pid:[1]")
    children = [zoo.start("polite", SessionTree(Tag(owner, "s")).env()) for owner in foreign]

    result = sweep(lambda o: o in foreign)

    assert result.killed == 0
    assert [child.poll() for child in children] == [None, None]
    for other, child in zip(foreign, children, strict=True):
        SessionTree(Tag(other, "s")).kill()
        child.communicate()


def test_an_owner_whose_pid_was_reused_is_dead() -> None:
    """The pid lives, but with another start: the owner does not."""
    me = Owner.me()
    reused = replace(me, started=me.started - 1)

    assert not me.gone
    assert reused.gone
