"""Lists of sessions come in pages that neither lose nor repeat one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.pool.scripted import ScriptedHosts
from tests.service.live import Live


@pytest.fixture
def live(tmp_path: Path) -> Iterator[Live]:
    made = Live(tmp_path, ScriptedHosts(), max_sessions=4)
    yield made
    made.close()


def test_pages_tell_every_session_once_also_where_one_goes_in_between(live: Live) -> None:
    """In memory or on disk; the page after a deleted session goes on behind its place."""
    names = {f"s{n}" for n in range(9)}
    for name in sorted(names):
        live.turn(name, "hello")

    first = live.get("/v1/sessions?limit=4").json
    live.send("DELETE", f"/v1/sessions/{first['last_id']}")
    second = live.get(f"/v1/sessions?limit=4&after={first['last_id']}").json
    third = live.get(f"/v1/sessions?limit=4&after={second['last_id']}").json

    told = [row["id"] for page in (first, second, third) for row in page["data"]]
    assert sorted(told) == sorted(names)
    assert [page["has_more"] for page in (first, second, third)] == [True, True, False]
    assert (first["total"], third["total"]) == (9, 8)
    assert first["last_id"] == first["data"][-1]["id"]


def test_an_empty_list_ends_at_once(live: Live) -> None:
    """No id to go on with."""
    assert live.get("/v1/sessions").json == {
        "object": "list",
        "data": [],
        "has_more": False,
        "last_id": None,
        "total": 0,
    }


@pytest.mark.parametrize(
    "query", ["limit=0", "limit=1001", "limit=-1", "limit=x", "limit=", "limit=9999999999999", "after=", "after=a/b"]
)
def test_a_part_that_there_cannot_be_is_refused(live: Live, query: str) -> None:
    """With the parameter that is wrong."""
    answer = live.get(f"/v1/sessions?{query}")

    assert (answer.status, answer.code) == (400, "invalid_request")
    assert answer.json["error"]["param"] == query.partition("=")[0]
