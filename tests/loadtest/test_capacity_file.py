"""A capacity plan goes into a deployment file without disturbing anything else in it."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from agentao_gov.config import load_deployment
from agentao_gov.loadtest.capacity_file import merge_capacity, write_capacity

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


def test_values_are_replaced_and_everything_else_stays() -> None:
    """Comments, order, other keys and other tables."""
    merged = merge_capacity(FILE, PLAN)

    data = tomllib.loads(merged)
    assert data["capacity"] == {"sessions": 42, "memory": "900MiB", "alert_at": 0.9}
    assert data["tenants"] == {"acme": {"max_sessions": 5}}
    for line in ("# ours", "# what it is meant to hold", "sessions = 42  # measured in May"):
        assert line in merged
    assert merge_capacity(merged, PLAN) == merged


@pytest.mark.parametrize("text", ["", "[pool]\nmax_sessions = 3\n", "[capacity]\n", "[capacity]  # empty"])
def test_a_file_without_values_gets_them(text: str) -> None:
    """Whatever there is so far."""
    data = tomllib.loads(merge_capacity(text, PLAN))

    assert data["capacity"] == PLAN


def test_the_file_is_one_that_the_service_reads(tmp_path: Path) -> None:
    """Written whole, with the mode it had, and loadable."""
    path = tmp_path / "agentao-gov.toml"
    path.write_text(FILE)
    path.chmod(0o640)

    assert write_capacity(path, PLAN) == path

    assert load_deployment(path).deployment.capacity.sessions == 42
    assert path.stat().st_mode & 0o777 == 0o640
    assert [p.name for p in tmp_path.iterdir()] == ["agentao-gov.toml"]
