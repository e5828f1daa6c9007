"""When a cron expression fires, in a time zone whose clocks change.

The expressions are read and walked by cronsim, which does what Debian's cron does: a job at a given time of day fires once
on each day that it names. Where clocks jump over the time it fires when they have jumped; where the time comes twice, at the
first. APScheduler was rejected after a trial (3.11): its cron trigger fires twice on the night that has an hour twice, and
numbers the days of the week from Monday where crontab numbers them from Sunday.
"""

from collections.abc import Iterator
from datetime import UTC, datetime
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
    last = after
    for fire in CronSim(_by_the_day(expression), after.astimezone(ZoneInfo(zone))):
        if fire.astimezone(UTC) > last.astimezone(UTC):  # times that are jumped over together fire together, once
            yield fire
            last = fire


def next_fire(expression: str, zone: str, after: datetime) -> datetime:
    """The first fire after an aware datetime, in the zone's time."""
    return next(fires(expression, zone, after))


def _by_the_day(expression: str) -> str:
    """The same times, with the minutes written out where the hours are.

    cronsim, like Debian's cron, takes `*/20 2 * * *` for a job that goes by the clock, so that on the day whose hour 2 is
    jumped over it would not fire at all.
    """
    minute, hour, *days = expression.split()
    if hour.startswith("*") or not minute.startswith("*"):
        return expression
    minutes = sorted(CronSim(expression, datetime(2000, 1, 1)).minutes)  # parsed, not walked
    return " ".join([",".join(map(str, minutes)), hour, *days])
