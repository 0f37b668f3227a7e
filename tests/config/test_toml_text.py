"""Finding the line a key stands on, in TOML as people write it."""

from __future__ import annotations

import pytest

from agentao_gov.config.toml_text import key_line

_TEXT = '''\
name = "x"                      # 1
# limits.turn_timeout = "1s"    # 2
description = """
turn_timeout = "not a key"
"""
[limits]                        # 6
turn_timeout = "1s"             # 7
  max_iterations = 3            # 8
[limits.tool_timeouts]          # 9
"my tool" = "1s"                # 10
[mcp.servers."a.b"]             # 11
command = "c"                   # 12
on_limit.max_iterations = "x"   # 13
[tools]
allow = [
  "a",
]
permission_mode = "read-only"   # 18
'''


@pytest.mark.parametrize(
    ("key", "line"),
    [
        ("name", 1),
        ("limits", 6),
        ("limits.turn_timeout", 7),
        ("limits.max_iterations", 8),
        ("limits.tool_timeouts.my tool", 10),
        ("mcp.servers.a.b.command", 12),
        ("mcp.servers.a.b.on_limit.max_iterations", 13),
        ("tools.permission_mode", 18),
        ("limits.missing", 6),
        ("missing", None),
    ],
)
def test_a_key_is_found_on_its_line(key: str, line: int | None) -> None:
    """Comments and strings that look like keys are none; a missing key is placed at its table."""
    assert key_line(_TEXT, key) == line
