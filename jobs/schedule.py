"""APScheduler: what is done again and again."""

from __future__ import annotations

from datetime import datetime, timezone, tzinfo
from pathlib import Path

from apscheduler.executors.pool import ThreadPoolExecutor
from apscheduler.schedulers.background import BackgroundScheduler
from apscheduler.triggers.base import BaseTrigger

from jobs.log_setup import BufferedLogHandler
from jobs.queue import TaskQueue
from manager.access import AccessRegistry
from manager.billing import Period, calendar, statements
from manager.clock import Clock
from manager.config import Export, Program, next_time
from manager.devices import Monitor
from manager.models import Fleet
from manager.storage import MaintenanceTasks, ModelLogs
from manager.usage import Activity

_SWEEP_SECONDS = 1.0
_POLL_SECONDS = 1.0
_BILL_SECONDS = 1.0
_FLUSH_SECONDS = 1.0
_COUNT_SECONDS = 1.0
_ACCESS_SECONDS = 1.0
_HEARTBEAT_SECONDS = 30
_LOG_SIZE_SECONDS = 0.2
_CLEAN_HOURS = 24


def start(
    access: AccessRegistry,
    activity: Activity,
    fleet: Fleet,
    monitor: Monitor,
    logs: ModelLogs,
    journal: BufferedLogHandler,
    tasks: TaskQueue,
    orders: MaintenanceTasks,
    clock: Clock,
    data_dir: Path,
) -> BackgroundScheduler:
    """Starts the clock's jobs; the caller shuts the scheduler down."""
    scheduler = BackgroundScheduler(
        executors={"default": ThreadPoolExecutor(2, {"thread_name_prefix": "schedule"})},
        # A job that comes late is done once, however often it was due.
        job_defaults={"coalesce": True, "max_instances": 1, "misfire_grace_time": None},
    )
    scheduler.add_job(fleet.stop_idle, "interval", seconds=_SWEEP_SECONDS, id="idle sweep")
    scheduler.add_job(activity.tick, "interval", seconds=_COUNT_SECONDS, id="throughput")
    scheduler.add_job(access.tick, "interval", seconds=_ACCESS_SECONDS, id="keys and accounts")
    scheduler.add_job(fleet.heartbeat, "interval", seconds=_HEARTBEAT_SECONDS, id="heartbeat")
    # Else a program that is started each morning would never come to it.
    at_once = calendar.local(clock.wall_ms(), timezone.utc)
    poll = scheduler.add_job(
        monitor.tick, "interval", seconds=_POLL_SECONDS, id="device poll", next_run_time=None
    )
    monitor.attach(poll.pause, poll.resume)
    scheduler.add_job(journal.flush, "interval", seconds=_FLUSH_SECONDS, id="log flush")
    scheduler.add_job(
        lambda: logs.enforce_limit(fleet.config.program.model_log_mb << 20),
        "interval",
        seconds=_LOG_SIZE_SECONDS,
        id="log size",
    )
    scheduler.add_job(
        lambda: logs.clean(fleet.config.program.log_retention_days),
        "interval",
        hours=_CLEAN_HOURS,
        next_run_time=at_once,
        id="log clean-up",
    )
    scheduler.add_job(tasks.tick, "interval", seconds=_BILL_SECONDS, id="bills")
    scheduler.add_job(
        lambda: tasks.enqueue("clean_up"),
        "interval",
        hours=_CLEAN_HOURS,
        next_run_time=at_once,
        id="retention",
    )
    program = fleet.config.program
    if export := program.export:
        bill = ScheduledExport(program, export, data_dir, orders)
        scheduler.add_job(lambda: bill.order(clock.wall_ms()), bill.trigger, id="export")
        scheduler.add_job(lambda: bill.catch_up(clock.wall_ms()), id="missed export")  # at once
    scheduler.start()
    return scheduler


class CronTrigger(BaseTrigger):  # type: ignore[misc]
    """The times of a cron expression, by the clock of the zone."""

    def __init__(self, expression: str, zone: tzinfo) -> None:
        self._expression = expression
        self._zone = zone

    def get_next_fire_time(self, _previous: datetime | None, now: datetime) -> datetime | None:
        return next_time(self._expression, now.astimezone(self._zone))


class ScheduledExport:
    """Orders the bill of the last month or day that has ended."""

    def __init__(
        self, program: Program, export: Export, data_dir: Path, orders: MaintenanceTasks
    ) -> None:
        self._period = export.period
        self._zone = calendar.zone(program.timezone)
        self._folder = statements.directory(program.export_directory, data_dir)
        self._usage_db = data_dir / "usage.db"
        self._orders = orders
        self.trigger = CronTrigger(export.schedule, self._zone)

    def order(self, now_ms: int) -> None:
        self._orders.enqueue("export", Period.last_complete(self._period, now_ms, self._zone).text)

    def catch_up(self, now_ms: int) -> None:
        """Orders it where the program was off when it was due."""
        period = Period.last_complete(self._period, now_ms, self._zone)
        _, ended_ms = period.bounds_ms(self._zone)
        due = self.trigger.get_next_fire_time(None, calendar.local(ended_ms, self._zone))
        is_missed = due is not None and due <= calendar.local(now_ms, self._zone)
        made_ms = statements.modified_ms(self._folder / period.file)
        # One that somebody asked for before the period had ended is a part of it.
        is_there = made_ms is not None and made_ms >= ended_ms
        if (
            is_missed
            and not is_there
            and not statements.is_empty(self._usage_db, period, self._zone)
        ):
            self._orders.enqueue("export", period.text)
