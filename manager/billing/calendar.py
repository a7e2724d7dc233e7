"""Pure time: the hours, days and months of a time zone, as UTC milliseconds of their start.

They follow each other without a gap and without an overlap, whatever the zone does. Where the
clock is set back an hour, that hour is there twice; where it is set on, a day has 23 hours; where
it moves by less, or in the middle of an hour, what is left of the hour is an hour of its own. A
day begins at the first moment of its date, even if its midnight does not exist; a date that was
skipped is no day.

Moments are epoch milliseconds; all functions raise OverflowError outside the years 2 to 9998.
"""

from __future__ import annotations

import zoneinfo
from collections.abc import Callable, Iterator
from datetime import date, datetime, timedelta, timezone, tzinfo

import tzlocal

HOUR_MS = 3_600_000
_DAY_MS = 24 * HOUR_MS
_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)
_MILLISECOND = timedelta(milliseconds=1)

Step = Callable[[int, tzinfo], int]


def zone(name: str | None) -> tzinfo:
    """The time zone of this IANA name, or the system's own; its ``str`` tells it from others.

    Raises ValueError, which says what to do, where there is none.
    """
    try:
        return zoneinfo.ZoneInfo(name) if name else tzlocal.get_localzone()
    except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError) as error:
        what = f"time zone {name!r}" if name else "the system's time zone"
        raise ValueError(f"{what} cannot be read: {error}; set program.timezone") from error


def hour_start_ms(ms: int, zone: tzinfo) -> int:
    """When the local hour began that `ms` lies in."""
    offset = _offset_ms(ms, zone)
    start = ms - (ms + offset) % HOUR_MS
    if _offset_ms(start, zone) == offset:
        return start
    return _first(start, ms, lambda moment: _offset_ms(moment, zone) == offset)


def day_start_ms(ms: int, zone: tzinfo) -> int:
    """When the local day began that `ms` lies in."""
    return _date_start_ms(_day(ms, zone), zone)


def month_start_ms(ms: int, zone: tzinfo) -> int:
    """When the local month began that `ms` lies in."""
    return _date_start_ms(_day(ms, zone).replace(day=1), zone)


def next_hour_ms(ms: int, zone: tzinfo) -> int:
    """When the local hour after that of `ms` begins."""
    offset = _offset_ms(ms, zone)
    end = ms - (ms + offset) % HOUR_MS + HOUR_MS
    # The clock may be set in the middle of it, or a moment before its end.
    if _offset_ms(end - 1, zone) == offset:
        return end
    return _first(ms, end - 1, lambda moment: _offset_ms(moment, zone) != offset)


def next_day_ms(ms: int, zone: tzinfo) -> int:
    """When the local day after that of `ms` begins."""
    day = _day(ms, zone)
    start = ms
    while start <= ms:  # of a date that was skipped, too
        day += timedelta(days=1)
        start = _date_start_ms(day, zone)
    return start


def next_month_ms(ms: int, zone: tzinfo) -> int:
    """When the local month after that of `ms` begins."""
    return _date_start_ms((_day(ms, zone).replace(day=1) + timedelta(days=32)).replace(day=1), zone)


def hours(start_ms: int, end_ms: int, zone: tzinfo) -> Iterator[int]:
    """The starts of the hours that have a part in `start_ms` to `end_ms`, the end excluded."""
    return _between(start_ms, end_ms, zone, hour_start_ms, next_hour_ms)


def days(start_ms: int, end_ms: int, zone: tzinfo) -> Iterator[int]:
    """The same of the days."""
    return _between(start_ms, end_ms, zone, day_start_ms, next_day_ms)


def months(start_ms: int, end_ms: int, zone: tzinfo) -> Iterator[int]:
    """The same of the months."""
    return _between(start_ms, end_ms, zone, month_start_ms, next_month_ms)


def local(ms: int, zone: tzinfo) -> datetime:
    """The moment as the zone's clocks show it."""
    return (_EPOCH + ms * _MILLISECOND).astimezone(zone)


def iso(ms: int) -> str:
    """The moment in UTC, as ISO 8601."""
    return local(ms, timezone.utc).isoformat(timespec="milliseconds")


def date_of(ms: int, zone: tzinfo) -> date:
    """The date of the local day that `ms` lies in."""
    return _day(ms, zone)


def _between(
    start_ms: int, end_ms: int, zone: tzinfo, start_of: Step, next_of: Step
) -> Iterator[int]:
    if start_ms >= end_ms:
        return
    at = start_of(start_ms, zone)
    while at < end_ms:
        yield at
        at = next_of(at, zone)


def _day(ms: int, zone: tzinfo) -> date:
    day = local(ms, zone).date()
    # Set back over midnight, the clock shows yesterday's date again: the new day has begun.
    tomorrow = day + timedelta(days=1)
    return tomorrow if _date_start_ms(tomorrow, zone) <= ms else day


def _date_start_ms(day: date, zone: tzinfo) -> int:
    """The first moment at which the zone's date is `day` or later."""
    midnight = (day - date(1970, 1, 1)).days * _DAY_MS
    # Offsets are less than a day, so one of these was in force when the day began.
    offsets = sorted({_offset_ms(midnight + days * _DAY_MS, zone) for days in (-1, 0, 1)})
    for offset in reversed(offsets):  # the earliest moment first
        if _offset_ms(midnight - offset, zone) == offset:
            return midnight - offset
    return _first(
        midnight - offsets[-1],
        midnight - offsets[0],
        lambda moment: moment + _offset_ms(moment, zone) >= midnight,
    )


def _offset_ms(ms: int, zone: tzinfo) -> int:
    offset = local(ms, zone).utcoffset()
    assert offset is not None  # a time with a zone has one
    return offset // _MILLISECOND


def _first(low: int, high: int, holds: Callable[[int], bool]) -> int:
    """The first moment after `low` for which it holds; it does for `high`, not for `low`, and
    changes once between them."""
    while high - low > 1:
        middle = (low + high) // 2
        if holds(middle):
            high = middle
        else:
            low = middle
    return high
