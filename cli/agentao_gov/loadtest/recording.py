"""Reads the generator's raw lines back as they are written, and keeps the books of each phase."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from agentao_gov.loadtest.samples import Beat, Begin, TurnSample, parse_line

__all__ = ["PhaseRecord", "SampleFile"]


@dataclass(slots=True)
class PhaseRecord:
    """What one phase left: its turns, and the generator's own pulse."""

    index: int
    samples: list[TurnSample] = field(default_factory=list)
    #: Turns that began and have not ended yet, by id.
    open: dict[str, Begin] = field(default_factory=dict)
    beats: list[Beat] = field(default_factory=list)
    #: Workers that said they have finished the phase.
    ended: set[int] = field(default_factory=set)
    #: Turns that began, by profile and tenant: the other side of the books.
    begun: Counter[tuple[str, str]] = field(default_factory=Counter)
    #: Ends without a beginning, or a second end of the same turn.
    strays: int = 0
    #: Turns without an end although every worker said it had finished.
    lost: int = 0
    #: Set once the books are closed: what comes later (a generator that is ended says its last) is not booked again.
    closed: bool = False

    @property
    def started(self) -> int:
        """Turns that began."""
        return self.begun.total()

    def close(self, at_s: float, *, complete: bool = False) -> None:
        """Books whatever has no end as unfinished: the generator died or was ended under it.

        `complete`: it was not; every worker has finished, and no turn may be without an end.
        """
        self.lost = len(self.open) if complete else 0
        self.closed = True
        for begin in self.open.values():
            elapsed_us = max(0, int((at_s - begin.sent_s) * 1e6))
            waited_us = max(0, int((begin.sent_s - begin.intended_s) * 1e6))
            self.samples.append(
                TurnSample(
                    id=begin.id,
                    phase=begin.phase,
                    worker=-1,
                    session=begin.session,
                    profile=begin.profile,
                    tenant=begin.tenant,
                    intended_s=begin.intended_s,
                    sent_s=begin.sent_s,
                    latency_us=waited_us + elapsed_us,
                    service_us=elapsed_us,
                    late_us=0,
                    outcome="unfinished",
                    error="the generator ended first",
                )
            )
        self.open.clear()


class SampleFile:
    """Follows `samples.jsonl`. One reader; the generator appends whole lines, a torn last one is read next time."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0
        self.phases: dict[int, PhaseRecord] = {}
        self.ready = False
        #: When each worker was last heard (monotonic seconds).
        self.heard: dict[int, float] = {}
        #: What the generator said besides samples: bounds reached, Locust's own figures.
        self.remarks: list[dict[str, Any]] = []

    def phase(self, index: int) -> PhaseRecord:
        """The record of a phase; made when it is first asked for."""
        return self.phases.setdefault(index, PhaseRecord(index))

    def poll(self) -> int:
        """Reads what is new; how many lines."""
        try:
            with self._path.open("rb") as file:
                file.seek(self._offset)
                data = file.read()
        except FileNotFoundError:
            return 0
        whole = data[: data.rfind(b"\n") + 1]
        self._offset += len(whole)
        lines = whole.decode(errors="replace").splitlines()
        for line in lines:
            self._take(line)
        return len(lines)

    def remarks_of(self, kind: str) -> list[dict[str, Any]]:
        """The remarks of one kind: `locust`, `bound`."""
        return [remark for remark in self.remarks if remark.get("t") == kind]

    def _take(self, line: str) -> None:
        record = parse_line(line)
        if isinstance(record, TurnSample | Begin) and self.phase(record.phase).closed:
            return
        if isinstance(record, TurnSample):
            phase = self.phase(record.phase)
            if phase.open.pop(record.id, None) is None:
                phase.strays += 1
            phase.samples.append(record)
            self.heard[record.worker] = time.monotonic()
        elif isinstance(record, Begin):
            phase = self.phase(record.phase)
            phase.begun[record.profile, record.tenant] += 1
            phase.open[record.id] = record
        elif isinstance(record, Beat):
            self.phase(record.phase).beats.append(record)
            self.heard[record.worker] = time.monotonic()
        elif isinstance(record, dict):
            self._remark(record)

    def _remark(self, record: dict[str, Any]) -> None:
        if record.get("t") == "phase_end":
            self.phase(int(record["phase"])).ended.add(int(record["worker"]))
        elif record.get("t") == "ready":
            self.ready = True
        else:
            self.remarks.append(record)
