"""The bills that the schedule asks for: one of each month or day, however many were missed."""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Callable
from pathlib import Path

from jobs.watermark import Recorded
from manager.billing import Period, calendar, statements
from manager.clock import Clock
from manager.config import Export, Program, next_time
from manager.storage import MaintenanceTasks, get_mark, maintenance, read_connection

log = logging.getLogger("manager.bills")

_AT_ONCE = 31  # bills that wait for the worker: between them it prices, and makes other bills
_RETRY_MS = 60_000


class ScheduledExport:
    """Orders the bill of each period, once, at the first time of the schedule after its end: when
    everything of the period is recorded, which ``advance`` sees to.

    The mark ``bills:month`` or ``bills:day`` of usage.db is the last period that was ordered. So a
    bill whose file was deleted stays deleted, and a zone that is changed makes none twice. Where
    there is no mark yet, bills go on from the latest one in the folder, else begin with the last
    period that has ended; in a data folder in which nothing is stored yet the mark is empty, and
    they begin with the first period that has something on its bill.

    A clock that was set back takes the mark back to what has ended by it. The worker keeps the
    files that are there of periods that are ordered again.
    """

    def __init__(
        self,
        program: Program,
        export: Export,
        data_dir: Path,
        orders: MaintenanceTasks,
        clock: Clock,
        advance: Callable[[], Recorded],
    ) -> None:
        self._export = export
        self._zone = calendar.zone(program.timezone)
        self._folder = statements.directory(program.export_directory, data_dir)
        self._usage_db = data_dir / "usage.db"
        self._orders = orders
        self._clock = clock
        self._advance = advance
        self._mark = f"bills:{export.period}"
        self._seen_ms = 0  # the wall clock at the last tick
        self._next_ms = 0  # when there may be something to order
        self._was_off = True  # what is due was due before the program was there
        self._is_behind = False  # there was more than is ordered at once, or is recorded
        self._waiting: Period | None = None  # the one that is not recorded yet

    def tick(self) -> None:
        """About once a second: orders what is due."""
        now_ms = self._clock.wall_ms()
        was_set_back, self._seen_ms = now_ms < self._seen_ms, now_ms
        if now_ms < self._next_ms and not was_set_back:
            return
        try:
            self._next_ms = self._order(now_ms)
        except (sqlite3.Error, OSError, ValueError, OverflowError) as error:
            log.error("the bills that are due are not made yet: %s", error)
            self._next_ms = now_ms + _RETRY_MS

    def due_ms(self, period: Period) -> int | None:
        """The first time of the schedule after its end; None where there is none. Raises
        ValueError for a day that the zone has skipped."""
        _, end_ms = period.bounds_ms(self._zone)
        time = next_time(self._export.schedule, calendar.local(end_ms, self._zone))
        return None if time is None else round(time.timestamp() * 1000)

    def _order(self, now_ms: int) -> int:
        """Orders some of what is due; says when there may be more."""
        known = [order for order in self._orders.load_all() if order.notes.get("scheduled")]
        if any(order.error is None for order in known):
            return now_ms  # the worker has not come to them yet
        last = Period.last_complete(self._export.period, now_ms, self._zone)
        mark, done, period = self._progress(last)
        # Once a time of the schedule, those that failed are tried again, as on a full disk.
        wanted = {} if self._is_behind else {order.subject: order.notes for order in known}
        most = len(wanted) + _AT_ONCE
        self._is_behind = True
        recorded: Recorded | None = None
        while len(wanted) < most:
            try:
                due_ms = self.due_ms(period)
            except ValueError:
                period = period.after()  # there is no such day
                continue
            if due_ms is None or due_ms > now_ms:
                self._is_behind = self._was_off = False
                break
            recorded = recorded or self._advance()
            if not self._is_recorded(period, recorded):
                break
            is_missed = self._was_off or period != last
            wanted[period.text] = {"scheduled": True, "unless_empty": is_missed}
            done, period = period.text, period.after()
        if wanted or mark != done:
            self._orders.enqueue_all("export", wanted, {self._mark: done})
        if self._is_behind:
            return now_ms
        return now_ms + _RETRY_MS if due_ms is None else due_ms

    def _is_recorded(self, period: Period, recorded: Recorded) -> bool:
        _, end_ms = period.bounds_ms(self._zone)
        if recorded.until_ms >= end_ms:
            return True
        if recorded.waits_for and self._waiting != period:
            self._waiting = period
            log.info("the bill of %s waits for %s", period.text, recorded.waits_for)
        return False

    def _progress(self, last: Period) -> tuple[str | None, str, Period]:
        """The mark, what it is to be, and the period that comes after that."""
        with read_connection(self._usage_db) as connection:
            mark = get_mark(connection, self._mark)
            oldest_ms = None if mark else maintenance.oldest_ms(connection)
        if mark:
            done = Period.parse(mark)
            if done.first > last.first:
                done = last
        elif mark is None and oldest_ms is not None:
            done = self._latest_bill(last) or last.before()
        elif oldest_ms is None:
            return mark, "", last.after()
        else:
            return mark, "", Period.of(self._export.period, oldest_ms, self._zone)
        return mark, done.text, done.after()

    def _latest_bill(self, last: Period) -> Period | None:
        """The latest one that is there, of a whole period."""
        for path in statements.list_files(self._folder):
            period = statements.period_of(path.name)
            if (
                period is not None
                and period.is_month == last.is_month
                and period.first <= last.first
                and statements.is_made(path, period, self._zone)
            ):
                return period
        return None
