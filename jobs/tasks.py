"""What the worker does: prices new rows, carries out orders, clears up. All of it may be broken
off at any moment and done again.

The server imports this for the tasks' names; pandas comes with `jobs.billing`, in the worker only,
when there is something to bill.
"""

from __future__ import annotations

import contextlib
import json
import logging
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import asdict, dataclass
from datetime import datetime, timezone, tzinfo
from pathlib import Path
from typing import Any

from huey import Huey

from manager.billing import calendar, statements
from manager.config import Program
from manager.storage import Order, StoreError, maintenance, maintenance_tasks, recorded_until
from manager.storage import data_dir as datadir

log = logging.getLogger("manager.worker")

NAMES = ("bill", *maintenance_tasks.KINDS, "clean_up")
"""The tasks: pricing with all that waits, the orders of one kind, and retention."""

_DAY_MS = 24 * 3_600_000
_SAY_AGAIN_SECONDS = 60.0


@dataclass(frozen=True)
class WorkerSettings:
    """What the worker has to know of the config."""

    data_dir: Path
    log_level: str
    timezone: str | None
    currency: str
    request_retention_days: int
    exports: Path

    @classmethod
    def of(cls, program: Program, data_dir: Path) -> WorkerSettings:
        return cls(
            data_dir=data_dir.resolve(),
            log_level=program.log_level,
            timezone=program.timezone,
            currency=program.currency,
            request_retention_days=program.request_retention_days,
            exports=statements.directory(program.export_directory, data_dir).resolve(),
        )

    @classmethod
    def read(cls, line: str) -> WorkerSettings:
        """What `line` wrote."""
        given = json.loads(line)
        return cls(
            **{**given, "data_dir": Path(given["data_dir"]), "exports": Path(given["exports"])}
        )

    def line(self) -> str:
        """All of it in one line of text."""
        return json.dumps(asdict(self), default=str) + "\n"


def declare(huey: Huey, run: Callable[[str], None]) -> dict[str, Any]:
    """Makes the queue's tasks; calling one puts it into the queue. The worker calls ``run`` with
    its name."""

    def task(name: str) -> Any:
        def execute() -> None:
            run(name)

        return huey.task(name=name)(execute)

    return {name: task(name) for name in NAMES}


@contextlib.contextmanager
def lock_billing(data_dir: Path, seconds: float) -> Iterator[bool]:
    """Whether nobody else works on the folder's bills, after waiting so long at most; and then
    nobody does inside. It is a lock that ends with its process, on every system: SQLite's."""
    with closing(
        sqlite3.connect(data_dir / "worker.lock", isolation_level=None, timeout=seconds)
    ) as lock:
        is_ours = True
        try:
            lock.execute("BEGIN EXCLUSIVE")
        except sqlite3.OperationalError as error:
            if "locked" not in str(error):
                raise
            is_ours = False
        yield is_ours


