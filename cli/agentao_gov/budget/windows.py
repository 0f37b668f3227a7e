"""Windows: the local calendar date of a scope is the window's name, so there is no reset job to fail."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, date, datetime
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from agentao_gov.errors import ConfigError

#: The one window of a turn: a turn's budget does not start anew at midnight.
TURN_WINDOW = "turn"

_Outside = Callable[[date], bool]

_HOUR_S = 3600
#: No civil day is longer than this: 24 h, plus the largest clock change, plus a skipped date's slack.
_SEARCH_HOURS = 52


def zone(name: str) -> ZoneInfo:
    """The IANA zone of that name. Raises ConfigError for an unknown one: silently using UTC moves midnight."""
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError) as error:
        raise ConfigError(
            f"There is no time zone {name!r}.", hint="Use an IANA name such as 'UTC' or 'Europe/Berlin'."
        ) from error


@dataclass(frozen=True, slots=True)
class Window:
    """One calendar day of one zone: `start_s <= t < end_s`, Unix seconds."""

    name: str
    start_s: int
    end_s: int


class WindowCalendar:
    """Finds the window of an instant and remembers it, per zone. Not thread-safe: one per store, under its lock."""

    def __init__(self) -> None:
        self._recent: dict[str, Window] = {}

    def window(self, timezone: str, at_s: float) -> Window:
        """The window that `at_s` (Unix seconds) falls into."""
        recent = self._recent.get(timezone)
        if recent is not None and recent.start_s <= at_s < recent.end_s:
            return recent
        found = _find(zone(timezone), at_s)
        self._recent[timezone] = found
        return found


def _find(info: ZoneInfo, at_s: float) -> Window:
    at = int(at_s // 1)
    today = _date(info, at)
    # A day is the stretch of instants around `at` that carry this date or, where clocks fall back over
    # midnight and the date is left and entered again, everything up to the first instant of a later date.
    start = _first_instant(info, at, today)
    end = _edge(info, at, lambda d: d > today, forward=True)
    return Window(today.isoformat(), start, end)


def _first_instant(info: ZoneInfo, at: int, today: date) -> int:
    return _edge(info, at, lambda d: d < today, forward=False)


def _edge(info: ZoneInfo, at: int, outside: _Outside, *, forward: bool) -> int:
    """Where the day around `at` ends (first instant outside) or starts (first instant inside), to the second."""
    step = _HOUR_S if forward else -_HOUR_S
    inside = at
    for _ in range(_SEARCH_HOURS):
        probe = inside + step
        if outside(_date(info, probe)):
            break
        inside = probe
    else:  # pragma: no cover - no civil calendar has such a day
        raise ConfigError(f"The calendar of {info.key} has a day longer than {_SEARCH_HOURS} hours.")
    out = probe
    while abs(out - inside) > 1:
        middle = (out + inside) // 2
        if outside(_date(info, middle)):
            out = middle
        else:
            inside = middle
    return out if forward else inside


def _date(info: ZoneInfo, at: int) -> date:
    return datetime.fromtimestamp(at, UTC).astimezone(info).date()
