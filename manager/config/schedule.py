"""Cron expressions of five fields, with the meaning that Debian's cron gives them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone

from cronsim import CronSim, CronSimError

_FIELDS = ("minute", "hour", "day", "month", "weekday")
_FROM_A_DAY_ON = re.compile(r"(?<!-)\b([0-6])/")


def check(expression: str) -> None:
    """Raises ValueError, with what to write, where it is no cron expression."""
    next_time(expression, datetime(2000, 1, 1, tzinfo=timezone.utc))


def next_time(expression: str, moment: datetime) -> datetime | None:
    """The first time from `moment` on, by the clock of its zone; None where there is none within
    fifty years. A time that daylight saving skips is the first one after it.

    Raises ValueError as `check` does.
    """
    # The library gives what comes after a whole second, but `moment` itself may be the time.
    after = (moment.astimezone(timezone.utc) - timedelta(microseconds=1)).astimezone(moment.tzinfo)
    # In the hour that is there twice, the library begins in the first.
    return next((time for time in _times(expression, after) if _is_from(moment, time)), None)


def _is_from(moment: datetime, time: datetime) -> bool:
    """Of one zone they would be compared by the clock on the wall."""
    return time.astimezone(timezone.utc) >= moment.astimezone(timezone.utc)


def _times(expression: str, after: datetime) -> Iterator[datetime]:
    fields = expression.lower().split()
    if len(fields) != len(_FIELDS):
        names = ", ".join(_FIELDS)
        raise ValueError(f"expected five fields ({names}), found {len(fields)}")
    minute, hour, day, month, weekday = fields
    # To the library Sunday is 0 and 7, and both are in a span that is left open: `3/2` is 3 and 5.
    weekday = _FROM_A_DAY_ON.sub(r"\1-6/", weekday.replace("sun", "7"))
    try:
        return _library(after, minute, hour, day, month, weekday)
    except ValueError:
        # Raised also for a day that none of the months has, such as the 31st of February. If the
        # fields are right one by one it is no mistake, and never comes.
        _library(after, minute, hour, "1", month, weekday)
        _library(after, minute, hour, day, "*", weekday)
        return iter(())


def _library(after: datetime, *fields: str) -> CronSim:
    try:
        return CronSim(" ".join(fields), after)
    except CronSimError as error:
        raise ValueError(
            f"{error}: write five fields such as '0 3 1 * *' or '*/15 * * * 1-5'"
        ) from None