class TaskRunner:
    """The tasks' work on one data folder; whoever calls it holds the `claim`. ``settings`` may be
    replaced at any time."""

    def __init__(self, settings: WorkerSettings) -> None:
        self.settings = settings
        self._carry_out: dict[str, Callable[[sqlite3.Connection, Order], None]] = {
            "delete": self._delete,
            "reprice": self._reprice,
            "export": self._export,
            "vacuum": self._vacuum,
            "backup": self._back_up,
        }
        self._said: dict[str, float] = {}

    @property
    def path(self) -> Path:
        return self.settings.data_dir / "usage.db"

    def run(self, task: str) -> None:
        """Does a task. What the disk or the database refuses is logged; the next task tries it
        again."""
        try:
            with closing(maintenance.connect(self.path)) as connection:
                self.bring_up_to_date(connection)
                if task == "clean_up":
                    self._clean_up(connection)
                for kind in maintenance_tasks.KINDS if task == "bill" else (task,):
                    self._all(connection, kind)
        except (sqlite3.Error, StoreError) as error:
            self._say(f"{task}: {error}; it is tried again")

    def bring_up_to_date(self, connection: sqlite3.Connection) -> None:
        """Prices and adds up all that is there. Raises sqlite3.Error."""
        for order in maintenance_tasks.pending(connection, "delete"):
            if maintenance.is_begun(order):
                self._do(connection, order)
        if not has_unbilled(connection):
            return
        from jobs import billing, run_hours  # import pandas

        while billing.price_new(connection):
            pass
        run_hours.bill_runs(connection, _now_ms())

    def export(
        self, connection: sqlite3.Connection, period: statements.Period, recorded_ms: int | None
    ) -> Path:
        """Writes the bill of what is in the rollups, which have everything up to ``recorded_ms``,
        or of the whole period. Where the period ends later the file is dated back, so that it is
        of a part for everybody (`statements.is_made`). Raises OSError, sqlite3.Error; ValueError
        for a day that the time zone has skipped."""
        start_ms, end_ms = period.bounds_ms(self._zone())
        bill = statements.render_csv(connection, period, self._zone(), self.settings.currency)
        is_whole = recorded_ms is None or recorded_ms >= end_ms
        as_of_ms = None if is_whole else max(start_ms, recorded_ms or 0)
        return statements.write(self.settings.exports, period, bill, as_of_ms)

    def _zone(self) -> tzinfo:
        return calendar.zone(self.settings.timezone)

    def _all(self, connection: sqlite3.Connection, kind: str) -> None:
        for order in maintenance_tasks.pending(connection, kind):
            try:
                self._do(connection, order)
            except sqlite3.Error as error:  # those behind it are not to wait for it
                self._say(f"{order.kind} {order.subject}: {error}; it is tried again")

    def _do(self, connection: sqlite3.Connection, order: Order) -> None:
        what = f"{order.kind} {order.subject}".rstrip()
        try:
            self._carry_out[order.kind](connection, order)
        except (OSError, ValueError, StoreError) as error:
            log.error("%s failed: %s", what, error)
            maintenance_tasks.fail(connection, order, str(error))
        else:
            maintenance_tasks.complete(connection, order)

    def _delete(self, connection: sqlite3.Connection, order: Order) -> None:
        maintenance.delete_model(connection, order)
        log.info("deleted what was recorded of %s", order.subject)

    def _reprice(self, connection: sqlite3.Connection, order: Order) -> None:
        from jobs import billing  # import pandas

        span = {"start_ms": 0, "end_ms": order.asked_ms, **order.notes}
        changed = billing.price_unpriced(connection, order.subject, **span)
        log.info("priced %d requests and hours of %s that had no price", changed, order.subject)

    def _export(self, connection: sqlite3.Connection, order: Order) -> None:
        period = statements.Period.parse(order.subject)
        is_scheduled = order.notes.get("scheduled")
        # The schedule orders what is recorded. First: more may be while this works.
        recorded_ms = None if is_scheduled else recorded_until(connection)
        # What was recorded between this task's pricing and the order is to be on the bill.
        self.bring_up_to_date(connection)
        if is_scheduled and self._is_made(period):
            return  # a bill once made stays as it is, unless somebody asks for another
        if order.notes.get("unless_empty") and statements.is_empty(self.path, period, self._zone()):
            return
        log.info("wrote %s", self.export(connection, period, recorded_ms))

    def _is_made(self, period: statements.Period) -> bool:
        path = self.settings.exports / period.file
        return statements.is_made(path, period, self._zone(), _now_ms())

    def _vacuum(self, connection: sqlite3.Connection, _order: Order) -> None:
        log.info("gave %d bytes of %s back", maintenance.vacuum(connection), self.path)

    def _back_up(self, _connection: sqlite3.Connection, order: Order) -> None:
        target = self.settings.data_dir / "backups" / backup_name(order)
        datadir.create(target.parent)
        log.info("copied %d bytes to %s", maintenance.backup(self.path, target), target)

    def _clean_up(self, connection: sqlite3.Connection) -> None:
        days = self.settings.request_retention_days
        if days <= 0:
            return
        zone = self._zone()
        # Whole days of the configured zone, as pages and bills have them.
        before_ms = calendar.day_start_ms(_now_ms() - days * _DAY_MS, zone)
        deleted = maintenance.delete_requests_before(connection, before_ms)
        if deleted:
            log.info("deleted %d requests from before %s", deleted, calendar.local(before_ms, zone))

    def _say(self, message: str) -> None:
        """A disk that stays full is logged once a minute, not once a second."""
        now = time.monotonic()
        if now >= self._said.get(message, now - _SAY_AGAIN_SECONDS) + _SAY_AGAIN_SECONDS:
            self._said = {message: now}
            log.error("%s", message)


def has_unbilled(connection: sqlite3.Connection) -> bool:
    """Whether something is there that is not in the rollups."""
    if maintenance.newest_seq(connection) > maintenance.billed_seq(connection):
        return True
    unbilled = connection.execute(
        "SELECT 1 FROM runs WHERE ready_ms IS NOT NULL"
        " AND (ended_ms IS NULL OR billed_ms IS NOT ended_ms) LIMIT 1"
    )
    return unbilled.fetchone() is not None


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


def backup_name(order: Order) -> str:
    """The file of a copy that was asked for over the API."""
    moment = datetime.fromtimestamp(order.asked_ms // 1000, timezone.utc)
    return f"usage-{moment:%Y%m%d-%H%M%S}.db"
