"""The report's `server`: the service's processes over time, and what they leave from rest to rest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from agentao_gov.loadtest.arrivals import Segment
from agentao_gov.loadtest.document import ServerPart
from agentao_gov.loadtest.execution import Execution, Played
from agentao_gov.loadtest.leaks import memory_slope, wave_floors, wave_leak
from agentao_gov.loadtest.samples import TurnSample
from agentao_gov.loadtest.series import ServerRow, peaks_of

__all__ = ["server_part", "server_rows"]

_ROWS_MAX = 600
#: What a service opens at its first turns and keeps (measured: 1 descriptor in-process; 7 and 4 processes where session
#: processes are forked from a spare one; worker threads up to `max_busy`). Soaks need no such allowance.
_OPENED_ONCE = {"fds": 12, "children": 6, "threads": 64}


def server_rows(execution: Execution | None, main: Played | None) -> list[ServerRow]:
    if execution is None or main is None:
        return []
    # A search's other probes belong to its story; a plain run has one phase and its settling.
    return [row for row in execution.series.rows if row.at >= execution.played[0].start_epoch - 2.0]


def server_part(rows: Sequence[ServerRow], main: Played | None, samples: Sequence[TurnSample]) -> ServerPart:
    if main is None or not rows:
        return ServerPart()
    step = max(1, len(rows) // _ROWS_MAX)
    return ServerPart(
        samples=[row.to_dict(main.start_epoch) for row in rows[::step]],
        peaks=peaks_of(rows),
        leaks=_leaks(rows, main, samples),
    )


def _leaks(rows: Sequence[ServerRow], main: Played, samples: Sequence[TurnSample]) -> dict[str, Any]:
    """Memory per turn after the warm-up, and what descriptors, children and threads leave from rest to rest."""
    ends = sorted(sample.ended_s for sample in samples)
    points: list[tuple[float, float]] = []
    done = 0
    for row in rows:
        at_s = row.at - main.start_epoch
        while done < len(ends) and ends[done] <= at_s:
            done += 1
        # The service's own process: what its children hold goes with them, and their number is looked at below.
        if row.rss_bytes is not None and at_s >= 0:
            points.append((float(done), float(row.rss_bytes)))
    slope = memory_slope(points)
    rests = _rests(main)
    out: dict[str, Any] = {
        "memory_bytes_per_turn": None if slope is None else {**asdict(slope), "grows": slope.grows},
        "rests_s": rests,
    }
    sessions = len({sample.session for sample in samples})
    for name, once in _OPENED_ONCE.items():
        values = [(row.at - main.start_epoch, int(v)) for row in rows if (v := getattr(row, name)) is not None]
        leak = wave_leak(wave_floors(values, rests), sessions=sessions, once=once)
        out[name] = {"floors": list(leak.floors), "leaked": leak.leaked if len(leak.floors) >= 2 else None}
    return out


def _rests(main: Played) -> list[tuple[float, float]]:
    """Stretches without load: before it, within a soak's waves, and after it."""
    quiet = [(part.start_s, part.end_s) for part in _load_segments(main) if part.level_start == part.level_end == 0]
    end_s = main.end_epoch - main.start_epoch
    last = quiet.pop() if quiet and quiet[-1][1] >= main.phase.duration_s - 0.01 else (main.phase.duration_s, 0.0)
    # The service gets half a rest to put away what the wave left.
    inner = [((start + end) / 2, end) for start, end in quiet]
    return [(-2.0, 0.05), *inner, ((last[0] + end_s) / 2, end_s + 30.0)]


def _load_segments(main: Played) -> tuple[Segment, ...]:
    return main.phase.streams[0].segments
