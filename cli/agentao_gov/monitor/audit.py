"""The audit file: one JSON line for each tool call, permission decision and turn. Who, what, which outcome; no content.

`STATE/audit/YYYY-MM-DD.jsonl` (UTC), private to the user. Each line is one `write` to a descriptor opened for append,
so several workers share a file without tearing lines.
"""

from __future__ import annotations

import json
import logging
import os
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from agentao_gov.clock import SYSTEM_CLOCK, Clock
from agentao_gov.governor.report import TurnReport
from agentao_gov.governor.turn import NullObserver, PermissionEnd, ToolCallEnd, TurnLabels
from agentao_gov.monitor.logs import log_event

#: Days a file is kept. Long enough for an incident to be noticed, short enough not to fill a disk unseen.
KEEP_DAYS = 90


class AuditFile(NullObserver):
    """A turn observer that writes. Thread-safe; a disk that refuses is logged once and does not end turns."""

    def __init__(self, directory: Path, clock: Clock = SYSTEM_CLOCK) -> None:
        self._directory = directory
        self._clock = clock
        self._lock = threading.Lock()
        #: The open file and its day; guarded by `_lock`.
        self._fd: int | None = None
        self._day = ""
        #: Whether the last write failed, so that a full disk is told once; guarded by `_lock`.
        self._failing = False

    def tool_call(self, labels: TurnLabels, call: ToolCallEnd) -> None:
        """A tool call ended."""
        ms = round(call.duration_s * 1000)
        self._write("tool", labels, tool=call.name, outcome=call.outcome, duration_ms=ms)

    def permission(self, labels: TurnLabels, decision: PermissionEnd) -> None:
        """A permission was decided."""
        self._write("permission", labels, tool=decision.tool, decision=decision.decision, permission_mode=decision.mode)

    def turn_ended(self, labels: TurnLabels, report: TurnReport) -> None:
        """The turn's end."""
        usage = report.usage
        self._write("turn", labels, outcome=report.outcome.value, tokens=usage.total_tokens, llm_calls=usage.llm_calls)

    def _write(self, event: str, labels: TurnLabels, **fields: Any) -> None:
        now = datetime.fromtimestamp(self._clock.time(), UTC)
        line = {
            "time": now.isoformat(timespec="milliseconds"),
            "event": event,
            "tenant": labels.key.tenant,
            "user": labels.user,
            "session": labels.key.session,
            "turn_id": labels.turn_id,
            "profile": labels.profile,
            "mode": labels.mode,
            **fields,
        }
        raw = json.dumps(line, ensure_ascii=True).encode() + b"\n"
        with self._lock:
            try:
                os.write(self._descriptor(now), raw)
                self._failing = False
            except OSError as error:
                if not self._failing:
                    log_event("audit file cannot be written", logging.ERROR, reason=error.strerror)
                self._failing = True

    def _descriptor(self, now: datetime) -> int:
        day = now.date().isoformat()
        if self._fd is None or day != self._day:
            self._close()
            self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._forget_old(now)
            path = self._directory / f"{day}.jsonl"
            self._fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
            self._day = day
        return self._fd

    def _forget_old(self, now: datetime) -> None:
        oldest = (now.date() - timedelta(days=KEEP_DAYS)).isoformat()
        for file in self._directory.glob("????-??-??.jsonl"):
            if file.stem < oldest:
                file.unlink(missing_ok=True)

    def _close(self) -> None:
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    def close(self) -> None:
        """Closes the file; a later event opens it again."""
        with self._lock:
            self._close()
