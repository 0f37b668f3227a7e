"""The users' own MCP servers: one that does not start is named, with what it says, and without what it must not say."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.checklist.conftest import House

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]

SECRET = "hunter2-and-more"
COMPLAINT = (
    "print('starting', file=sys.stderr); print('no login with', os.environ['TOKEN'], file=sys.stderr); sys.exit(3)"
)


def test_a_server_that_does_not_start_is_a_warning_with_its_last_words(house: House, tmp_path: Path) -> None:
    """Of every offered profile; everything else about the shutdown holds without it."""
    script = tmp_path / "server.py"
    script.write_text(f"import os, sys\n{COMPLAINT}\n")
    failing = {"command": sys.executable, "args": [str(script)], "env": {"TOKEN": SECRET}, "startup_timeout": "1s"}
    missing = {"command": "there-is-no-such-program", "startup_timeout": "1s"}
    house.profile("qa")["mcp"] = {"servers": {"jira": failing, "ghost": missing}}

    report = house.walk("graceful_shutdown")

    item = next(item for item in report.items if item.id == "graceful_shutdown")
    assert item.status == "warn", report.to_json()
    assert "the MCP server jira starts" in item.expected
    assert "the last line of its standard error: no login with [REDACTED]" in item.observed
    assert "there is no program 'there-is-no-such-program'" in item.observed
    assert SECRET not in report.to_json()
    assert report.exit_code == 0
