"""Times of cron around each change of each zone's clock in a year, against a search minute by minute."""

from __future__ import annotations

import random
from bisect import bisect_right
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta, timezone
from functools import cache
from zoneinfo import ZoneInfo, available_timezones

import pytest

from greenconn.service.periodic import Cron

pytest.importorskip("cronsim")
pytestmark = [pytest.mark.pure]

YEAR = 2026
DAY = 86400
HOUR = 3600
#: Seconds before and after a change from which the next time is looked for.
AROUND = 3 * HOUR

Matches = Callable[[datetime], bool]

#: Times of day, each called once: in the first of two equal hours, or after an hour that is left out.
OF_DAY: dict[str, Matches] = {
    "30 2 * * *": lambda t: (t.hour, t.minute) == (2, 30),
    "0 0 * * *": lambda t: (t.hour, t.minute) == (0, 0),
    "59 23 * * *": lambda t: (t.hour, t.minute) == (23, 59),
    "0,30 1-3 * * *": lambda t: t.hour in (1, 2, 3) and t.minute in (0, 30),
    "0 3 * * SUN": lambda t: (t.isoweekday(), t.hour, t.minute) == (7, 3, 0),
    "5 0 1 * *": lambda t: (t.day, t.hour, t.minute) == (1, 0, 5),
}
#: Those with a star for the minute or the hour, which follow the clock of the zone.
OF_CLOCK: dict[str, Matches] = {
    "*/20 * * * *": lambda t: t.minute % 20 == 0,
    "15 * * * *": lambda t: t.minute == 15,
    "* 0 * * *": lambda t: t.hour == 0,
    "45 */2 * * *": lambda t: t.hour % 2 == 0 and t.minute == 45,
}
#: cronsim goes by whole hours of the zone's clock, and may so leave out what is left of an hour there.
UNEVEN = ("Australia/LHI", "Australia/Lord_Howe", "NZ-CHAT", "Pacific/Chatham")


def changes(zone: ZoneInfo) -> Iterator[int]:
    """Yield the seconds since 1970 at which the clock of *zone* is changed."""

    def offset(at: int) -> timedelta | None:
        return datetime.fromtimestamp(at, zone).utcoffset()

    begin = int(datetime(YEAR, 1, 1, tzinfo=timezone.utc).timestamp())
    for day in range(begin, begin + 365 * DAY, DAY):
        low, high = day, day + DAY
        if offset(low) != offset(high):
            while high - low > 1:
                middle = (low + high) // 2
                low, high = (middle, high) if offset(middle) == offset(low) else (low, middle)
            yield high


@cache
def all_changes() -> list[tuple[str, int]]:
    """Return a zone for each pair of a moment and a change of the clock, and the moment."""
    found: dict[tuple[int, timedelta | None, timedelta | None], str] = {}
    for name in sorted(available_timezones()):
        zone = ZoneInfo(name)
        for at in changes(zone):
            before, after = (
                datetime.fromtimestamp(each, zone).utcoffset() for each in (at - 1, at)
            )
            found.setdefault((at, before, after), name)
    return [(name, at) for (at, _, _), name in found.items()]


def times_of_day(matches: Matches, zone: ZoneInfo, begin: int, end: int) -> list[float]:
    """Return when a time of day is due between two moments."""
    local = datetime.fromtimestamp(begin, zone).replace(second=0, tzinfo=None) - timedelta(hours=4)
    last = datetime.fromtimestamp(end, zone).replace(tzinfo=None)
    found = set()
    while local < last:
        if matches(local):
            there = local
            while round_trip(there, zone) != there:
                there += timedelta(minutes=1)
            found.add(there.replace(tzinfo=zone).timestamp())
        local += timedelta(minutes=1)
    return sorted(found)


def round_trip(local: datetime, zone: ZoneInfo) -> datetime:
    """Return *local* as the clock of *zone* shows it, which leaves some times out."""
    return datetime.fromtimestamp(local.replace(tzinfo=zone).timestamp(), zone).replace(
        tzinfo=None, fold=0
    )


def times_of_clock(matches: Matches, zone: ZoneInfo, begin: int, end: int) -> list[float]:
    """Return the moments between two others at which the clock of *zone* shows a matching minute."""
    moments = range(begin - begin % 60, end, 60)
    return [float(at) for at in moments if matches(datetime.fromtimestamp(at, zone))]


def check(name: str, changed_at: int, afters: list[float]) -> None:
    """Check the next times after each of *afters*, all around *changed_at*."""
    zone = ZoneInfo(name)
    begin, end = changed_at - AROUND - HOUR, changed_at + AROUND + 30 * HOUR
    for expression, matches in {**OF_DAY, **OF_CLOCK}.items():
        search = times_of_day if expression in OF_DAY else times_of_clock
        times = search(matches, zone, begin, end)
        cron = Cron(expression, zone)
        for after in afters:
            found = cron.following(after)
            where = (
                f"{expression} {name}: {datetime.fromtimestamp(after, zone)} -> {found - after:g} s"
            )
            assert found > after, where
            index = bisect_right(times, after)
            if index == len(times):
                assert found >= end - HOUR, where
            elif expression in OF_CLOCK and name in UNEVEN:
                assert found in times, where
            else:
                assert found == times[index], where


@pytest.mark.parametrize("seed", range(2))
def test_the_next_time_is_later_than_now(seed: int) -> None:
    chance = random.Random(seed)
    for name, changed_at in chance.sample(all_changes(), 8):
        afters = {changed_at + near for near in (-HOUR, -1, -0.5, 0, 0.5, 1, HOUR)}
        afters |= {changed_at + chance.randrange(-AROUND, AROUND) for _ in range(10)}
        afters |= {
            changed_at + 60 * chance.randrange(-AROUND // 60, AROUND // 60) for _ in range(10)
        }
        check(name, changed_at, sorted(afters))


@pytest.mark.long
@pytest.mark.timeout(3600)  # ten minutes of the processor
def test_the_next_time_is_later_than_each_second() -> None:
    for name, changed_at in all_changes():
        check(name, changed_at, [float(changed_at + each) for each in range(-AROUND, AROUND)])


@pytest.mark.parametrize(
    ("after", "due"),
    [
        ("2027-03-01T00:00:00", "2028-02-29T12:00:00"),
        ("2028-02-29T11:59:59", "2028-02-29T12:00:00"),
        ("2028-02-29T12:00:00", "2032-02-29T12:00:00"),
        ("2096-02-29T12:00:00", "2104-02-29T12:00:00"),  # 2100 has none
    ],
)
@pytest.mark.parametrize("name", ["UTC", "Europe/Paris", "Pacific/Apia"])
def test_leap_days(name: str, after: str, due: str) -> None:
    zone = ZoneInfo(name)
    cron = Cron("0 12 29 2 *", zone)
    begin, end = (datetime.fromisoformat(each).replace(tzinfo=zone) for each in (after, due))
    assert cron.following(begin.timestamp()) == end.timestamp()
    last = Cron("0 12 L 2 *", zone)
    days = [
        datetime(year, 2, day, 12, tzinfo=zone).timestamp()
        for year, day in ((2027, 28), (2028, 29))
    ]
    assert [last.following(each - 1) for each in days] == days
