"""What a load leaves behind in the service: memory a turn, descriptors, children, threads, and whether it came to rest.

Looks and rests in, a finding out. Pure, so that recorded runs can be judged again.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from agentao_gov.loadtest.leaks import WARM_UP_BYTES, memory_slope, wave_floors, wave_leak

__all__ = ["Look", "Rest", "remains_of"]

#: Start and end in seconds of a stretch without load.
Rest = tuple[float, float]

#: What a service opens at its first turns and keeps (measured: 1 descriptor in-process; 7 and 4 processes where session
#: processes are forked from a spare one; worker threads up to `max_busy`). A soak needs the first two not.
_OPENED_ONCE = {"fds": 12, "children": 6, "threads": 64}
#: Worker threads end after 20 idle seconds, longer than a rest, and a busier moment starts more of them: from wave to
#: wave they only count beyond what a pool may hold.
_KEPT = {"threads": 64}


@dataclass(frozen=True, slots=True)
class Look:
    """The service at one moment. None: it could not be seen."""

    at_s: float
    #: Turns ended so far.
    turns: int
    rss_bytes: int | None = None
    fds: int | None = None
    children: int | None = None
    threads: int | None = None
    #: Sessions at work, turns that wait, sessions in memory.
    busy: int | None = None
    queue: int | None = None
    resident: int | None = None


def remains_of(
    looks: Sequence[Look], rests: Sequence[Rest], *, sessions: int, load_end_s: float, ttl_s: float | None = None
) -> dict[str, Any]:
    """The finding.

    Args:
        rests: stretches without load: before it, between a soak's waves, after it.
        sessions: how many were played.
        load_end_s: when the last turn had ended.
        ttl_s: the sessions' time to live, where it is short enough to be waited for.
    """
    # Not beyond the last turn: what an idle service gives back to the system is no part of what a turn takes.
    loaded = [look for look in looks if 0 <= look.at_s <= load_end_s]
    slope = memory_slope([(float(k.turns), float(k.rss_bytes)) for k in loaded if k.rss_bytes is not None])
    memory = None
    if slope is not None:
        memory = {**asdict(slope), "grows": slope.grows, "beyond_warm_up": slope.beyond(WARM_UP_BYTES)}
    found: dict[str, Any] = {
        "memory_bytes_per_turn": memory,
        "rests_s": list(rests),
    }
    for name, once in _OPENED_ONCE.items():
        values = [(look.at_s, int(value)) for look in looks if (value := getattr(look, name)) is not None]
        floors = wave_floors(values, rests)
        leak = wave_leak(floors, sessions=sessions, once=once, kept=_KEPT.get(name, 0))
        found[name] = {"floors": list(leak.floors), "leaked": leak.leaked if len(floors) >= 2 else None}
    found["idle"] = _idle(looks, load_end_s, ttl_s)
    return found


def _idle(looks: Sequence[Look], load_end_s: float, ttl_s: float | None) -> dict[str, Any]:
    """How long after the last turn nothing was at work any more; infinite when it never was, None when unseen."""
    after = [look for look in looks if look.at_s >= load_end_s and look.busy is not None]
    still = [look for look in after if look.busy or look.queue or (ttl_s is not None and look.resident)]
    # What was idle once and is at work again has not come to rest.
    restless_until = still[-1].at_s if still else load_end_s
    quiet = next((look.at_s for look in after if look.at_s > restless_until), None)
    return {
        "after_s": None
        if not after
        else math.inf
        if quiet is None
        else round(max(0.0, restless_until - load_end_s), 2),
        "resident_left": after[-1].resident if after else None,
        "ttl_s": ttl_s,
    }
