"""When a cron expression fires, in a time zone whose clocks change.

The expressions are read by cronsim, which does what Debian's cron does: a job at a given time of day fires once on each day
that it names. Where clocks jump over the time it fires when they have jumped; where the time comes twice, at the first.
APScheduler was rejected after a trial (3.11): its cron trigger fires twice on the night that has an hour twice, and numbers
the days of the week from Monday where crontab numbers them from Sunday. Jobs that go by the clock are walked minute by minute
within the days that cronsim names, because its own walk (2.8) steps by whole hours and so passes by what fires next to a
change of half an hour, as on Lord Howe Island.
"""

from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from itertools import dropwhile
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from cronsim import CronSim, CronSimError


def check_zone(name: str) -> str:
    """The name of a time zone.

    Raises:
        ValueError: there is no such time zone.
    """
    try:
        ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError) as error:
        raise ValueError(f"there is no time zone {name!r}; write it as in Europe/Berlin or UTC") from error
    return name


def check_expression(expression: str) -> str:
    """The expression itself.

    Raises:
        ValueError: it is not five fields of cron, or it never fires.
    """
    try:
        if len(expression.split()) != 5:
            raise CronSimError("Wrong number of fields")
        next(CronSim(expression, datetime(2000, 1, 1)))
    except CronSimError as error:
        problem = str(error).lower()
        raise ValueError(
            f"{expression!r} is not cron ({problem}); write minute, hour, day, month and day of the week, as in '0 2 * * *'"
        ) from error
    except StopIteration as error:
        raise ValueError(f"{expression!r} never fires: no year has such a day") from error
    return expression


def fires(expression: str, zone: str, after: datetime) -> Iterator[datetime]:
    """When an expression fires, ascending and without repeats, in the zone's time.

    Where the hour field begins with `*` the expression goes by the clock instead of the day: an hour that comes twice fires
    twice, one that is jumped over not at all.

    Args:
        after: an aware datetime; the first fire is later than it.
    """
    hour = expression.split()[1]
    walk = _by_the_clock if hour.startswith("*") else _by_the_day
    return dropwhile(
        lambda fire: fire.astimezone(UTC) <= after.astimezone(UTC), walk(expression, after.astimezone(ZoneInfo(zone)))
    )


def next_fire(expression: str, zone: str, after: datetime) -> datetime:
    """The first fire after an aware datetime, in the zone's time."""
    return next(fires(expression, zone, after))


def _by_the_day(expression: str, start: datetime) -> Iterator[datetime]:
    """Each time of each day once, from `start` on.

    The minutes are written out, because cronsim, like Debian's cron, takes `*/20 2 * * *` for a job that goes by the clock,
    which on the day whose hour 2 is jumped over would not fire at all.
    """
    _, *others = expression.split()
    minutes = sorted(CronSim(expression, datetime(2000, 1, 1)).minutes)  # parsed, not walked
    last = None
    for fire in CronSim(" ".join([",".join(map(str, minutes)), *others]), start):
        if last is None or fire.astimezone(UTC) > last.astimezone(UTC):  # what is jumped over together fires together, once
            yield fire
            last = fire


def _by_the_clock(expression: str, start: datetime) -> Iterator[datetime]:
    """Each minute that really passes and that the expression names, from the day of `start` on."""
    times = CronSim(expression, datetime(2000, 1, 1))  # parsed, not walked
    midnights = CronSim(
        " ".join(["0 0", *expression.split()[2:]]), datetime.combine(start, datetime.min.time()) - timedelta(seconds=1)
    )
    for midnight in midnights:
        yield from (
            local
            for local in _minutes_of(midnight.date(), start)
            if local.hour in times.hours and local.minute in times.minutes
        )


def _minutes_of(day: date, start: datetime) -> Iterator[datetime]:
    """Each minute of a day in the zone of `start`: 1,440 of them, or as many as its clocks leave."""
    assert isinstance(start.tzinfo, ZoneInfo)
    instant = datetime(day.year, day.month, day.day, tzinfo=start.tzinfo).astimezone(UTC)
    tomorrow = day + timedelta(days=1)
    end = datetime(tomorrow.year, tomorrow.month, tomorrow.day, tzinfo=start.tzinfo).astimezone(UTC)
    while instant < end:
        local = instant.astimezone(start.tzinfo)
        if local.date() == day:  # not so on a day that never was
            yield local
        instant += timedelta(minutes=1)
