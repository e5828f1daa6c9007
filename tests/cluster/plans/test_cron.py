"""Fires against a walk over every minute, on nights whose clocks change and on others."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from itertools import takewhile
from zoneinfo import ZoneInfo

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from cluster.plans.cron import check_expression, check_zone, fires, next_fire

NIGHTS = {
    "Europe/Berlin": ((2027, 3, 28), (2026, 10, 25)),
    "America/New_York": ((2027, 3, 14), (2026, 11, 1)),
    "Australia/Lord_Howe": ((2026, 10, 4), (2027, 4, 4)),  # by half an hour
    "Pacific/Apia": ((2011, 12, 30),),  # a day that never was
    "Asia/Kathmandu": ((2026, 6, 1),),
    "UTC": ((2026, 10, 25),),
}
"""Days on which clocks change, and two on which they do not."""
MINUTE = timedelta(minutes=1)
numbers = st.sets(st.integers(0, 59), min_size=1, max_size=3)
hours = st.sets(st.sampled_from([0, 1, 2, 3, 4, 12, 23]), min_size=1, max_size=3)


def walk(zone: ZoneInfo, start: datetime, stop: datetime) -> Iterator[datetime]:
    """Every minute in the zone's time."""
    instant = start
    while instant < stop:
        yield instant.astimezone(zone)
        instant += MINUTE


@st.composite
def nights(draw: st.DrawFn) -> tuple[str, datetime, datetime]:
    """A zone, and three days around one of its nights from any minute on."""
    zone = draw(st.sampled_from(sorted(NIGHTS)))
    day = datetime(*draw(st.sampled_from(NIGHTS[zone])), tzinfo=UTC)
    start = day + draw(st.integers(-40, 30)) * timedelta(hours=1) + draw(st.integers(0, 59)) * MINUTE
    return zone, start, start + timedelta(days=3)


def fires_in(expression: str, zone: str, start: datetime, stop: datetime) -> list[datetime]:
    return [fire.astimezone(UTC) for fire in takewhile(lambda fire: fire < stop, fires(expression, zone, start))]


@settings(max_examples=150, deadline=None)
@given(nights(), numbers, hours, st.booleans())
@example(("Europe/Berlin", datetime(2027, 3, 27, tzinfo=UTC), datetime(2027, 3, 30, tzinfo=UTC)), {30}, {2}, False)
@example(("Europe/Berlin", datetime(2026, 10, 24, tzinfo=UTC), datetime(2026, 10, 27, tzinfo=UTC)), {30}, {2}, False)
@example(("Europe/Berlin", datetime(2026, 10, 25, 1, 10, tzinfo=UTC), datetime(2026, 10, 27, tzinfo=UTC)), {30}, {2}, False)
def test_a_time_of_day_fires_once_a_day_at_its_first_coming_or_when_the_clock_has_jumped_over_it(
    night: tuple[str, datetime, datetime], minutes: set[int], at: set[int], starred: bool
) -> None:
    name, start, stop = night
    if starred:
        minutes = set(range(0, 60, 20))
    zone, begin = ZoneInfo(name), start - timedelta(days=3)
    due: dict[tuple[object, int, int], datetime] = {}
    before = begin.astimezone(zone).replace(tzinfo=None)
    for local in walk(zone, begin, stop):
        naive = local.replace(tzinfo=None)
        passed = before + MINUTE
        while passed <= naive:  # the wall clock's minutes up to this one, jumped over or not
            if passed.hour in at and passed.minute in minutes:
                due.setdefault((passed.date(), passed.hour, passed.minute), local.astimezone(UTC))
            passed += MINUTE
        before = max(before, naive)
    expected = sorted({instant for instant in due.values() if start < instant < stop})
    expression = f"{'*/20' if starred else ','.join(map(str, sorted(minutes)))} {','.join(map(str, sorted(at)))} * * *"
    assert fires_in(expression, name, start, stop) == expected


@settings(max_examples=60, deadline=None)
@given(nights(), numbers, st.integers(1, 5))
@example(("Australia/Lord_Howe", datetime(2026, 10, 3, 15, tzinfo=UTC), datetime(2026, 10, 6, tzinfo=UTC)), {30}, 1)
@example(("Australia/Lord_Howe", datetime(2027, 4, 3, tzinfo=UTC), datetime(2027, 4, 6, tzinfo=UTC)), {15}, 2)
def test_an_hourly_job_fires_each_time_that_really_passes(
    night: tuple[str, datetime, datetime], minutes: set[int], step: int
) -> None:
    name, start, stop = night
    passing = walk(ZoneInfo(name), start + MINUTE, stop)
    expected = [local.astimezone(UTC) for local in passing if local.hour % step == 0 and local.minute in minutes]
    assert fires_in(f"{','.join(map(str, sorted(minutes)))} */{step} * * *", name, start, stop) == expected


def test_the_night_without_two_thirty_fires_at_three() -> None:
    after = datetime(2027, 3, 27, 12, tzinfo=UTC)
    assert next_fire("30 2 * * *", "Europe/Berlin", after).isoformat() == "2027-03-28T03:00:00+02:00"


def test_the_night_with_two_thirty_twice_fires_at_the_first() -> None:
    first = next_fire("30 2 * * *", "Europe/Berlin", datetime(2026, 10, 24, 12, tzinfo=UTC))
    assert first.isoformat() == "2026-10-25T02:30:00+02:00"
    assert next_fire("30 2 * * *", "Europe/Berlin", first).isoformat() == "2026-10-26T02:30:00+01:00"


def test_sunday_is_0_and_7_as_in_crontab() -> None:
    after = datetime(2026, 11, 23, tzinfo=UTC)  # a Monday
    for day in ("0", "7", "SUN"):
        assert next_fire(f"0 2 * * {day}", "UTC", after).isoformat() == "2026-11-29T02:00:00+00:00"


@pytest.mark.parametrize(
    "expression", ["", "0 2 * *", "0 2 * * * *", "60 2 * * *", "@daily", "0 2 31 2 *", "0 25 * * *", "every day"]
)
def test_what_is_no_cron_expression_is_refused_with_an_example(expression: str) -> None:
    with pytest.raises(ValueError, match="as in '0 2"):
        check_expression(expression)


@pytest.mark.parametrize("zone", ["", "Europe/Atlantis", "../../etc/passwd", "CEST+1", "\0"])
def test_an_unknown_time_zone_is_refused_with_an_example(zone: str) -> None:
    with pytest.raises(ValueError, match="write it as in Europe/Berlin"):
        check_zone(zone)
