"""APScheduler: what is done again and again."""

from __future__ import annotations

from apscheduler.executors.pool import ThreadPoolExecutor
from apscheduler.schedulers.background import BackgroundScheduler

from jobs import crontab
from jobs.journal import Journal
from jobs.queue import TaskQueue
from manager import calendar
from manager.bills import Period
from manager.clock import Clock
from manager.devices import Monitor
from manager.fleet import Fleet
from manager.logs import ModelLogs
from manager.orders import Orders

_SWEEP_SECONDS = 1.0
_POLL_SECONDS = 1.0
_BILL_SECONDS = 1.0
_FLUSH_SECONDS = 1.0
_HEARTBEAT_SECONDS = 30
_CLEAN_HOURS = 24


def start(
    fleet: Fleet,
    monitor: Monitor,
    logs: ModelLogs,
    journal: Journal,
    tasks: TaskQueue,
    orders: Orders,
    clock: Clock,
) -> BackgroundScheduler:
    """Starts the clock's jobs; the caller shuts the scheduler down."""
    scheduler = BackgroundScheduler(
        executors={"default": ThreadPoolExecutor(2, {"thread_name_prefix": "schedule"})},
        # A job that comes late is done once, however often it was due.
        job_defaults={"coalesce": True, "max_instances": 1, "misfire_grace_time": None},
    )
    scheduler.add_job(fleet.sweep, "interval", seconds=_SWEEP_SECONDS, id="idle sweep")
    scheduler.add_job(fleet.heartbeat, "interval", seconds=_HEARTBEAT_SECONDS, id="heartbeat")
    poll = scheduler.add_job(
        monitor.tick, "interval", seconds=_POLL_SECONDS, id="device poll", next_run_time=None
    )
    monitor.attach(poll.pause, poll.resume)
    scheduler.add_job(journal.flush, "interval", seconds=_FLUSH_SECONDS, id="log flush")
    scheduler.add_job(
        lambda: logs.clean(fleet.config.program.log_retention_days),
        "interval",
        hours=_CLEAN_HOURS,
        id="log clean-up",
    )
    scheduler.add_job(tasks.tick, "interval", seconds=_BILL_SECONDS, id="bills")
    scheduler.add_job(lambda: tasks.put("clean_up"), "interval", hours=_CLEAN_HOURS, id="retention")
    program = fleet.config.program
    if export := program.export:
        zone = calendar.zone(program.timezone)

        def order_bill() -> None:
            period = Period.last_whole(export.period, clock.wall_ms(), zone)
            orders.place("export", period.text)

        scheduler.add_job(order_bill, crontab.trigger(export.schedule, zone), id="export")
    scheduler.start()
    return scheduler
