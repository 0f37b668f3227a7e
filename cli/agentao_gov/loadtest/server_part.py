"""The report's `server`: the service's processes over time, and what they leave from rest to rest."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from agentao_gov.loadtest.arrivals import Segment
from agentao_gov.loadtest.document import ServerPart
from agentao_gov.loadtest.execution import Execution, Played
from agentao_gov.loadtest.remains import Look, Rest, remains_of
from agentao_gov.loadtest.samples import TurnSample
from agentao_gov.loadtest.series import ServerRow, peaks_of

__all__ = ["server_part", "server_rows"]

_ROWS_MAX = 600


def server_rows(execution: Execution | None, main: Played | None) -> list[ServerRow]:
    """The looks that belong to the run, from just before its first turn."""
    if execution is None or main is None:
        return []
    # A search's other probes belong to its story; a plain run has one phase and its settling.
    return [row for row in execution.series.rows if row.at >= execution.played[0].start_epoch - 2.0]


def server_part(
    rows: Sequence[ServerRow], main: Played | None, samples: Sequence[TurnSample], ttl_s: float | None
) -> ServerPart:
    """Rows thinned, peaks, and what was left. `ttl_s`: the sessions' time to live where the run waited for it."""
    if main is None or not rows:
        return ServerPart()
    step = max(1, len(rows) // _ROWS_MAX)
    load_end_s = max((sample.ended_s for sample in samples), default=main.end_epoch - main.start_epoch)
    return ServerPart(
        samples=[row.to_dict(main.start_epoch) for row in rows[::step]],
        peaks=peaks_of(rows),
        leaks=remains_of(
            list(_looks(rows, main, samples)),
            _rests(main),
            sessions=len({sample.session for sample in samples}),
            load_end_s=load_end_s,
            ttl_s=ttl_s,
        ),
    )


def _looks(rows: Sequence[ServerRow], main: Played, samples: Sequence[TurnSample]) -> Iterator[Look]:
    ends = sorted(sample.ended_s for sample in samples)
    done = 0
    for row in rows:
        at_s = row.at - main.start_epoch
        while done < len(ends) and ends[done] <= at_s:
            done += 1
        yield Look(
            at_s=at_s,
            turns=done,
            # The service's own process: what its children hold goes with them, and their number is looked at itself.
            rss_bytes=row.rss_bytes,
            fds=row.fds,
            children=row.children,
            threads=row.threads,
            busy=row.sessions.get("busy", 0) if row.sessions else None,
            queue=row.queue,
            resident=row.resident,
        )


def _rests(main: Played) -> list[Rest]:
    """Stretches without load: before it, within a soak's waves, and after it."""
    quiet = [(part.start_s, part.end_s) for part in _load_segments(main) if part.level_start == part.level_end == 0]
    end_s = main.end_epoch - main.start_epoch
    last = quiet.pop() if quiet and quiet[-1][1] >= main.phase.duration_s - 0.01 else (main.phase.duration_s, 0.0)
    # The service gets half a rest to put away what the wave left.
    inner = [((start + end) / 2, end) for start, end in quiet]
    return [(-2.0, 0.05), *inner, ((last[0] + end_s) / 2, end_s + 30.0)]


def _load_segments(main: Played) -> tuple[Segment, ...]:
    return main.phase.streams[0].segments
