"""A bill of a month or a day, written at once, also while the program's worker runs."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

from jobs import run_hours, tasks
from manager.billing import calendar, statements
from manager.storage import data_dir, maintenance, recorded_until, runs, spool

_WORKER_SECONDS = 120.0  # that the program's worker may take to price what is there
_RECORD_SECONDS = (
    45.0  # that the program may take to record what is there: it does each half minute
)
_POLL_SECONDS = 0.1


class WorkerTimeout(Exception):
    """The program's worker, which has locked the bills, has not priced the requests in time."""


def write_bill(period: statements.Period, settings: tasks.WorkerSettings) -> tuple[Path, bool]:
    """The bill's file, and whether all of the period is on it, or will never be recorded. Raises
    WorkerTimeout, StoreError, sqlite3.Error, OSError; ValueError for a day that the time zone has
    skipped."""
    runner = tasks.TaskRunner(settings)
    _, end_ms = period.bounds_ms(calendar.zone(settings.timezone))
    spool.commit_leftovers(settings.data_dir)
    with closing(maintenance.connect(runner.path)) as connection:
        recorded_ms = _recorded(connection, settings.data_dir, end_ms)
        with tasks.lock_billing(settings.data_dir, 0) as is_ours:
            if is_ours:
                runner.bring_up_to_date(connection)
        if not is_ours:
            _wait_for_worker(connection, settings, end_ms if recorded_ms >= end_ms else 0)
        return runner.export(connection, period, recorded_ms), recorded_ms >= end_ms


def _recorded(connection: sqlite3.Connection, folder: Path, end_ms: int) -> int:
    """Up to when everything is in the database. Where a period that is over is not recorded whole,
    waits for the program to do that, for a bounded time."""
    now_ms = time.time_ns() // 1_000_000
    if data_dir.owner(folder) is None:
        # Of a run that has not ended its server may live on, for the next program to take over.
        return min([now_ms, *runs.last_seen(connection)])
    if end_ms <= now_ms:
        _wait(lambda: recorded_until(connection) >= end_ms, _RECORD_SECONDS)
    return recorded_until(connection)


def _wait_for_worker(
    connection: sqlite3.Connection, settings: tasks.WorkerSettings, until_ms: int
) -> None:
    """Until all is priced that was there at the call, and all time that runs took before
    ``until_ms``."""
    newest = maintenance.newest_seq(connection)

    def is_priced() -> bool:
        return maintenance.billed_seq(connection) >= newest and run_hours.are_billed(
            connection, until_ms
        )

    if not _wait(is_priced, _WORKER_SECONDS):
        raise WorkerTimeout(
            "the running program has not priced all requests within two minutes: see"
            f" {settings.data_dir / 'logs' / 'worker.log'}"
        )


def _wait(condition: Callable[[], bool], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(_POLL_SECONDS)
    return True
