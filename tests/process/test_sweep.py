"""The sweep kills what a dead owner left, and nothing that has a living one."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

from agentao_gov.process import Owner, SessionTree, Tag, procfs, session_tag, sweep
from agentao_gov.process.sweep import find_orphans
from tests.process import zoo


def dead_owner() -> Owner:
    """A process of ours that has ended."""
    child = subprocess.Popen([sys.executable, "-I", "-S", "-c", "input()"], stdin=subprocess.PIPE)
    stat = procfs.read_stat(child.pid)
    assert stat is not None
    child.communicate()
    return replace(Owner.me(), pid=stat.ref.pid, started=stat.ref.start)


def test_children_of_a_dead_owner_are_killed_once() -> None:
    """One sweep kills the stubborn server and its helper, the next finds nothing."""
    owner = dead_owner()
    child = zoo.start("stubborn", SessionTree(Tag(owner, "s")).env("mcp"))

    first, second = sweep(lambda o: o == owner), sweep(lambda o: o == owner)

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
    for owner, child in zip(foreign, children, strict=True):
        SessionTree(Tag(owner, "s")).kill()
        child.communicate()


def test_an_owner_whose_pid_was_reused_is_dead() -> None:
    """The pid lives, but with another start: the owner does not."""
    me = Owner.me()
    reused = replace(me, started=me.started - 1)

    assert not me.gone
    assert reused.gone
