"""What several workers say becomes what the service says."""

from __future__ import annotations

import os
import socket
import stat
from pathlib import Path
from typing import Any

from agentao_gov.service.answers import Session
from agentao_gov.service.peers import listen_for_peers, merge_metrics, merge_sessions

FIRST = b"""# HELP agentao_gov_turns_total Turns.
# TYPE agentao_gov_turns_total counter
agentao_gov_turns_total{profile="qa"} 3.0
# HELP agentao_gov_sessions Sessions.
# TYPE agentao_gov_sessions gauge
agentao_gov_sessions{state="idle"} 2.0
agentao_gov_sessions{state="hibernated"} 9.0
# HELP agentao_gov_shutdown_rung Rung.
# TYPE agentao_gov_shutdown_rung gauge
agentao_gov_shutdown_rung 0.0
"""
SECOND = (
    FIRST.replace(b'"} 3.0', b'"} 4.0')
    .replace(b"rung 0.0", b"rung 2.0")
    .replace(b'turns_total{profile="qa"}', b'turns_total{profile="code"}')
)


def test_counts_are_added_and_states_are_the_largest() -> None:
    """A series that only one worker has stays."""
    lines = merge_metrics([FIRST, SECOND]).decode().splitlines()

    assert 'agentao_gov_turns_total{profile="qa"} 3.0' in lines
    assert 'agentao_gov_turns_total{profile="code"} 4.0' in lines
    assert 'agentao_gov_sessions{state="idle"} 4.0' in lines
    assert 'agentao_gov_sessions{state="hibernated"} 9.0' in lines
    assert "agentao_gov_shutdown_rung 2.0" in lines
    assert sum(line.startswith("# TYPE agentao_gov_turns_total") for line in lines) == 1


def test_one_workers_text_is_left_as_it_is() -> None:
    """Byte for byte."""
    assert merge_metrics([FIRST]) == FIRST


def a_session(name: str, state: str) -> Session:
    return {
        "id": name, "object": "session", "state": state, "user": "ann", "profile": "qa", "mode": "in-process",
        "model": "simulated", "created_at": 0.0, "last_turn_at": None, "idle_s": None, "turn_id": None, "waiting": 0,
        "memory_bytes": None, "processes": None,
        "usage": {"turns": 0, "prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0, "llm_calls": 0},
    }  # fmt: skip


def page(*rows: tuple[str, str], more: bool = False, total: int = 0) -> Any:
    """One worker's page; of its sessions the id and the state."""
    return {
        "object": "list",
        "data": [{"id": name, "state": state} for name, state in rows],
        "has_more": more,
        "last_id": rows[-1][0] if rows else None,
        "total": total,
    }


def rows_of(merged: Any) -> list[tuple[str, str]]:
    return [(row["id"], row["state"]) for row in merged["data"]]


def test_a_session_is_told_by_the_worker_that_has_it_in_memory() -> None:
    """The others only see its archive."""
    asleep, awake = page(("a", "hibernated")), page(("a", "busy"), ("b", "idle"))

    assert rows_of(merge_sessions([asleep, awake], 10)) == [("a", "busy"), ("b", "idle")]
    assert rows_of(merge_sessions([awake, asleep], 10)) == [("a", "busy"), ("b", "idle")]


def test_pages_of_several_workers_are_one_page_in_one_order() -> None:
    """What one of them has in memory alone comes in its place, and the page ends where the next one goes on."""
    first = page(("a", "hibernated"), ("d", "hibernated"), more=True, total=7)
    second = page(("b", "idle"), ("d", "busy"), total=5)

    merged = merge_sessions([first, second], 2)

    assert rows_of(merged) == [("a", "hibernated"), ("b", "idle")]
    assert (merged["has_more"], merged["last_id"], merged["total"]) == (True, "b", 7)


def test_a_workers_socket_is_private_and_may_lie_deep(tmp_path: Path) -> None:
    """A socket's path ends at 107 bytes; a state directory's need not. One left behind is replaced."""
    deep = tmp_path / ("d" * 120)

    for _ in range(2):
        listener = listen_for_peers(deep, 3)
        found = (deep / "3.sock").stat()
        assert stat.S_ISSOCK(found.st_mode)
        assert stat.S_IMODE(found.st_mode) == 0o600
        assert stat.S_IMODE(deep.stat().st_mode) == 0o700
        folder = os.open(deep, os.O_RDONLY)
        client = socket.socket(socket.AF_UNIX)
        client.connect(f"/proc/self/fd/{folder}/3.sock")
        client.close()
        os.close(folder)
        listener.close()
