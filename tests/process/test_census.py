"""Children are counted by kind."""

from __future__ import annotations

import uuid

from agentao_gov.process import SessionTree, session_tag, take_census
from tests.process import zoo


def test_children_are_counted_by_kind_with_their_memory() -> None:
    """A server and its helper count as mcp, a shell as shell; each has memory, and shared pages are split."""
    before = take_census()
    tree = SessionTree(session_tag("acme", uuid.uuid4().hex))
    children = [zoo.start("helper", tree.env("mcp")), zoo.start("polite", tree.env("shell"))]

    after = take_census(pss=True)

    assert after.counts["mcp"] - before.counts["mcp"] == 2
    assert after.counts["shell"] - before.counts["shell"] == 1
    assert after.total - before.total == 3
    assert 0 < after.pss_bytes["shell"] <= after.rss_bytes["shell"]
    tree.kill()
    for child in children:
        child.communicate()
    assert zoo.until(lambda: take_census().counts["mcp"] == before.counts["mcp"])


def test_a_process_that_does_not_exist_has_no_children() -> None:
    """The census of a pid nobody has is empty, not an error."""
    assert take_census(2**22 + 1).total == 0
