"""Finding the line a key stands on, in TOML as people write it."""

from __future__ import annotations

from pathlib import Path

import pytest

from agentao_gov.config.toml_text import key_line, read_toml
from agentao_gov.errors import ConfigError

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


def test_a_byte_order_mark_is_no_part_of_the_file(tmp_path: Path) -> None:
    """Editors on Windows write one; the first key is found on its line all the same."""
    file = tmp_path / "x.toml"
    file.write_text('name = "x"\n', encoding="utf-8-sig")

    values, text = read_toml(file, what="profile")

    assert values == {"name": "x"}
    assert key_line(text, "name") == 1


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ('name = "x"\nturn_timeout = 90s\n', "  2 | turn_timeout = 90s"),
        ("[tenants.研发部]\n", "  1 | [tenants.研发部]\n  A name with other letters than A-Z, a-z goes in quotes."),
        ("api_key = sk-0123456789\n", "  1 | api_key = …"),
        ('[mcp.servers.x.env]\nTOK = s3cret"\n', "  2 | TOK = …"),
    ],
    ids=["value", "name", "key", "environment"],
)
def test_a_syntax_error_shows_its_line(tmp_path: Path, text: str, shown: str) -> None:
    """Whoever reads the message sees the mistake; what may be a secret is not repeated."""
    file = tmp_path / "x.toml"
    file.write_text(text)

    with pytest.raises(ConfigError) as caught:
        read_toml(file, what="profile")

    assert caught.value.message.partition("\n")[2] == shown.removeprefix("\n")
