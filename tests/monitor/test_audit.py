"""What the audit file keeps of a turn."""

from __future__ import annotations

import json
import stat
import threading
from pathlib import Path

import pytest

from agentao_gov.monitor.audit import AuditFile
from tests.monitor.played import play
from tests.support.clock import FakeClock


def test_the_audit_file_has_a_line_for_each_event_and_no_content(tmp_path: Path, clock: FakeClock) -> None:
    """Private, one JSON object a line, who and what."""
    audit = AuditFile(tmp_path / "audit", clock)

    play(audit)
    audit.close()
    (file,) = (tmp_path / "audit").iterdir()
    lines = [json.loads(line) for line in file.read_text().splitlines()]

    assert [line["event"] for line in lines] == ["permission", "tool", "turn"]
    assert lines[0]["decision"] == "deny"
    assert lines[1] | {"time": ""} == lines[1] | {"time": "", "tool": "glob", "outcome": "timeout", "duration_ms": 250}
    assert all((line["tenant"], line["user"], line["turn_id"]) == ("acme", "ann", "t1") for line in lines)
    assert "secret" not in file.read_text()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700


def test_a_new_day_is_a_new_file_and_very_old_ones_go(tmp_path: Path, clock: FakeClock) -> None:
    """The file is bounded in time."""
    audit = AuditFile(tmp_path, clock)

    play(audit)
    clock.advance(86_400)
    play(audit)
    kept = len(list(tmp_path.iterdir()))
    clock.advance(100 * 86_400)
    play(audit)
    audit.close()

    assert kept == 2
    assert len(list(tmp_path.iterdir())) == 1


def test_many_threads_do_not_tear_lines(tmp_path: Path, clock: FakeClock) -> None:
    """Also two files on one directory, as two workers have."""
    audits = [AuditFile(tmp_path, clock) for _ in range(2)]

    def play_often(audit: AuditFile) -> None:
        for _ in range(50):
            play(audit)

    threads = [threading.Thread(target=play_often, args=(audit,)) for audit in audits * 4]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for audit in audits:
        audit.close()
    (file,) = tmp_path.iterdir()

    assert sum(1 for line in file.read_text().splitlines() if json.loads(line)) == 8 * 50 * 3


def test_a_disk_that_refuses_ends_no_turn(tmp_path: Path, clock: FakeClock, caplog: pytest.LogCaptureFixture) -> None:
    """It is told once, not at every event."""
    blocked = tmp_path / "file"
    blocked.write_text("")

    play(AuditFile(blocked / "audit", clock))

    assert [record.message for record in caplog.records] == ["audit file cannot be written"]
