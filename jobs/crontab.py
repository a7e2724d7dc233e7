"""A crontab's line as APScheduler's trigger, with cron's meaning."""

from __future__ import annotations

from datetime import tzinfo

from apscheduler.triggers.base import BaseTrigger
from apscheduler.triggers.combining import OrTrigger
from apscheduler.triggers.cron import CronTrigger

from manager.config import cron


def trigger(line: str, zone: tzinfo) -> BaseTrigger:
    """The moments of a line that `manager.cron.fault` finds nothing wrong with, by the clock of
    the zone.

    APScheduler counts the days of the week from Monday, and wants both the day of the month and
    that of the week to fit; cron counts from Sunday, and where both are given one is enough.
    """
    minute, hour, day, month, weekday = line.lower().split()

    def on(**days: str) -> CronTrigger:
        return CronTrigger(minute=minute, hour=hour, month=month, timezone=zone, **days)

    if weekday.startswith("*") or day.startswith("*"):
        return on(day=day, day_of_week=_weekdays(weekday))
    return OrTrigger([on(day=day), on(day_of_week=_weekdays(weekday))])


def _weekdays(field: str) -> str:
    if field == "*":
        return field
    _, low, high, _ = cron.FIELDS[-1]
    days: set[str] = set()
    for part in field.split(","):
        numbers = cron.NUMBERS.fullmatch(part)
        if not numbers:
            first, last = cron.NAMES.fullmatch(part).groups()  # type: ignore[union-attr]
            begin = cron.WEEKDAYS.index(first)
            end = cron.WEEKDAYS.index(last) if last else begin
            days.update(cron.WEEKDAYS[begin : end + 1])
            continue
        first, last, step = numbers.groups()
        begin = low if first == "*" else int(first)
        end = int(last) if last else high if step or first == "*" else begin
        # Sunday is 0: the day before Monday.
        days.update(cron.WEEKDAYS[day - 1] for day in range(begin, end + 1, int(step or 1)))
    return ",".join(day for day in cron.WEEKDAYS if day in days)
