"""A bill of a month or a day, written at once, also while the program's worker runs."""

from __future__ import annotations

import sqlite3
import time
from contextlib import closing
from pathlib import Path

from jobs import tasks
from manager.billing import statements
from manager.storage import maintenance, spool

_WORKER_SECONDS = 120.0  # that the program's worker may take to price what is there
_POLL_SECONDS = 0.1


class WorkerTimeout(Exception):
    """The program's worker, which has locked the bills, has not priced the requests in time."""


def write_bill(period: statements.Period, settings: tasks.WorkerSettings) -> Path:
    """The bill's file. Raises WorkerTimeout, StoreError, sqlite3.Error, OSError; ValueError for a
    day that the time zone has skipped."""
    runner = tasks.TaskRunner(settings)
    spool.commit_leftovers(settings.data_dir)
    with closing(maintenance.connect(runner.path)) as connection:
        with tasks.lock_billing(settings.data_dir, 0) as is_ours:
            if is_ours:
                runner.bring_up_to_date(connection)
        if not is_ours:
            _wait_for_worker(connection, settings)
        return runner.export(connection, period)


def _wait_for_worker(connection: sqlite3.Connection, settings: tasks.WorkerSettings) -> None:
    """Until all is priced that was there at the call. What still runs is billed every half minute,
    and is in the bill up to then."""
    newest = maintenance.newest_seq(connection)
    deadline = time.monotonic() + _WORKER_SECONDS
    while maintenance.billed_seq(connection) < newest:
        if time.monotonic() > deadline:
            raise WorkerTimeout(
                "the running program has not priced all requests within two minutes: see"
                f" {settings.data_dir / 'logs' / 'worker.log'}"
            )
        time.sleep(_POLL_SECONDS)
