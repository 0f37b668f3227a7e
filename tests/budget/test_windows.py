"""Days of 23, 24 and 25 hours, midnights that are skipped or come twice, and dates that do not exist."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from functools import cache
from itertools import pairwise
from zoneinfo import ZoneInfo

import pytest

from agentao_gov.budget.windows import WindowCalendar, zone
from agentao_gov.errors import ConfigError

ZONES = """
UTC Africa/Cairo Africa/Casablanca Africa/El_Aaiun Africa/Johannesburg Africa/Juba Africa/Lagos America/Asuncion
America/Bogota America/Chicago America/Havana America/Los_Angeles America/Mexico_City America/New_York America/Nuuk
America/Santiago America/Sao_Paulo America/Scoresbysund America/St_Johns America/Whitehorse Antarctica/Troll
Antarctica/Casey Asia/Almaty Asia/Amman Asia/Beirut Asia/Colombo Asia/Damascus Asia/Gaza Asia/Jerusalem
Asia/Kathmandu Asia/Kolkata Asia/Shanghai Asia/Tehran Asia/Tokyo Atlantic/Azores Australia/Adelaide
Australia/Lord_Howe Europe/Berlin Europe/Dublin Europe/Istanbul Europe/Kyiv Europe/London Europe/Moscow Pacific/Apia
Pacific/Auckland Pacific/Chatham Pacific/Easter Pacific/Fiji Pacific/Kiritimati Pacific/Norfolk
""".split()  # noqa: SIM905 - a list of fifty lines says no more


def local_date(info: ZoneInfo, at_s: int) -> str:
    return datetime.fromtimestamp(at_s, UTC).astimezone(info).date().isoformat()


def offset(info: ZoneInfo, at_s: int) -> timedelta:
    found = datetime.fromtimestamp(at_s, UTC).astimezone(info).utcoffset()
    assert found is not None
    return found


@cache
def transitions(info: ZoneInfo) -> list[int]:
    """Every instant from 2020 to 2037 at which the clocks change."""
    start, end = (int(datetime(year, 1, 1, tzinfo=UTC).timestamp()) for year in (2020, 2038))
    found = []
    days = [(at_s, offset(info, at_s)) for at_s in range(start, end, 3 * 86_400)]
    for (before, old), (after, new) in pairwise(days):
        if old == new:
            continue
        low, high = before, after
        while high - low > 1:
            middle = (low + high) // 2
            if offset(info, middle) == old:
                low = middle
            else:
                high = middle
        found.append(high)
    return found


@pytest.mark.parametrize("name", ZONES)
def test_the_days_around_every_clock_change_fit_together(name: str) -> None:
    """From the day before to the day after: each instant has its date, and each window starts where one ends."""
    info, calendar = ZoneInfo(name), WindowCalendar()
    for change in [*transitions(info), 1_790_000_000]:
        window = calendar.window(name, change - 86_400)
        while window.start_s < change + 86_400:
            for at_s in (window.start_s, (window.start_s + window.end_s) // 2, window.end_s - 1):
                assert window.name == local_date(info, at_s)
            following = calendar.window(name, window.end_s)
            assert following.start_s == window.end_s
            assert following.name > window.name
            # Casey in Antarctica has had a day of 27 hours.
            assert 20 * 3600 <= window.end_s - window.start_s <= 28 * 3600
            window = following


def test_at_least_forty_zones_are_tried() -> None:
    """As promised, and most of them change their clocks."""
    assert len(ZONES) >= 40
    assert sum(bool(transitions(ZoneInfo(name))) for name in ZONES) >= 25


@pytest.mark.parametrize(
    ("name", "day", "hours"),
    [
        ("Europe/Berlin", "2026-03-29", 23),
        ("Europe/Berlin", "2026-10-25", 25),
        ("Australia/Lord_Howe", "2026-04-05", 24.5),
        ("America/Havana", "2026-03-08", 23),
        ("America/Havana", "2026-11-01", 25),
    ],
)
def test_a_day_has_the_hours_it_has(name: str, day: str, hours: float) -> None:
    """Days of 23, 24.5 and 25 hours; in Havana the missing and the repeated hour lie at midnight."""
    noon = int(datetime.fromisoformat(f"{day}T12:00").replace(tzinfo=ZoneInfo(name)).timestamp())

    window = WindowCalendar().window(name, noon)

    assert (window.name, (window.end_s - window.start_s) / 3600) == (day, hours)


def test_a_date_that_does_not_exist_is_skipped() -> None:
    """Apia went from 29 to 31 December 2011 and never had a thirtieth."""
    calendar = WindowCalendar()
    last = calendar.window("Pacific/Apia", datetime(2011, 12, 29, 22, tzinfo=ZoneInfo("Pacific/Apia")).timestamp())

    following = calendar.window("Pacific/Apia", last.end_s)

    assert (last.name, following.name) == ("2011-12-29", "2011-12-31")
    assert (last.end_s - last.start_s, following.end_s - following.start_s) == (86_400, 86_400)


def test_an_unknown_zone_is_an_error() -> None:
    """Taking UTC instead would move midnight by hours without a word."""
    for name in ("Europe/Atlantis", "", "../etc/passwd", "/etc/localtime"):
        with pytest.raises(ConfigError, match="time zone"):
            zone(name)
