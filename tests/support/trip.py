"""`python -m tests.support.trip`: through how many files a reservation goes, and how often it comes back to one."""

from __future__ import annotations

import itertools
import sys
import tempfile
from pathlib import Path
from types import FrameType
from typing import Any

import agentao_gov
from agentao_gov import Deadline, Scope, ScopeLimit, SqliteStore, TokenLedger
from agentao_gov.budget import ReserveRequest

PACKAGE = Path(agentao_gov.__file__).parent


def trip(file: Path) -> list[str]:
    """The package's files in the order in which one `reserve` calls into them, a second one on an open ledger."""
    ledger = TokenLedger(SqliteStore(file), heartbeat_s=None)
    scopes = (ScopeLimit(Scope("tenant", "acme"), 10_000),)
    first, second = (
        ReserveRequest(name, scopes, 100, 1, 10, tenant="acme", user="ann", model="m") for name in ("first", "second")
    )
    deadline = Deadline.after(5)
    ledger.reserve(first, deadline=deadline)
    called: list[str] = []

    def note(frame: FrameType, event: str, _: Any) -> None:
        path = Path(frame.f_code.co_filename)
        if event == "call" and path.is_relative_to(PACKAGE):
            called.append(str(path.relative_to(PACKAGE)))

    sys.setprofile(note)
    ledger.reserve(second, deadline=deadline)
    sys.setprofile(None)
    ledger.close()
    return [file for file, _ in itertools.groupby(called)]


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as directory:
        visited = trip(Path(directory) / "ledger.db")
    sys.stdout.write(f"{len(set(visited))} files, {len(visited)} steps between them:\n" + "\n".join(visited) + "\n")
